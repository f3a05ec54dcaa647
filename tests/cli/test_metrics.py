"""Metrics on disk survive crashes and resuming; progress is a bar or a few plain lines."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from embodied_rl import metrics as module
from embodied_rl.metrics import MetricsLogger, Progress, append_jsonl, read_jsonl


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(module.time, "monotonic", lambda: self.now)


def logged(folder: Path, iterations: range, *, truncate: int | None = None) -> MetricsLogger:
    logger = MetricsLogger(folder, stream=io.StringIO())
    if truncate is not None:
        logger.truncate(truncate)
    for i in iterations:
        logger.log(i, {"rollout/success_rate": i / 10, "time/env_steps": 100.0 * i})
    logger.close()
    return logger


def scalars(folder: Path, tag: str) -> list[tuple[int, float]]:
    board = EventAccumulator(str(folder / "tensorboard"))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars(tag)]


def test_every_iteration_is_a_line_and_a_tensorboard_point(tmp_path: Path) -> None:
    logger = logged(tmp_path, range(1, 4))
    assert [record["iteration"] for record in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    points = scalars(tmp_path, "rollout/success_rate")
    assert [step for step, _ in points] == [100, 200, 300]
    assert [value for _, value in points] == pytest.approx([0.1, 0.2, 0.3])
    assert logger.last["rollout/success_rate"] == 0.3


def test_lines_stay_valid_json_when_a_metric_is_not_finite(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, stream=io.StringIO())
    logger.log(1, {"train/loss": math.nan, "train/ratio": math.inf, "train/kl": 0.5})
    logger.close()

    def refuse(name: str) -> Any:
        raise AssertionError(name)

    line = (tmp_path / "metrics.jsonl").read_text()
    record = json.loads(line, parse_constant=refuse)
    assert record == {"iteration": 1, "train/loss": None, "train/ratio": None, "train/kl": 0.5}


def test_a_line_is_on_disk_before_the_next_one(tmp_path: Path) -> None:
    logger = MetricsLogger(tmp_path, stream=io.StringIO())
    for i in (1, 2):
        logger.log(i, {"a": 1.0})
        assert len(read_jsonl(tmp_path / "metrics.jsonl")) == i
    logger.close()


def test_resuming_drops_what_came_after(tmp_path: Path) -> None:
    MetricsLogger(tmp_path).scalar("sft/loss", 0.3, step=5000)
    logged(tmp_path, range(1, 6))
    resumed = logged(tmp_path, range(4, 8), truncate=3)
    records = read_jsonl(tmp_path / "metrics.jsonl")
    assert [r["iteration"] for r in records if "iteration" in r] == [1, 2, 3, 4, 5, 6, 7]
    assert [r["sft/loss"] for r in records if "step" in r] == [0.3]
    assert resumed.last["time/env_steps"] == 700
    steps = [step for step, _ in scalars(tmp_path, "rollout/success_rate")]
    assert steps == [100, 200, 300, 400, 500, 600, 700]


def test_resuming_remembers_the_last_metrics_kept(tmp_path: Path) -> None:
    logged(tmp_path, range(1, 6))
    assert logged(tmp_path, range(0), truncate=2).last["rollout/success_rate"] == 0.2


@pytest.mark.parametrize("cut", [1, 10, 30])
def test_a_last_line_cut_short_is_ignored_and_replaced(cut: int, tmp_path: Path) -> None:
    logged(tmp_path, range(1, 4))
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    kept = [record["iteration"] for record in read_jsonl(path)]
    assert kept == ([1, 2, 3] if cut == 1 else [1, 2])
    append_jsonl(path, {"iteration": 9})
    assert [record["iteration"] for record in read_jsonl(path)] == [*kept, 9]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"iteration": 1}\n{"itera\n{"iteration": 3}\n')
    with pytest.raises(ValueError, match="line 2 is no JSON object"):
        read_jsonl(path)


def test_no_file_means_no_records(tmp_path: Path) -> None:
    assert read_jsonl(tmp_path / "metrics.jsonl") == []


def test_without_a_terminal_lines_are_rare_and_the_last_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(stream=stream)
    for done in range(0, 101):
        progress.update("evaluation", done, 100, "success 50%")
        clock.now += 0.2
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[0] == "evaluation   25%  25/100  success 50%  0:15 left"
    assert lines[-1] == "evaluation  100%  100/100  success 50%"


def test_time_left_after_resuming_counts_only_what_was_done_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    progress = Progress(stream=stream)
    progress.update("training", 900_000, 1_000_000)
    clock.now += 10
    progress.update("training", 910_000, 1_000_000)
    assert stream.getvalue() == "training   91%  910k/1M  1:30 left\n"


def test_training_line_shows_success_return_and_speed(tmp_path: Path) -> None:
    stream = io.StringIO()
    logger = MetricsLogger(tmp_path, total_env_steps=1000, stream=stream)
    logger.log(
        1,
        {
            "rollout/success_rate": 0.625,
            "rollout/return": 0.71,
            "time/steps_per_second": 15_300.0,
            "time/env_steps": 1200.0,
        },
    )
    logger.close()
    assert stream.getvalue() == "training  100%  1k/1k  success 62%  return 0.71  15.3k steps/s\n"


def test_on_a_terminal_several_bars_are_drawn_and_left(tmp_path: Path) -> None:
    stream = Terminal()
    logger = MetricsLogger(tmp_path, total_env_steps=200, stream=stream)
    logger.log(1, {"rollout/success_rate": 0.5, "time/env_steps": 100.0})
    with logger.progress("evaluation", total=2) as advance:
        advance(1, "one")
        advance(1, "two")
    logger.log(2, {"rollout/success_rate": 0.75, "time/env_steps": 200.0})
    logger.close()
    text = stream.getvalue()
    assert "training" in text
    assert "success 75%" in text
    assert "evaluation" in text
    assert "two" in text


def test_progress_that_failed_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = Clock(monkeypatch), io.StringIO()
    logger = MetricsLogger(tmp_path, stream=stream)
    with pytest.raises(KeyError), logger.progress("collect", total=9) as advance:
        advance(1, "")
        raise KeyError
    clock.now += 1000
    with logger.progress("collect", total=2) as advance:
        clock.now += 10
        advance(1, "")
    logger.close()
    assert stream.getvalue() == "collect   50%  1/2  0:10 left\n"
