"""A run folder becomes pictures and one self-contained page; nothing found is one sentence."""

from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.image import imread

from embodied_rl.metrics import append_jsonl
from embodied_rl.report import (
    ReportError,
    average_curves,
    curve,
    plot_run,
    plot_runs,
    trailing_mean,
    write_report,
)

PNG = b"\x89PNG"


def evaluation(label: str, mode: str, rate: float, **more: Any) -> dict[str, Any]:
    return {
        "label": label,
        "mode": mode,
        "success_rate": rate,
        "ci_low": max(rate - 0.05, 0.0),
        "ci_high": min(rate + 0.05, 1.0),
        "episodes": 200,
        "env_steps": 400_000 if label == "rl" else 0,
        "per_task": {"push-v3": {"success_rate": rate, "episodes": 200}},
        "manifest_sha256": "ab" * 32,
        "fingerprint": "cd" * 32,
    } | more


def make_run(folder: Path, *, seed: int = 0, name: str = "metaworld/push") -> Path:
    folder.mkdir(parents=True)
    for step in (50, 100):
        append_jsonl(folder / "metrics.jsonl", {"step": step, "sft/loss": 1.0 / step})
    for i in range(1, 31):
        record = {"iteration": i, "time/env_steps": 100.0 * i, "rollout/success_rate": i / 30}
        record["rollout/return"] = float("nan") if i == 3 else seed + i / 30
        append_jsonl(folder / "metrics.jsonl", record)
    for label, rate in (("sft", 0.4), ("rl", 0.96)):
        for mode in ("greedy", "sampled"):
            append_jsonl(folder / "evaluations.jsonl", evaluation(label, mode, rate))
    (folder / "config.yaml").write_text(
        f"name: {name}\nseed: {seed}\n# <script>alert(1)</script>\n"
    )
    return folder


class Page(HTMLParser):
    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.cells: list[str] = []
        self.text = ""
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "td":
            self.cells.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.tags and self.tags[-1] == "td":
            self.cells[-1] += data


def test_page_needs_no_other_file_and_shows_both_policies(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "videos").mkdir()
    (run / "videos" / "policy.mp4").write_bytes(b"film")
    page = Page(write_report(run))
    assert all(source.startswith("data:") for source in page.sources)
    embedded = [base64.b64decode(source.partition(",")[2]) for source in page.sources]
    assert embedded == [(run / "curves.png").read_bytes(), b"film"]
    assert page.cells[:4] == ["imitation", "greedy", "40.0%", "35.0% to 45.0%"]
    assert page.cells[-7:-3] == ["after RL", "sampled", "96.0%", "91.0% to 100.0%"]


def test_what_a_config_says_is_shown_and_not_run(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_tasks_have_a_table_when_there_are_several(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    assert "per task" not in Page(write_report(run)).text
    tasks = {"push-v3": {"success_rate": 0.9}, "reach-v3": {"success_rate": 0.25}}
    append_jsonl(run / "evaluations.jsonl", evaluation("rl", "greedy", 0.575, per_task=tasks))
    page = Page(write_report(run))
    assert "per task" in page.text
    assert "25.0%" in page.cells


def test_scores_of_another_simulator_are_left_out_and_named(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    newer = evaluation("rl", "greedy", 0.25, fingerprint="ef" * 32)
    append_jsonl(run / "evaluations.jsonl", newer)
    page = Page(write_report(run))
    assert "25.0%" in page.cells and "40.0%" not in page.cells and "96.0%" not in page.cells
    assert page.text.count("evaluated in another simulator") == 4
    other = evaluation("sft", "greedy", 0.5, manifest_sha256="12" * 32)
    append_jsonl(run / "evaluations.jsonl", other)
    assert "50.0%" in Page(write_report(run)).cells


def test_only_the_last_evaluation_of_a_kind_is_in_the_table(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    append_jsonl(run / "evaluations.jsonl", evaluation("rl", "greedy", 0.5))
    cells = Page(write_report(run)).cells
    assert cells.count("greedy") == 2
    assert "50.0%" in cells


def test_a_run_that_was_not_evaluated_says_so(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "evaluations.jsonl").unlink()
    assert "has not been evaluated yet" in Page(write_report(run)).text


def test_a_run_with_evaluations_alone_has_a_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    assert plot_run(run).read_bytes().startswith(PNG)


def test_curves_have_a_panel_per_metric_that_was_logged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    height, width, _ = imread(plot_run(run)).shape
    assert width > 3 * height
    for i in range(1, 9):
        record = {"iteration": 30 + i, "time/env_steps": 100.0 * (30 + i), "train/approx_kl": 0.1}
        append_jsonl(run / "metrics.jsonl", record)
    assert imread(plot_run(run)).shape[0] == pytest.approx(2 * height, abs=2)


@pytest.mark.parametrize("function", [write_report, plot_run])
def test_a_folder_without_results_is_one_sentence(function: Any, tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="neither metrics") as caught:
        function(tmp_path / "typo")
    assert "\n" not in str(caught.value)


def test_seeds_of_one_recipe_become_one_line(tmp_path: Path, monkeypatch: Any) -> None:
    drawn: list[tuple[str, int]] = []

    def draw(axes: Any, name: str, curves: Any, colour: str) -> None:
        axes.plot([0, 1], label=name, color=colour)
        drawn.append((name, len(curves)))

    monkeypatch.setattr("embodied_rl.report._draw_group", draw)
    runs = [make_run(tmp_path / f"a{seed}", seed=seed, name="a") for seed in range(3)]
    runs.append(make_run(tmp_path / "b", name="b"))
    plot_runs(runs, output=tmp_path / "c.png")
    assert drawn == [("a", 3), ("b", 1)]


def test_plot_of_runs_is_a_picture_where_asked(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / str(seed), seed=seed) for seed in range(2)]
    path = plot_runs(runs, output=tmp_path / "deep" / "c.png", metric="rollout/return")
    assert path.read_bytes().startswith(PNG)
    with pytest.raises(ReportError, match=r"no metric 'rollout/sucess'.*rollout/return"):
        plot_runs(runs, output=tmp_path / "d.png", metric="rollout/sucess")


def test_average_covers_what_all_runs_cover() -> None:
    lines = [
        (np.array([0.0, 10.0]), np.array([0.0, 10.0])),
        (np.array([2.0, 6.0]), np.full(2, 4.0)),
    ]
    x, mean, low, high = average_curves(lines, num_points=5)
    assert x.tolist() == [2, 3, 4, 5, 6]
    assert mean.tolist() == [3, 3.5, 4, 4.5, 5]
    assert (low <= mean).all()
    assert (mean <= high).all()
    assert (low[0], high[0]) == (2, 4)


def test_curve_leaves_out_what_is_missing_or_not_finite(tmp_path: Path) -> None:
    records = [
        {"iteration": 1, "time/env_steps": 10.0, "a": 1.0},
        {"iteration": 2, "time/env_steps": 20.0, "a": None},
        {"iteration": 3, "time/env_steps": 30.0},
        {"iteration": 4, "time/env_steps": 40.0, "a": 4.0},
    ]
    x, y = curve(records, "a")
    assert (x.tolist(), y.tolist()) == ([10, 40], [1, 4])


def test_trailing_mean_looks_back_only() -> None:
    values = np.array([1.0, 3.0, 5.0, 7.0])
    assert trailing_mean(values, 1).tolist() == values.tolist()
    assert trailing_mean(values, 2).tolist() == [1, 2, 4, 6]
    assert trailing_mean(values, 99).tolist() == [1, 2, 3, 4]


def test_page_is_small_enough_to_send(tmp_path: Path) -> None:
    page = write_report(make_run(tmp_path / "run"))
    assert page.stat().st_size < 1_000_000
    assert re.search(r"<title>metaworld/push, seed 0</title>", page.read_text())
