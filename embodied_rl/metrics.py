"""What a run says while it runs: ``metrics.jsonl``, TensorBoard scalars and progress.

``metrics.jsonl`` has one JSON object per line: ``iteration`` and the metrics of one training
iteration (names under ``rollout/``, ``train/``, ``eval/``, ``time/``), or ``step`` and one value
from outside the loop. NaN and infinity are written as null, so that every line is valid JSON. Each
line is flushed; a line cut short by a crash is ignored when reading and dropped when resuming.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO

METRICS_FILE = "metrics.jsonl"
ENV_STEPS = "time/env_steps"


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; empty if there is no such file.

    Raises:
        ValueError: a line other than the last one is not a JSON object.
    """
    path = Path(path)
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    records = []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise TypeError
        except (ValueError, TypeError) as error:
            if number == len(lines):
                break  # cut short while it was written
            raise ValueError(f"{path} is damaged: line {number} is no JSON object") from error
        records.append(record)
    return records


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Add one object to a file of JSON lines; what a crash left of a last line is dropped."""
    data = (json.dumps(_finite(record), allow_nan=False) + "\n").encode()
    with Path(path).open("ab+") as file:
        if size := file.tell():
            file.seek(size - 1)
            if file.read(1) != b"\n":
                _mend_last_line(file)
        file.write(data)


def _mend_last_line(file: IO[bytes]) -> None:
    """End the last line if it is whole, else remove it; ``file`` is open for reading and adding."""
    file.seek(0)
    whole, newline, last = file.read().rpartition(b"\n")
    try:
        json.loads(last)
    except ValueError:
        file.truncate(len(whole + newline))
    else:
        file.write(b"\n")


def _finite(value: Any) -> Any:
    """``value`` with numbers that JSON does not have replaced by None."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class MetricsLogger:
    """Writes the metrics of a run and shows how far it is.

    Args:
        folder: run folder; gets ``metrics.jsonl`` and ``tensorboard/``.
        total_env_steps: end of the progress bar.
        stream: where progress is shown; standard error by default, which leaves standard output to
            results.
    """

    def __init__(
        self, folder: str | Path, *, total_env_steps: int = 0, stream: TextIO | None = None
    ) -> None:
        self.path = Path(folder) / METRICS_FILE
        self.total_env_steps = total_env_steps
        self.last: dict[str, float] = {}
        self._bars = Progress(stream=stream)
        self._board: Any = None
        self._purge_step: int | None = None

    def log(self, iteration: int, metrics: Mapping[str, float]) -> None:
        """Record one iteration.

        Args:
            iteration: number of the iteration, ascending.
            metrics: values by name; ``time/env_steps`` is the horizontal axis.
        """
        self.last = {name: float(value) for name, value in metrics.items()}
        append_jsonl(self.path, {"iteration": iteration} | self.last)
        env_steps = int(self.last.get(ENV_STEPS, iteration))
        for name, value in self.last.items():
            self._tensorboard().add_scalar(name, value, env_steps)
        if self.total_env_steps:
            self._bars.update(
                "training",
                min(env_steps, self.total_env_steps),
                self.total_env_steps,
                _figures(self.last),
            )

    def scalar(self, name: str, value: float, *, step: int) -> None:
        """Record one value from outside the loop, e.g. the loss of an imitation step."""
        append_jsonl(self.path, {"step": step, name: float(value)})
        self._tensorboard().add_scalar(name, value, step)

    @contextmanager
    def progress(self, label: str, *, total: int) -> Iterator[Callable[[int, str], None]]:
        """A bar for ``total`` pieces of work: call what it yields with (pieces done now, text)."""
        done = 0

        def advance(count: int, text: str = "") -> None:
            nonlocal done
            done += count
            self._bars.update(label, done, total, text)

        self._bars.update(label, 0, total, "")
        try:
            yield advance
        finally:
            self._bars.finish(label)

    def truncate(self, iteration: int) -> None:
        """Forget iterations after ``iteration``; for a run that resumes from there."""
        records = [r for r in read_jsonl(self.path) if r.get("iteration", 0) <= iteration]
        text = "".join(json.dumps(record) + "\n" for record in records)
        unfinished = self.path.with_name(f".{self.path.name}.unfinished")
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.path)
        loop = [record for record in records if "iteration" in record]
        if loop:
            names = loop[-1].keys() - {"iteration"}
            self.last = {n: math.nan if loop[-1][n] is None else loop[-1][n] for n in names}
            self._purge_step = int(self.last.get(ENV_STEPS, iteration)) + 1

    def close(self) -> None:
        """Flush everything and take the bars off the screen."""
        self._bars.close()
        if self._board is not None:
            self._board.close()

    def _tensorboard(self) -> Any:
        if self._board is None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(
                self.path.parent / "tensorboard", purge_step=self._purge_step
            )
        return self._board


def _figures(metrics: Mapping[str, float]) -> str:
    """The few numbers worth watching, as ``success 62 %  return 0.71  15.3k steps/s``."""
    parts = []
    if "rollout/success_rate" in metrics:
        parts.append(f"success {metrics['rollout/success_rate']:.0%}")
    if "rollout/return" in metrics:
        parts.append(f"return {metrics['rollout/return']:.3g}")
    if "time/steps_per_second" in metrics:
        parts.append(f"{_short(metrics['time/steps_per_second'])} steps/s")
    return "  ".join(parts)


def _short(number: float) -> str:
    """``950``, ``15.3k``, ``2.10M``."""
    for size, suffix in ((1e6, "M"), (1e3, "k")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"


# --- progress --------------------------------------------------------------------------------


@dataclass
class _Bar:
    """What is known of one piece of work."""

    started: float
    first: int
    printed: float
    task: Any = None


class Progress:
    """Bars on a terminal; elsewhere single lines, the last one of each bar included.

    Args:
        stream: standard error by default.
        interval: seconds between lines where there is no terminal.
    """

    def __init__(self, *, stream: TextIO | None = None, interval: float = 5.0) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval
        self._bars: dict[str, _Bar] = {}
        self._screen: Any = None

    def update(self, label: str, done: int, total: int, text: str = "") -> None:
        """Show that ``done`` of ``total`` pieces of the work called ``label`` are done."""
        now = time.monotonic()
        bar = self._bars.get(label)
        if bar is None:
            bar = self._bars[label] = _Bar(started=now, first=done, printed=now)
        if self._stream.isatty():
            self._draw(bar, label, done, total, text)
        elif done >= total or now - bar.printed >= self._interval:
            bar.printed = now
            left = _time_left(now - bar.started, done - bar.first, total - done)
            counts = f"{_short(done)}/{_short(total)}"
            parts = (f"{label}  {done / max(total, 1):4.0%}", counts, text, left)
            print("  ".join(filter(None, parts)), file=self._stream, flush=True)
        if done >= total:
            self.finish(label)

    def finish(self, label: str) -> None:
        """Forget the work called ``label``; its bar stays on the screen as it is."""
        bar = self._bars.pop(label, None)
        if bar is not None and bar.task is not None:
            self._screen.stop_task(bar.task)

    def close(self) -> None:
        """Stop drawing."""
        if self._screen is not None:
            self._screen.stop()
            self._screen = None
        self._bars.clear()

    def _draw(self, bar: _Bar, label: str, done: int, total: int, text: str) -> None:
        if self._screen is None:
            self._screen = _make_screen(self._stream)
            self._screen.start()
        if bar.task is None:
            bar.task = self._screen.add_task(label, total=total, text=text)
        self._screen.update(bar.task, completed=done, total=total, text=text)


def _make_screen(stream: TextIO) -> Any:
    from rich import progress
    from rich.console import Console

    return progress.Progress(
        progress.TextColumn("{task.description}"),
        progress.BarColumn(bar_width=24),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[text]}"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left"),
        progress.TimeRemainingColumn(compact=True),
        console=Console(file=stream),
        refresh_per_second=4,
    )


def _time_left(seconds: float, done: int, left: int) -> str:
    """``0:42 left`` at the present speed; empty while the speed is unknown or nothing is left."""
    if done <= 0 or left <= 0:
        return ""
    remaining = round(seconds * left / done)
    return f"{remaining // 60}:{remaining % 60:02d} left"
