"""Conversations of several turns: a tool that answers, pictures that come later, and the end."""

import json
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.config import component
from embodied_rl.demonstrations import load_demonstrations
from embodied_rl.envs import make_env
from embodied_rl.registry import registry

pytest.importorskip("PIL.Image", reason="the extra vqa is not installed")

from embodied_rl.check_env import random_actions, same
from embodied_rl.envs.vqa import load_task, search
from embodied_rl.envs.vqa.env import decode_text, encode_text

TASK = load_task("visual_search")


def build(**options: Any) -> Any:
    given = {"tasks": "visual_search", "num_envs": 4, "seed": 3, "autoreset": False, "max_turns": 3}
    env: Any = make_env("vqa", **(given | options))
    return env


def say(env: Any, *texts: str | bytes) -> Any:
    size = env.single_action_space.shape[0]
    return env.step(torch.from_numpy(encode_text(texts, size, name="answer_bytes")))


def chat(obs: Any, row: int = 0) -> list[dict[str, Any]]:
    text = decode_text(obs["chat"][row].numpy())
    assert text is not None
    return json.loads(text)


def pictures(obs: Any, row: int) -> list[np.ndarray]:
    frames, sizes = obs["images"][row].numpy(), obs["image_sizes"][row].tolist()
    return [frame[:h, :w] for frame, (h, w) in zip(frames, sizes, strict=True) if h]


def play(env: Any, *, tool: bool) -> tuple[float, float]:
    """(success rate, mean number of turns) of one who reads pictures, with or without the tool."""
    obs, _ = env.reset()
    running = torch.ones(env.num_envs, dtype=torch.bool)
    solved, turns = torch.zeros(env.num_envs), torch.zeros(env.num_envs)
    while bool(running.any()):
        questions = env.simulator.questions
        texts = [
            search.next_text(question, shown) if tool else best_guess(question, shown)
            for row, question in enumerate(questions)
            for shown in [pictures(obs, row)]
        ]
        obs, _, terminated, _, info = say(env, *texts)
        turns += info["num_env_steps"]
        solved += info["success"]
        running &= ~terminated
    return float(solved.mean()), float(turns.mean())


def best_guess(question: Any, shown: list[np.ndarray]) -> str:
    """A digit drawn by all that one turn shows: the picture and the text."""
    seen = question.prompt.encode() + shown[0].tobytes()
    return search.DIGITS[zlib.crc32(seen) % 10]


def test_the_tool_solves_what_one_turn_leaves_at_chance() -> None:
    with_tool = play(build(num_envs=200, split="heldout"), tool=True)
    without = play(build(num_envs=200, split="heldout"), tool=False)
    assert with_tool[0] >= 0.95 and with_tool[1] == 2.0
    assert without[0] < 0.1 + 4 * (0.1 * 0.9 / 200) ** 0.5 and without[1] == 1.0
    single = play(build(num_envs=50, max_turns=1), tool=True)
    assert single == (0.0, 1.0)  # the call is its answer


@pytest.mark.parametrize("size", [256, 512])
def test_what_is_shown_at_first_does_not_depend_on_any_digit(size: int) -> None:
    options = TASK.options(size=size)
    for seed in range(20):
        question = TASK.make_question(options, seed=seed, split="train")
        shown = question.images[0]
        assert shown.shape == (32, 32, 3) and not (shown == search.INK).all(-1).any()
        plates = [(c, "8", x, y) for c, _, x, y in question.data["plates"]]
        other = search.draw_canvas(plates, options)
        assert np.array_equal(search.whole(other, 32), shown)
        assert not np.array_equal(other, question.data["frames"][0]) or question.answer == "8"


def test_the_chat_grows_by_what_was_said_and_by_the_reply_with_its_picture() -> None:
    env = build(num_envs=2)
    first, _ = env.reset()
    opening = chat(first)
    assert [message["role"] for message in opening] == ["user"]
    call = search.call((0, 0, 64, 32))
    obs, rewards, terminated, _, info = say(env, f"look: {call}", "7")
    assert terminated.tolist() == [False, True] and rewards[0] == 0
    assert info["num_env_steps"].tolist() == [1, 1]
    grown = chat(obs)
    assert grown[:1] == opening
    assert grown[1] == {
        "role": "assistant",
        "content": [{"type": "text", "text": f"look: {call}"}],
    }
    assert grown[2]["role"] == "user" and grown[2]["content"][0] == {"type": "image"}
    canvas = env.simulator.questions[0].data["frames"][0]
    before, crop = pictures(obs, 0)
    assert np.array_equal(before, pictures(first, 0)[0])
    assert np.array_equal(crop, canvas[0:32, 0:64:2])
    named = sum(part["type"] == "image" for message in grown for part in message["content"])
    assert named == int((obs["image_sizes"][0] > 0).all(-1).sum()) == 2
    obs, _, terminated, _, info = say(env, env.simulator.questions[0].answer, "")
    assert bool(terminated[0]) and bool(info["success"][0])
    assert info["episode"]["length"].tolist() == [2, 1]
    obs, _ = env.reset()
    assert len(chat(obs)) == 1 and len(pictures(obs, 0)) == 1


def test_the_last_turn_is_the_answer_whatever_it_is() -> None:
    env = build(num_envs=1, max_turns=3)
    env.reset()
    call = search.call((0, 0, 32, 32))
    ends = [bool(say(env, call)[2]) for _ in range(3)]
    assert ends == [False, False, True]


@pytest.mark.parametrize(
    "text",
    [
        "<tool_call>{}</tool_call>",
        '<tool_call>{"bbox": [0, 0, 32, 32]}',
        '<tool_call>{"bbox": [0, 0, 999, 32]}</tool_call>',
        '<tool_call>{"bbox": [9, 9, 9, 32]}</tool_call>',
        '<tool_call>{"bbox": [0, 0, 1e3, true]}</tool_call>',
        '<tool_call>{"bbox": [0, 0, 32, 32], "x": 1}</tool_call>',
        "<tool_call>" + "[" * 90,
        search.call((0, 0, 9, 9)) * 2,
        '<tool_call>{"name": "zoom", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "zoom", "arguments": {"bbox_2d": [0, 0, 32, 32]}}</tool_call>',
        '<tool_call>{"name": "rotate", "arguments": {"bbox": [0, 0, 32, 32]}}</tool_call>',
        '<tool_call>{"name": ["zoom"], "arguments": {"bbox": [0, 0, 32, 32]}}</tool_call>',
        '<tool_call>{"name": "zoom", "arguments": [0, 0, 32, 32]}</tool_call>',
        '<tool_call>\x01\x02"\\</tool_call>',
    ],
)
def test_a_call_that_cannot_be_shown_is_answered_with_the_way_to_do_it(text: str) -> None:
    env = build(num_envs=1)
    env.reset()
    obs, rewards, terminated, _, _ = say(env, text)
    assert not bool(terminated) and rewards.tolist() == [0.0]
    assert chat(obs)[1]["content"][0]["text"] == text
    told = chat(obs)[2]["content"][-1]["text"]
    assert search.read_call(told, 256) == (0, 0, 32, 32) and len(pictures(obs, 0)) == 1


@pytest.mark.parametrize(
    "body",
    [
        '{"bbox": [0, 0, 64, 32]}',
        '{"name": "zoom", "arguments": {"bbox": [0, 0, 64, 32]}}',
        '{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 64, 32], "label": "a"}}',
    ],
)
def test_a_call_may_have_the_form_that_chat_models_write(body: str) -> None:
    env = build(num_envs=1, answer_bytes=160)
    env.reset()
    obs, *_ = say(env, f"<think>closer</think>\n<tool_call>\n{body}\n</tool_call>")
    canvas = env.simulator.questions[0].data["frames"][0]
    assert np.array_equal(pictures(obs, 0)[1], canvas[0:32, 0:64:2])


def test_any_text_of_full_length_fits_into_the_chat() -> None:
    env = build(num_envs=1)
    obs, _ = env.reset()
    size = env.single_action_space.shape[0]
    worst = search.OPENING + "\x01" * (size - len(search.OPENING))
    for _ in range(2):
        obs, *_ = say(env, worst)
    assert len(chat(obs)) == 5
    env.reset()
    _, _, terminated, _, info = say(env, b"\xff")
    assert bool(terminated) and info["reward_terms"]["malformed"].tolist() == [1.0]


def test_a_call_costs_what_the_task_says_and_answers_earn_their_reward_once() -> None:
    knobs = {"visual_search": {"call_cost": 0.25}}
    env = build(num_envs=2, knobs=knobs, reward={"right": {"reward": "match", "weight": 2.0}})
    env.reset()
    _, rewards, _, _, info = say(env, search.call((0, 0, 32, 32)), "x")
    assert rewards.tolist() == [-0.25, 0.0]
    assert info["reward_terms"]["turn"].tolist() == [-0.25, 0.0]
    _, rewards, _, _, info = say(env, env.simulator.questions[0].answer, "")
    assert rewards.tolist() == [2.0, 0.0]
    assert info["episode"]["return"].tolist() == [1.75, 0.0]


def test_rewards_see_what_was_written_before_the_answer() -> None:
    env = build(num_envs=3, reward="gated_tool_use")
    env.reset()
    call = '{"name": "zoom", "arguments": {"bbox": [0, 0, 32, 32]}}'
    turn = f"<think>closer</think><tool_call>{call}</tool_call>"
    right = [f"<think>seen</think><answer>{q.answer}</answer>" for q in env.simulator.questions]
    obs, _, terminated, _, _ = say(env, turn, right[1], turn)
    assert terminated.tolist() == [False, True, False] and len(pictures(obs, 0)) == 2
    _, rewards, terminated, _, _ = say(env, right[0], "", "no form")
    assert rewards[[0, 2]].tolist() == pytest.approx([1.5, -0.05]) and bool(terminated[0])


def test_an_episode_is_a_function_of_its_seed_and_texts_also_after_a_resume() -> None:
    def run(env: Any, steps: int) -> list[Any]:
        return [
            (obs, rewards, terminated)
            for _ in range(steps)
            for obs, rewards, terminated, _, _ in [env.step(env.simulator.reference_answers())]
        ]

    first, second = build(autoreset=True), build(autoreset=True)
    assert same(first.reset()[0], second.reset()[0])
    assert same(run(first, 5), run(second, 5))  # of 2 turns each: it stops within an episode
    state = first.state_dict()
    assert int(state["episode"]["length"].max()) == 1
    third = build(autoreset=True)
    assert same(third.load_state_dict(state), second._tensors(second._obs))
    assert same(run(third, 4), run(second, 4))


def test_random_texts_end_an_episode_and_the_reference_solves_it() -> None:
    env = build(num_envs=8, autoreset=True)
    env.reset()
    for actions in random_actions(env, steps=6):
        env.step(actions)
    env = build(num_envs=8, tasks=("visual_search", "shapes_vqa"))
    env.reset()
    _, _, terminated, _, info = env.step(env.simulator.reference_answers())
    assert terminated.tolist() == info["success"].tolist() == [False, True] * 4
    _, _, terminated, _, info = env.step(env.simulator.reference_answers())
    assert terminated.tolist() == info["success"].tolist() == [True, False] * 4


def test_every_turn_of_the_reference_is_imitated(tmp_path: Path) -> None:
    base = registry("recipes").get("vqa/shapes_sft")()
    simulator = component(
        "envs", "vqa", tasks=("visual_search", "shapes_vqa"), max_turns=3, answer_bytes=64
    )
    imitation = replace(base.imitation, episodes_per_task=40)
    config = replace(base, env=replace(base.env, simulator=simulator), imitation=imitation)
    obs, answers, mask = load_demonstrations(config, tmp_path)
    assert answers.shape == (120, 64) and bool(mask.all())
    texts = [decode_text(row) or "" for row in answers.numpy()]
    turns = [len(chat(obs, row)) for row in range(120)]
    calls = [text.startswith(search.OPENING) for text in texts]
    assert sum(calls) == turns.count(3) == 40
    for text, turn, is_call in zip(texts, turns, calls, strict=True):
        assert (turn == 1) if is_call else (turn == 1 or text in search.DIGITS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_turns": 0}, "give at least 1"),
        ({"tasks": "shapes_vqa"}, "none of the tasks replies"),
        ({"reward": {"match": None, "dylr": None}, "group_size": 2}, "set max_turns to 1"),
        ({"knobs": {"visual_search": {"size": 250}}}, "such as 224"),
    ],
)
def test_turns_that_cannot_work_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


def test_what_the_tool_says_is_read_by_the_model_and_never_scored() -> None:
    pytest.importorskip("transformers", reason="the extra vlm is not installed")
    from embodied_rl import rollout as rollouts
    from embodied_rl.build import policy_spec
    from embodied_rl.config import EnvConfig, component
    from embodied_rl.policies import make_policy

    env = build(num_envs=2, group_size=2, knobs={"visual_search": {"size": 48, "view": 24}})
    config = EnvConfig(simulator=component("envs", "vqa", tasks=("visual_search",)))
    torch.manual_seed(0)
    policy: Any = make_policy(
        "vlm", policy_spec(env, config), model="tiny/qwen2_5_vl", max_new_tokens=40
    )
    call, answer = search.call((0, 0, 24, 24)), "7"
    obs, _ = env.reset()
    tokens, lengths = policy.encode([call, call])
    with torch.no_grad():
        before = policy.log_prob(obs, None, {"tokens": tokens, "num_tokens": lengths}).log_probs
        grown, *_ = say(env, call, call)
        said, length = policy.encode([answer, answer])
        after = policy.log_prob(grown, None, {"tokens": said, "num_tokens": length}).log_probs
    assert before.shape == tokens.shape and after.shape == said.shape
    changed = {name: value.clone() for name, value in grown.items()}
    changed["images"][:, 1] = 255 - changed["images"][:, 1]
    with torch.no_grad():
        other = policy.log_prob(changed, None, {"tokens": said, "num_tokens": length}).log_probs
    assert not torch.equal(other, after)  # the picture that came back is looked at
    rollout = rollouts.collect(
        env, policy, rollouts.start(env), generator=torch.Generator().manual_seed(0)
    )
    assert rollout.unit_mask.shape[2] == rollout.replay["tokens"].shape[2] <= 40
