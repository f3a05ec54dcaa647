"""Mixtures of rewards and group rewards, from the options of the environment to the metrics."""

from pathlib import Path
from typing import Any

import pytest
import torch

from embodied_rl import cli
from embodied_rl.config import ConfigError, from_yaml, overlay, to_yaml
from embodied_rl.envs import make_env
from embodied_rl.metrics import read_jsonl
from embodied_rl.registry import RegistryError, register, registry

pytest.importorskip("PIL.Image", reason="the extra vqa is not installed")

from embodied_rl.envs.vqa.env import encode_text

SEEN: list[tuple[list[str], list[float], str]] = []


@register("rewards", "test_words")
def words(response: str, question: Any, *, share: float = 1.0) -> float:
    return share * len(response.split())


@register("rewards", "test_breaks")
def breaks(response: str, question: Any) -> float:
    return 1 / (response != "break")


@register("rewards", "test_lacks")
def lacks(response: str, question: Any) -> float:
    raise ValueError("the question has no box")


@register("group_rewards", "test_place")
def place(responses: Any, question: Any, *, scores: Any, step: float = 1.0) -> list[float]:
    """Longer answers of the group earn more, by their place."""
    SEEN.append((list(responses), list(scores), question.prompt))
    return [step * sum(len(other) < len(r) for other in responses) for r in responses]


def build(reward: Any, **options: Any) -> Any:
    env: Any = make_env(
        "vqa",
        **{"tasks": "shapes_vqa", "num_envs": 4, "seed": 3, "autoreset": False, "group_size": 2}
        | {"reward": reward, "answer_bytes": 32}
        | options,
    )
    env.reset()
    SEEN.clear()
    return env


def answer(env: Any, *texts: str | bytes) -> Any:
    return env.step(torch.from_numpy(encode_text(texts, 32, name="answer_bytes")))


def terms_of(info: Any) -> dict[str, list[float]]:
    return {name: value.tolist() for name, value in info["reward_terms"].items()}


def test_the_reward_is_the_weighted_sum_and_every_term_is_logged_with_its_weight() -> None:
    env = build(
        {
            "right": {"reward": "correct", "weight": 4},
            "long": {"reward": "test_words", "weight": 0.25, "options": {"share": 2.0}},
            "test_words": None,
        }
    )
    right = [question.answer for question in env.simulator.questions]
    _, rewards, _, _, info = answer(env, right[0], "no no no", "", "a b")
    number = len(right[0].split())
    assert rewards.tolist() == [4 + 0.5 * number + number, 4.5, 0.0, 3.0]
    assert info["success"].tolist() == [True, False, False, False]
    assert terms_of(info) == {
        "right": [4.0, 0.0, 0.0, 0.0],
        "long": [0.5 * number, 1.5, 0.0, 1.0],
        "test_words": [number, 3.0, 0.0, 2.0],
        "malformed": [0.0] * 4,
        "failed": [0.0] * 4,
    }


def test_terms_go_to_the_tasks_they_name() -> None:
    env = build(
        {
            "right": {"reward": "task", "tasks": ["timeseries_plot"]},
            "test_words": {"tasks": "shapes_vqa"},
        },
        tasks=("shapes_vqa", "timeseries_plot"),
    )
    reference = [question.answer for question in env.simulator.questions]
    assert env.task_ids.tolist() == [0, 0, 1, 1]
    _, rewards, _, _, info = answer(env, "a b c", "a", "a b c", reference[3])
    assert rewards.tolist() == [3.0, 1.0, 0.0, 1.0]
    assert terms_of(info)["right"] == [0.0, 0.0, 0.0, 1.0]


@pytest.mark.parametrize("autoreset", [True, False])
def test_a_group_reward_sees_all_answers_to_a_question_and_no_others(autoreset: bool) -> None:
    reward = {
        "test_words": 2.0,
        "test_place": {"weight": -1.0, "options": {"step": 3.0}, "scores_from": "test_words"},
    }
    env = build(reward, num_envs=6, group_size=3, autoreset=autoreset)
    for _ in range(3):
        prompts = [question.prompt for question in env.simulator.questions]
        _, rewards, _, _, info = answer(env, "a", "bbb", "cc", "x y", "x", "long words")
        assert [
            (["a", "bbb", "cc"], [1.0, 1.0, 1.0], prompts[0]),
            (["x y", "x", "long words"], [2.0, 1.0, 2.0], prompts[3]),
        ] == SEEN
        SEEN.clear()
        assert terms_of(info)["test_place"] == [0.0, -6.0, -3.0, -3.0, 0.0, -6.0]
        assert rewards.tolist() == [2.0, -4.0, -1.0, 1.0, 2.0, -2.0]
        if not autoreset:
            env.reset()


def test_shortest_correct_pays_the_shortest_right_answer_of_its_group() -> None:
    env = build({"test_words": None, "brief": {"reward": "shortest_correct"}}, group_size=4)
    _, rewards, _, _, _ = answer(env, "one two", "one", "", "one two three")
    assert rewards.tolist() == pytest.approx([2.0, 1.2, 0.0, 3.0])


def test_answers_that_are_no_text_or_break_a_term_leave_the_others_alone() -> None:
    env = build({"test_breaks": None, "test_words": None, "test_place": None})
    _, rewards, _, _, info = answer(env, "break", "fine", b"\xff", "fine it is")
    assert [texts for texts, _, _ in SEEN] == [["break", "fine"], ["fine it is"]]
    assert rewards.tolist() == [1.0 + 1.0, 1.0 + 1.0, 0.0, 1.0 + 3.0]
    assert terms_of(info)["failed"] == [1.0, 0.0, 0.0, 0.0]
    assert terms_of(info)["malformed"] == [0.0, 0.0, 1.0, 0.0]


def test_part_of_a_group_cannot_be_compared() -> None:
    env = build({"test_words": None, "test_place": None})
    answer(env, "a", "b", "c", "d")
    env.reset(options={"reset_mask": torch.tensor([True, False, False, False])})
    with pytest.raises(ValueError, match="reset whole groups") as caught:
        answer(env, "a", "b", "c", "d")
    assert "\n" not in str(caught.value)
    env.reset(options={"reset_mask": torch.tensor([False, True, False, False])})
    answer(env, "a", "b", "c", "d")
    env.reset(options={"reset_mask": torch.tensor([True, True, False, False])})
    answer(env, "a", "b", "c", "d")
    assert [texts for texts, _, _ in SEEN[-1:]] == [["a", "b"]]
    for mask in ([True, False, False, False], [True, True, False, False]):
        env.reset(options={"reset_mask": torch.tensor(mask)})  # one row is now a question ahead
    with pytest.raises(ValueError, match="reset whole groups"):
        answer(env, "a", "b", "c", "d")


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        ({"a": {"reward": "shortest_corect"}}, "did you mean 'shortest_correct'"),
        ({"a": {"reward": "match", "wieght": 1}}, "no key 'wieght'; did you mean 'weight'"),
        ({"match": {"tasks": ["shapes"]}}, "no task 'shapes'; did you mean 'shapes_vqa'"),
        ({"dylr": {"options": {"max_penalti": 1}}, "match": None}, "did you mean 'max_penalty'"),
        ({"match": {"scores_from": "x"}}, "scores_from belongs to group rewards"),
        ({"match": "half"}, "give a weight, or a mapping"),
        ({"failed": {"reward": "match"}}, "choose another name"),
        ({"match": None, "dylr": {"scores_from": "mtch"}}, "must be one of"),
        ({}, "no reward term applies to task 'shapes_vqa'"),
        ({"test_lacks": None}, "cannot score questions of shapes_vqa .*no box"),
    ],
)
def test_terms_that_cannot_work_are_refused_in_one_sentence(reward: Any, message: str) -> None:
    with pytest.raises((ValueError, RegistryError), match=message) as caught:
        build(reward)
    assert "\n" not in str(caught.value)


MIXTURE = (
    "{right: {reward: match}, format_tags: {weight: 0.1}, "
    "brief: {reward: shortest_correct, scores_from: right}}"
)


def test_a_mixture_is_written_on_the_command_line_and_read_back() -> None:
    base = registry("recipes").get("vqa/shapes_grpo")()
    config = overlay(base, ["--env.simulator.reward", MIXTURE])
    assert config.env.simulator.options["reward"]["brief"]["scores_from"] == "right"
    assert to_yaml(from_yaml(to_yaml(config))) == to_yaml(config)
    one = overlay(base, ["--env.simulator.reward", "{match: {weight: 2}}"])
    assert one.env.simulator.options["reward"] == {"match": {"weight": 2}}
    named = overlay(base, ["--env.simulator.reward", "match"])
    assert named.env.simulator == base.env.simulator.replace(reward="match")
    with pytest.raises(ConfigError, match="is no YAML") as caught:
        overlay(base, ["--env.simulator.knobs", "{shapes_vqa: {"])
    assert "\n" not in str(caught.value)


def test_a_run_logs_every_term(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("transformers", reason="the extra vlm is not installed")
    changes = {
        "runs": tmp_path,
        "env.num-envs": 4,
        "env.group-size": 2,
        "env.simulator.reward": "{test_words: {}, test_place: {weight: 0.5}}",
        "policy.max-new-tokens": 4,
        "imitation": "none",
        "evaluation.episodes": 2,
        "total-env-steps": 4,
    }
    words = [str(word) for key, value in changes.items() for word in (f"--{key}", value)]
    assert cli.main(["train", "vqa/shapes_grpo", *words]) == 0
    folder = Path(capsys.readouterr().out.strip().splitlines()[-1])
    last = [line for line in read_jsonl(folder / "metrics.jsonl") if "iteration" in line][-1]
    parts = last["rollout/reward_test_words"] + last["rollout/reward_test_place"]
    assert last["rollout/reward_mean"] == pytest.approx(parts)
    assert last["rollout/reward_test_place"] > 0
