"""Tables of docs/results.md, from records made up here."""

import pytest

pytest.importorskip("PIL.Image", reason="the extra vqa is not installed")

from benchmarks import results


def record(seed, before, after):
    def evaluation(label, successes, rates=(0.5, 0.5)):
        tasks = {name: {"success_rate": r} for name, r in zip(("go", "say"), rates, strict=True)}
        return {"label": label, "mode": "greedy", "successes": successes, "per_task": tasks}

    grey = evaluation(results.GREY, "", rates=(0.9, 0.1))
    return {"seed": seed, "evaluations": [evaluation("sft", before), evaluation("rl", after), grey]}


def test_tasks_take_turns_in_a_manifest_and_differences_are_paired(monkeypatch):
    runs = [record(0, "10101010", "11101110"), record(1, "00101010", "01111111")]
    assert results.successes(runs, "sft", "greedy", "go").tolist() == [[1, 1, 1, 1], [0, 1, 1, 1]]
    assert results.successes(runs, "rl", "greedy", "say").tolist() == [[1, 0, 1, 0], [1, 1, 1, 1]]
    monkeypatch.setattr(results, "by_command", lambda group: {"train": runs})
    monkeypatch.setattr(results, "MODES", ("greedy",))
    rows = [line.split(" | ") for line in results.paired_table("mixed").splitlines()[2:]]
    assert [row[2] for row in rows] == ["100 -> 100, 75 -> 75", "0 -> 50, 0 -> 100"]
    assert rows[0][3].startswith("**+0** [") and rows[1][3].startswith("**+75** [")
    assert [row[4] for row in rows] == ["90, 90", "10, 10"]
