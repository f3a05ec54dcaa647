import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.build import build_env, policy_spec
from embodied_rl.config import EnvConfig, component
from embodied_rl.envs import make_env
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.evaluate import make_manifest
from embodied_rl.registry import RegistryError, register
from embodied_rl.rewards.base import SetupError
from embodied_rl.rollout import collect, start
from embodied_rl.types import PolicyOutput

PILImage = pytest.importorskip("PIL.Image")

from embodied_rl.envs.vqa import TASKS, load_task  # noqa: E402 (needs Pillow)
from embodied_rl.envs.vqa.env import VQASimulator, decode_text, encode_text  # noqa: E402


def build(**options: Any) -> tuple[SimulatorVectorEnv, VQASimulator]:
    given: dict[str, Any] = {"num_envs": 4, "seed": 3, "autoreset": False} | options
    if "file" not in given:
        given.setdefault("tasks", "shapes_vqa")
    env = make_env("vqa", **given)
    assert isinstance(env, SimulatorVectorEnv) and isinstance(env.simulator, VQASimulator)
    return env, env.simulator


def answer(env: SimulatorVectorEnv, *texts: str | bytes) -> Any:
    """Step with these answers; the action has as many bytes as the environment takes."""
    size = env.single_action_space.shape[0]  # type: ignore[index]
    return env.step(torch.from_numpy(encode_text(texts, size, name="answer_bytes")))


def chat_of(obs: dict[str, torch.Tensor], row: int) -> Any:
    text = decode_text(obs["chat"][row].numpy())
    assert text is not None
    return json.loads(text)


def test_pictures_of_a_control_replace_those_of_the_question_and_nothing_else() -> None:
    (shown, simulator), (blank, _), (swapped, _) = (
        build(pictures=kind, num_envs=16) for kind in ("shown", "blank", "swapped")
    )
    obs, grey, other = (env.reset()[0] for env in (shown, blank, swapped))
    for name in ("chat", "image_sizes"):
        assert torch.equal(obs[name], grey[name]) and torch.equal(obs[name], other[name])
    assert bool((grey["images"] == 128).all())
    differs = (obs["images"] != other["images"]).flatten(1).any(1)
    assert bool(differs.all()) and int(other["images"].float().std()) > 0
    answers = [question.answer for question in simulator.questions]
    assert bool((answer(blank, *answers)[1] == 1).all())  # the right answer stays the right one


def test_an_unknown_control_is_refused() -> None:
    with pytest.raises(ValueError, match="shown, blank, swapped"):
        build(pictures="grey")


def test_observations_hold_the_chat_and_the_pictures_in_its_order() -> None:
    env, simulator = build(tasks=("page_rerank", "timeseries_plot"), system_prompt="Grüße")
    obs, _ = env.reset()
    assert env.task_ids.tolist() == [0, 1, 0, 1]
    for row, question in enumerate(simulator.questions):
        system, user = chat_of(obs, row)
        assert system == {"role": "system", "content": [{"type": "text", "text": "Grüße"}]}
        *pictures, text = user["content"]
        assert user["role"] == "user" and text == {"type": "text", "text": question.prompt}
        assert pictures == [{"type": "image"}] * len(question.images)
        sizes = obs["image_sizes"][row]
        assert int((sizes > 0).all(-1).sum()) == len(question.images)
        rest = obs["images"][row].clone()
        for number, picture in enumerate(question.images):
            height, width = sizes[number].tolist()
            assert np.array_equal(obs["images"][row, number, :height, :width].numpy(), picture)
            rest[number, :height, :width] = 0
        assert int(rest.sum()) == 0


def test_the_reference_answers_solve_every_task_and_others_do_not() -> None:
    env, simulator = build(tasks=tuple(TASKS), num_envs=len(TASKS), answer_bytes=1024)
    env.reset()
    assert env.task_names == tuple(TASKS) == tuple(q.task for q in simulator.questions)
    _, rewards, terminated, truncated, info = env.step(simulator.reference_answers())
    assert rewards.tolist() == [1.0] * len(TASKS) and bool(info["success"].all())
    assert bool(terminated.all()) and not bool(truncated.any())
    env.reset()
    _, rewards, terminated, _, info = answer(env, *["no idea"] * len(TASKS))
    assert not bool(rewards.any() | info["success"].any()) and bool(terminated.all())


def test_rows_of_a_group_get_the_same_question_and_groups_different_ones() -> None:
    env, simulator = build(num_envs=6, group_size=3, autoreset=True)
    seen = set()
    env.reset()
    for _ in range(3):
        assert env.group_ids.reshape(2, 3).unique(dim=1).shape == (2, 1)
        keys = [question.data["key"] for question in simulator.questions]
        assert len(set(keys[:3])) == len(set(keys[3:])) == 1
        seen |= set(keys)
        answer(env, *"012345")
    assert len(seen) == 6


def test_questions_are_those_of_the_seed_and_the_splits_share_none() -> None:
    env, simulator = build(episode_seeds=[5, 6, 7, 8], split="heldout")
    env.reset()
    task = load_task("shapes_vqa")
    for row, seed in enumerate([5, 6, 7, 8]):
        expected = task.make_question(task.options(), seed=seed, split="heldout")
        assert simulator.questions[row].data["key"] == expected.data["key"]
        assert np.array_equal(simulator.questions[row].images[0], expected.images[0])
    keys: dict[str, set[str]] = {"train": set(), "heldout": set()}
    for split, found in keys.items():
        env, simulator = build(num_envs=64, split=split)
        for _ in range(3):
            env.reset()
            found |= {question.data["key"] for question in simulator.questions}
    assert not keys["train"] & keys["heldout"] and len(keys["train"]) == 3 * 64


@pytest.mark.parametrize("broken", [b"\xff", b"1\xc3", b"\xed\xa0\x80", b"1\x00\x80"])
def test_what_is_no_utf_8_is_wrong_and_counted_and_no_reward_sees_it(broken: bytes) -> None:
    seen: list[str] = []

    def score(question: Any, text: str) -> dict[str, float]:
        seen.append(text)
        return {"term": 1.0, "success": 1.0}

    env, _ = build(reward=score)
    env.reset()
    seen.clear()
    _, rewards, terminated, _, info = answer(env, "1", broken, "é", "")
    assert seen == ["1", "é", ""] and bool(terminated.all())
    assert rewards.tolist() == [1.0, 0.0, 1.0, 1.0]
    assert info["success"].tolist() == [True, False, True, True]
    assert info["reward_terms"]["malformed"].tolist() == [0.0, 1.0, 0.0, 0.0]


def test_the_reward_is_the_sum_of_its_terms_and_success_stands_beside_it() -> None:
    def score(question: Any, text: str) -> dict[str, float]:
        if text == "raise":
            raise KeyError(text)
        length = float("nan") if text == "nan" else -0.5 * len(text)
        return {"brief": length, "kind": 2.0, "success": float(text == "yes")}

    env, _ = build(reward=score)
    env.reset()
    _, rewards, _, _, info = answer(env, "yes", "raise", "nan", "")
    assert rewards.tolist() == [0.5, 0.0, 0.0, 2.0]
    assert info["success"].tolist() == [True, False, False, False]
    terms = {name: value.tolist() for name, value in info["reward_terms"].items()}
    assert terms == {
        "brief": [-1.5, 0.0, 0.0, 0.0],
        "kind": [2.0, 0.0, 0.0, 2.0],
        "malformed": [0.0] * 4,
        "failed": [0.0, 1.0, 1.0, 0.0],
    }


def test_what_the_machine_lacks_stops_the_run_also_later() -> None:
    def score(question: Any, text: str) -> dict[str, float]:
        if text:
            raise SetupError("install the library")
        return {"kind": 1.0}

    env, _ = build(reward=score)
    env.reset()
    with pytest.raises(SetupError, match="install the library"):
        answer(env, "yes", "", "", "")


def test_a_reward_that_changes_its_terms_or_cannot_run_here_stops_the_run() -> None:
    env, _ = build(reward=lambda question, text: {text or "empty": 1.0})
    env.reset()
    with pytest.raises(ValueError, match=r"gives \['new'\], which it did not give an empty answer"):
        answer(env, "new", "empty", "empty", "empty")

    def lacks(question: Any, text: str) -> dict[str, float]:
        raise RuntimeError("install the library")

    with pytest.raises(RuntimeError, match="install"):
        build(reward=lacks)


@register("rewards", "test_only_length")
def _length(response: str, question: Any, *, share: float = 1.0) -> float:
    return share * len(response)


def test_registered_rewards_are_called_by_name(tmp_path: Path) -> None:
    env, _ = build(reward="test_only_length", reward_options={"share": 0.5})
    env.reset()
    _, rewards, _, _, info = answer(env, "", "a", "bb", "ccc")
    assert rewards.tolist() == info["reward_terms"]["test_only_length"].tolist() == [0, 0.5, 1, 1.5]
    with pytest.raises(RegistryError, match="unknown rewards name 'test_only_lenth'"):
        build(reward="test_only_lenth")
    with pytest.raises(ValueError, match="name one as reward"):
        build(reward_options={"share": 1.0})


def write_file(folder: Path, count: int = 40) -> str:
    rows = []
    for number in range(count):
        size = (8 + number % 3, 6 + number % 2)
        PILImage.new("RGB", size, (number, 0, 0)).save(folder / f"{number}.png")
        task = "red" if number % 4 else "other"
        rows.append({"prompt": f"q{number}", "images": [f"{number}.png"], "answer": f"{number}"})
        rows[-1]["task"] = task
    path = folder / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_questions_of_a_file_are_asked_once_each_by_consecutive_seeds(tmp_path: Path) -> None:
    options: dict[str, Any] = {"file": write_file(tmp_path), "heldout_share": 0.3}
    asked = {}
    for split in ("train", "heldout"):
        manifest = make_manifest(("other", "red"), episodes=80, split="test", simulator="vqa")
        env, simulator = build(**options, split=split, num_envs=80)
        assert env.task_names == ("other", "red")
        tasks = torch.tensor([env.task_names.index(task) for task in manifest.tasks])
        seeds = torch.tensor(manifest.seeds)
        obs, _ = env.reset(options={"task_ids": tasks, "episode_seeds": seeds})
        assert obs["images"].shape[1:] == (1, 7, 10, 3)
        asked[split] = {question.prompt for question in simulator.questions}
        for row, question in enumerate(simulator.questions):
            number = int(question.answer)
            assert question.task == env.task_names[int(tasks[row])]
            assert obs["image_sizes"][row, 0].tolist() == [6 + number % 2, 8 + number % 3]
            assert obs["images"][row, 0, 0, 0].tolist() == [number, 0, 0]
        _, rewards, *_ = env.step(simulator.reference_answers())
        assert bool((rewards == 1).all())
    assert not asked["train"] & asked["heldout"]
    assert asked["train"] | asked["heldout"] == {f"q{number}" for number in range(40)}


def test_large_pictures_of_a_file_are_scaled_down_and_resume_finds_the_same(tmp_path: Path) -> None:
    options: dict[str, Any] = {"file": write_file(tmp_path), "max_image_side": 5}
    env, simulator = build(**options, autoreset=True)
    obs, _ = env.reset()
    assert obs["images"].shape[1:] == (1, 4, 5, 3)
    assert int(obs["image_sizes"].max()) == 5
    for _ in range(3):
        obs, *_ = env.step(simulator.reference_answers())
    other, restored = build(**options, autoreset=True)
    state = env.state_dict()
    assert state is not None
    again = other.load_state_dict(state)
    assert all(torch.equal(again[name], obs[name]) for name in obs)
    assert [q.prompt for q in restored.questions] == [q.prompt for q in simulator.questions]


def test_knobs_reach_their_task() -> None:
    env, simulator = build(knobs={"shapes_vqa": {"kinds": ["count"], "max_count": 6, "size": 96}})
    obs, _ = env.reset()
    assert {question.data["kind"] for question in simulator.questions} == {"count"}
    assert obs["images"].shape[2:4] == (96, 96)
    _, simulator = build(
        tasks="pairwise_judge", knobs={"pairwise_judge": {"question": {"kinds": ["position"]}}}
    )
    assert "corner" in simulator.questions[0].prompt


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ()}, "give either tasks"),
        ({"tasks": "shapes_vqa", "file": "x.jsonl"}, "give either tasks"),
        ({"tasks": "shape_vqa"}, "did you mean 'shapes_vqa'"),
        ({"tasks": ("shapes_vqa", "shapes_vqa")}, "name each task once"),
        ({"split": "test"}, "'train' or 'heldout'"),
        ({"knobs": {"shapes_vqa": {"gird": 6}}}, "no 'gird'; did you mean 'grid'"),
        ({"knobs": {"shapes_vqa": {"grid": 5}}}, "an even number"),
        ({"knobs": {"shapes_ground": {}}}, "none of the tasks; did you mean 'shapes_vqa'"),
        ({"file": "nowhere.jsonl"}, "there is no file"),
        ({"num_envs": 5, "group_size": 2}, "use num_envs=4"),
    ],
)
def test_bad_options_are_refused_in_one_sentence(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(**options)
    assert "\n" not in str(caught.value)


def test_texts_that_do_not_fit_and_actions_that_are_no_text_are_refused() -> None:
    env, _ = build(chat_bytes=50)
    with pytest.raises(ValueError, match=r"a text of \d+ bytes does not fit: give chat_bytes=\d+"):
        env.reset()
    env, _ = build(answer_bytes=16)
    env.reset()
    with pytest.raises(ValueError, match="takes uint8 text"):
        env.step(torch.zeros(4, 16, dtype=torch.int64))
    with pytest.raises(ValueError, match="shape"):
        env.step(torch.zeros(4, 15, dtype=torch.uint8))


def test_a_configuration_builds_it_and_collect_records_its_reward_terms() -> None:
    simulator = component("envs", "vqa", tasks=("shapes_vqa",), answer_bytes=32)
    config = EnvConfig(simulator=simulator, num_envs=4, group_size=2)
    env: Any = build_env(config, seed=0, autoreset=True, options={"split": "heldout"})
    spec = policy_spec(env, config)
    assert (spec.text_bytes, spec.action_dim, spec.num_actions) == (32, 0, 0)
    assert spec.obs_dtypes["images"] == "uint8" and spec.obs_dtypes["image_sizes"] == "int64"

    def sample(obs: Any, **_: Any) -> PolicyOutput:
        return PolicyOutput(actions=env.simulator.reference_answers(), values=torch.zeros(4))

    policy: Any = SimpleNamespace(sample=sample, value=lambda obs: torch.zeros(len(obs["chat"])))
    cursor = start(env)
    rollout = collect(env, policy, cursor, num_steps=3, generator=None)
    assert rollout.actions.shape == (3, 4, 32) and rollout.actions.dtype == torch.uint8
    assert set(rollout.reward_terms) == {"correct", "malformed", "failed"}
    assert torch.equal(rollout.reward_terms["correct"], rollout.rewards)
    assert bool(rollout.success.all() & rollout.terminated.all() & (rollout.rewards == 1).all())
    assert len(rollout.group_ids.unique()) == 6


def test_a_row_can_be_looked_at() -> None:
    env, _ = build(tasks="temporal_grounding")
    env.reset()
    picture = env.render(0)
    assert picture.dtype == np.uint8 and picture.shape[1:] == (440, 3) and picture.std() > 0
