import json
from typing import Any

import pytest

from embodied_rl.envs import make_env
from embodied_rl.registry import registry

pytest.importorskip("PIL")

from embodied_rl.envs.vqa import load_task
from embodied_rl.envs.vqa.env import decode_text, reference_text
from embodied_rl.envs.vqa.forms import attempts, shaped

BRIEF = (
    "affordance_points",
    "digits",
    "jigsaw_full",
    "jigsaw_pair",
    "page_rerank",
    "pairwise_judge",
    "retrieval_embed",
    "shapes_ground",
    "shapes_vqa",
    "temporal_grounding",
    "timeseries_plot",
    "trance_like",
)
THOUGHTFUL = ("digits", "temporal_grounding", "timeseries_plot")


def questions(name: str, count: int = 8, **form: Any):
    task = shaped(load_task(name), **form)
    options = task.options()
    made = [task.make_question(options, seed=s, split="train", draw=False) for s in range(count)]
    return task, made


@pytest.mark.parametrize("name", BRIEF)
def test_a_brief_prompt_is_shorter_and_changes_nothing_else(name):
    _, full = questions(name)
    task, brief = questions(name, prompt="brief")
    for one, other in zip(full, brief, strict=True):
        assert len(other.prompt) < len(one.prompt) / 2
        assert other.answer == one.answer and other.data["key"] == one.data["key"]
        assert task.check(other, reference_text(other))


@pytest.mark.parametrize("name", THOUGHTFUL)
def test_the_answer_counts_and_not_what_was_thought(name):
    task, made = questions(name, form="think")
    for question in made:
        said = reference_text(question)
        assert said.startswith("<think>") and said.endswith(f"<answer>{question.answer}</answer>")
        assert task.check(question, said)
        assert task.check(question, f"<think>anything</think><answer>{question.answer}</answer>")
        assert not task.check(question, f"<think>{question.answer}</think><answer>no</answer>")
        assert not task.check(question, said + "<answer>no</answer>")
        assert not task.check(question, f"<think>{question.answer}")
        assert registry("rewards").get("accuracy_and_format")(said, question) >= 0.1


def test_the_last_of_two_attempts_counts_and_a_third_spoils_them():
    task, made = questions("shapes_vqa", 40, form="reflect")
    starts = []
    for question in made:
        said = reference_text(question)
        first, last = attempts(said)
        assert last == question.answer and task.check(question, said)
        assert ("yes" if first == last else "no") in said
        assert task.check(question, f"<answer>no idea</answer><answer>{last}</answer>")
        assert not task.check(question, f"<answer>{last}</answer><answer>no idea</answer>")
        assert task.check(question, f"<answer>{last}</answer>")
        assert not task.check(question, f"{said}<answer>{last}</answer>")
        assert not task.check(question, "") and not task.check(question, last)
        starts.append(first == last)
    assert 0.3 < sum(starts) / len(starts) < 0.95  # half, and the guesses that happen to be right


def test_the_environment_asks_and_teaches_in_the_form_that_was_chosen():
    env: Any = make_env(
        "vqa",
        tasks="digits",
        num_envs=4,
        seed=0,
        prompt="brief",
        answer_form="think",
        reward="accuracy_and_format",
    )
    obs, _ = env.reset()
    chat = decode_text(obs["chat"][0].numpy())
    assert chat is not None
    assert json.loads(chat)[0]["content"][-1]["text"] == "digit?"
    _, rewards, _, _, info = env.step(env.simulator.reference_answers())
    assert rewards.tolist() == [1.0] * 4 and bool(info["success"].all())


def test_what_a_task_does_not_have_is_refused_with_a_way_out():
    with pytest.raises(ValueError, match="prompt='full'"):
        questions("cad_code", prompt="brief")
    with pytest.raises(ValueError, match="another answer_form"):
        questions("shapes_vqa", form="think")
    forms: tuple[dict[str, Any], ...] = ({"prompt": "short"}, {"form": "loud"})
    for form in forms:
        with pytest.raises(ValueError, match="give one of full, brief and one of plain, think"):
            questions("digits", **form)
    with pytest.raises(ValueError, match="leave them out for a file"):
        make_env("vqa", file="some.jsonl", num_envs=1, seed=0, prompt="brief")


def test_few_shots_are_few_and_the_same_number_of_every_digit():
    task = load_task("digits")
    few = [task.make_question(task.options(shots=2), seed=s, split="train") for s in range(60)]
    assert len({question.data["key"] for question in few}) == 20
    assert sorted(q.answer for q in few[:20]) == sorted("0123456789" * 2)
    many = [task.make_question(task.options(shots=0), seed=s, split="train") for s in range(60)]
    assert len({question.data["key"] for question in many}) == 60
    turned = [task.make_question(task.options(turn=20), seed=s, split="heldout") for s in range(40)]
    assert task.solve is not None
    assert all(task.solve(question) == question.answer for question in turned)
