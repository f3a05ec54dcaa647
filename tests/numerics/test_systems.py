import math
from argparse import Namespace
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import systems
from benchmarks.systems import Case, as_digit, as_values, interval, judge, verdict_of
from benchmarks.systems_catalogue import METRICS, SAMPLED, SYSTEMS, Rule
from embodied_rl.config import overlay
from embodied_rl.configs import builtin_recipes
from embodied_rl.envs import make_env
from embodied_rl.envs.vqa.env import reference_text
from embodied_rl.types import PolicyOutput, Question


def figures_of(**variants) -> systems.Figures:
    """Of values 0 or 1 of the metric ``m``, by variant and seed."""
    records = [
        {"variant": name, "seed": seed, "values": {"": {"m": "".join(map(as_digit, values))}}}
        for name, runs in variants.items()
        for seed, values in runs.items()
    ]
    return systems.Figures(SYSTEMS[0], records)


def test_values_survive_being_written_as_digits():
    values = [0.0, 1.0, 0.5, 1 / 3]
    digits = "".join(map(as_digit, [*values, math.nan]))
    assert digits[:2] == "0z" and digits[-1] == "-" and len(digits) == 5
    assert np.allclose(as_values(digits), values, atol=1 / 70)


def test_the_interval_covers_the_truth_where_questions_vary():
    hits, rng = 0, np.random.default_rng(1)
    for _ in range(60):
        table = rng.random((5, 100)) < 0.3
        _, low, high = interval(table.astype(float), resamples=300)
        hits += low <= 0.3 <= high
    assert hits >= 54  # 95 % of 60 less three standard deviations; seeds are equal here


def test_the_interval_is_as_wide_as_the_seeds_are_apart():
    table = np.repeat([[0.2], [0.5], [0.8]], 1000, axis=1)
    mean, low, high = interval(table)
    assert mean == pytest.approx(0.5) and low < 0.3 and high > 0.7
    same = np.tile(np.arange(1000) % 2, (3, 1)).astype(float)
    _, low, high = interval(same)
    assert 0.02 < high - 0.5 < 0.05  # 1.96 * 0.5 / sqrt(1000) = 0.031


def test_rules_pass_fail_or_leave_it_open():
    sure, half = dict.fromkeys(range(3), [1.0] * 50), dict.fromkeys(range(3), [0.0, 1.0] * 25)
    figures = figures_of(a=sure, b=half, d={0: half[0], 1: half[1]})
    assert judge(Rule(says="", of="a:m", above=0.9), figures)[0] == "pass"
    assert judge(Rule(says="", of="b:m", above=0.9), figures)[0] == "fail"
    assert judge(Rule(says="", of="b:m", above=0.5), figures)[0] == "null"
    assert judge(Rule(says="", of="a:m", minus="b:m"), figures)[0] == "pass"
    assert judge(Rule(says="", of="b:m", minus="a:m"), figures)[0] == "fail"
    assert judge(Rule(says="", of="a:m", minus="b:m", times=2), figures)[0] == "null"
    assert judge(Rule(says="", of="a:m", minus="c:m"), figures)[0] == "not run"
    assert judge(Rule(says="", of="a:m", minus="d:m"), figures)[0] == "not run"  # two seeds
    assert judge(Rule(says="x", of="b:m", report=True), figures) == (
        "reported",
        judge(Rule(says="x", of="b:m"), figures)[1].partition(" (above")[0],
    )


def test_a_difference_is_of_seeds_that_both_ran_with():
    seeds = (2, 3, 5)
    few = {seed: [1.0] * 50 for seed in seeds} | {11: [0.0] * 50}
    more = {seed: [0.0 if seed in seeds else 1.0] * 50 for seed in (0, 1, *seeds, 9, 11)}
    figures = figures_of(a=few, b=more)
    rule = Rule(says="x", of="a:m", minus="b:m", above=0.5)
    assert figures.seeds(rule) == [2, 3, 5]  # from 10 on seeds are for tuning
    assert judge(rule, figures) == ("pass", "x 1.000 [1.000, 1.000] (above 0.5: pass)")
    assert figures.seeds(Rule(says="", of="b:m")) == [0, 1, 2, 3, 5, 9]


def test_the_worst_rule_decides_and_what_is_only_reported_does_not():
    assert verdict_of(["pass", "reported", "pass"]) == "pass"
    assert verdict_of(["pass", "null"]) == "null"
    assert verdict_of(["null", "fail", "not run"]) == "fail"
    assert verdict_of(["pass", "not run"]) == "not run"


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.recipe)
def test_every_system_is_made_of_what_there_is(system):
    recipes = builtin_recipes()
    recipe = recipes[system.recipe]
    assert f"System {system.number}, " in (recipe.__doc__ or "")
    assert set(system.metrics) <= set(METRICS)
    for variant in system.variants:
        for stage in variant.stages:
            config = overlay(recipe(), stage)
            assert config.evaluation.env_options["split"] == "heldout"
        assert overlay(recipe(), variant.stages[0]).total_env_steps == 0
        case = Case(system, variant, 0)
        for options in case.views.values():
            asked = {
                key: value for key, value in options.items() if key not in ("blank", "sampled")
            }
            plain = {"reward": "correct", "reward_options": {}}  # what it needs may be missing
            simulator = case.configs[-1].env.simulator.replace(**asked, **plain)
            env: Any = make_env("vqa", num_envs=8, seed=0, **simulator.options)
            env.reset()
            policy = case.configs[-1].policy.resolved()
            for said in map(reference_text, env.simulator.questions):
                assert set(said) <= set(policy["alphabet"]), said
                assert len(said) < policy["max_new_tokens"], said
    places = {
        f"{variant.name}:{metric}@{view}".removesuffix("@")
        for variant in system.variants
        for metric in (*system.metrics, "tokens")
        for view in ("", *variant.views)
    }
    for rule in system.rules:
        assert rule.of in places and (not rule.minus or rule.minus in places)


def test_attempts_and_pages_are_told_apart():
    question = Question(
        task="shapes_vqa", prompt="?", answer="red", data={"positives": [2], "reward": "match"}
    )
    better = "<answer>blue</answer> no <answer>red</answer>"
    worse = "<answer>red</answer> no <answer>blue</answer>"
    names = ("right", "first", "to_right", "to_wrong")
    assert [METRICS[name](question, better, "reflect") for name in names] == [1, 0, 1, 0]
    assert [METRICS[name](question, worse, "reflect") for name in names] == [0, 1, 0, 1]
    assert METRICS["recall@1"](question, "2, 1", "plain") == 1.0
    assert METRICS["recall@1"](question, "1, 2", "plain") == 0.0
    assert METRICS["recall@1"](question, "", "plain") == 0.0
    captions = ("a red ring top left", "a blue ring top left")
    asked = Question(
        task="retrieval_embed",
        prompt="?",
        answer=captions[0],
        data={"candidates": captions, "positive": captions[0]},
    )
    assert METRICS["found"](asked, "a red ring", "plain") == 1.0
    assert METRICS["found"](asked, "a blue ring", "plain") == 0.0
    assert METRICS["found"](asked, "", "plain") == 0.0
    assert math.isnan(METRICS["shapes_vqa"](asked, "red", "plain"))
    assert METRICS["shapes_vqa"](question, "red", "plain") == 1.0


def test_every_rule_names_what_its_system_measures():
    for system in SYSTEMS:
        views = {variant.name: {"", *variant.views} for variant in system.variants}
        for place in (place for rule in system.rules for place in (rule.of, rule.minus) if place):
            variant, metric, view = systems.split_place(place)
            assert metric in (*system.metrics, "tokens"), (system.number, place)
            assert view in views[variant], (system.number, place)


def test_the_page_has_a_row_per_system_and_then_the_tables_of_others(tmp_path, monkeypatch):
    monkeypatch.setattr(systems, "PAGE", tmp_path / "systems.md")
    monkeypatch.setattr(systems, "FRAGMENTS", tmp_path)
    (tmp_path / "more.md").write_text("## More\n\nWords.\n")
    systems.write_page([])
    lines = systems.PAGE.read_text().splitlines()
    rows = [line for line in lines if line[:3].strip("| ").isdigit()]
    numbers = [int(line.split("|")[1]) for line in rows]
    assert numbers == sorted(system.number for system in SYSTEMS)
    assert all(line.count("|") == 8 for line in rows)
    assert lines[-3:] == ["## More", "", "Words."] and "not run" in rows[0]


def test_a_view_may_be_drawn_and_not_greedy(tmp_path, monkeypatch):
    said = []

    class Parrot:
        def sample(self, obs, *, deterministic, generator):
            said.append((deterministic, torch.rand(1, generator=generator).item()))
            actions = torch.zeros(len(obs["chat"]), 8, dtype=torch.uint8)
            return PolicyOutput(actions=actions, values=torch.zeros(len(actions)))

    case = Case(replace(SYSTEMS[0], questions=4), SYSTEMS[0].variants[0], 3)
    monkeypatch.setattr(systems, "load_policy", lambda folder: (Parrot(), case.configs[0], {}))
    options = dict(case.views[""])
    greedy, drawn = (systems.ask(case, "", {**options, **more}) for more in ({}, SAMPLED))
    assert [deterministic for deterministic, _ in said] == [True, False]
    assert greedy == drawn == ({"right": "0000", "place": "0000"}, 1.0)


def test_a_system_may_ask_more_questions_and_the_page_says_so():
    system = SYSTEMS[0]
    more = replace(system, questions=1000)
    cases = [Case(one, one.variants[0], 3) for one in (system, more)]
    assert cases[0].settings != cases[1].settings
    rows = [systems.row(one, []) for one in (system, more)]
    assert ["1000 questions." in row for row in rows] == [False, True]


def test_a_case_is_run_once_and_shares_its_first_stages(tmp_path, monkeypatch):
    trained = []

    def train(config, *, folder, final):
        trained.append((config.total_env_steps, bool(config.init_from)))

    answers = ({"right": "z0"}, 2.0)
    monkeypatch.setattr(systems, "train", train)
    monkeypatch.setattr(systems, "ask", lambda case, folder, options: answers)
    system = replace(SYSTEMS[0], variants=SYSTEMS[0].variants[2:4])
    options = Namespace(seeds=[3], variants=[], runs=tmp_path, records=tmp_path / "r.jsonl")
    records = []
    systems.run_system(system, options, records)
    assert [r["variant"] for r in records] == ["sft 2x2", "rl 2x2"]
    assert trained == [(0, False), (400 * 256, True)]
    systems.run_system(system, options, list(records))
    assert len(trained) == 2 and len(options.records.read_text().splitlines()) == 2
    other = replace(system, metrics=("right",))
    systems.run_system(other, options, list(records))
    assert len(trained) == 2 and len(options.records.read_text().splitlines()) == 4
    figures = systems.Figures(system, systems.current(system, records))
    assert figures.table("rl 2x2:right", [3]).tolist() == [[1.0, 0.0]]
    assert figures.table("rl 2x2:tokens@blank", [3]).tolist() == [[2.0]]
    assert figures.seeds(Rule(says="", of="rl 2x1:right")) == []
