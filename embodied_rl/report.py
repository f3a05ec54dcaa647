"""Pictures and a page from run folders: ``curves.png``, ``report.html``, curves over seeds.

Reads what a run leaves: ``metrics.jsonl`` (one object per iteration), ``evaluations.jsonl`` (one
object per evaluation), ``config.yaml`` and ``videos/*.mp4``. The page holds all of it in one file.
"""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from embodied_rl import __version__
from embodied_rl.metrics import ENV_STEPS, METRICS_FILE, read_jsonl
from embodied_rl.statistics import bootstrap_interval

Record = dict[str, Any]
Curve = tuple[np.ndarray, np.ndarray]
"""(environment steps [n], values [n]) of the iterations that have the metric."""

PANELS = {
    "rollout/success_rate": "success rate in training",
    "rollout/return": "return",
    "sft/loss": "imitation loss (by gradient step)",
    "train/approx_kl": "approximate KL per update",
    "train/clip_fraction": "clipped fraction",
    "time/steps_per_second": "environment steps per second",
}
LABELS = {"sft": "imitation", "rl": "after RL"}
MODE_MARKS = {"greedy": "o", "sampled": "s"}
COLOURS = ("#1f6feb", "#d1481f", "#2a9d4a", "#8250df", "#b58900", "#0a8f9b")


class ReportError(ValueError):
    """A folder that nothing can be drawn from; the message says what is missing."""


def curve(records: Sequence[Record], metric: str) -> Curve:
    """A metric over environment steps (over ``step`` where it is from outside the loop)."""
    points = [
        (record.get(ENV_STEPS, record.get("step", record.get("iteration"))), record[metric])
        for record in records
        if record.get(metric) is not None
    ]
    x, y = zip(*points, strict=True) if points else ((), ())
    return np.array(x, np.float64), np.array(y, np.float64)


def trailing_mean(values: np.ndarray, window: int) -> np.ndarray:
    """[n] mean of each value and the up to ``window - 1`` values before it."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - window, 0)
    return (sums[ends] - sums[starts]) / (ends - starts)


# --- one run ---------------------------------------------------------------------------------


def plot_run(run: str | Path) -> Path:
    """Draw ``curves.png`` in a run folder.

    Returns:
        The file.

    Raises:
        ReportError: nothing was logged there.
    """
    from matplotlib.figure import Figure

    run = Path(run)
    records, every = _read_run(run)
    evaluations, _ = comparable(every)
    panels = [name for name in PANELS if len(curve(records, name)[0])]
    if evaluations and "rollout/success_rate" not in panels:
        panels.insert(0, "rollout/success_rate")
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows), layout="constrained")
    for number, name in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_curve(axes, curve(records, name))
        _style(axes, PANELS[name], "gradient steps" if name == "sft/loss" else "environment steps")
        if name == "rollout/success_rate":
            _draw_evaluations(axes, evaluations)
            axes.set_ylim(-0.02, 1.02)
    figure.suptitle(_run_name(run), fontsize=11)
    path = run / "curves.png"
    figure.savefig(path, dpi=110)
    return path


def _draw_curve(axes: Any, points: Curve) -> None:
    x, y = points
    window = max(len(y) // 20, 1)
    if window > 1:
        axes.plot(x, y, color=COLOURS[0], alpha=0.3, linewidth=1)
    label = f"mean of {window} iterations" if window > 1 else None
    axes.plot(x, trailing_mean(y, window), color=COLOURS[0], linewidth=1.8, label=label)


def _draw_evaluations(axes: Any, evaluations: Sequence[Record]) -> None:
    """Points with their 95 % intervals, where the evaluated policies stood."""
    for index, mode in enumerate(MODE_MARKS, start=1):
        chosen = [record for record in evaluations if record["mode"] == mode]
        if not chosen:
            continue
        x = [record.get("env_steps", 0) for record in chosen]
        y = np.array([record["success_rate"] for record in chosen])
        low = np.array([record["ci_low"] for record in chosen])
        high = np.array([record["ci_high"] for record in chosen])
        axes.errorbar(
            x, y, yerr=np.maximum([y - low, high - y], 0), fmt=MODE_MARKS[mode], capsize=3,
            markersize=5, color=COLOURS[index], label=f"held-out, {mode}",
        )  # fmt: skip
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="lower right", frameon=False)


def _style(axes: Any, title: str, x_label: str) -> None:
    from matplotlib.ticker import EngFormatter

    axes.set_title(title, fontsize=10)
    axes.set_xlabel(x_label, fontsize=9)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _read_run(run: Path) -> tuple[list[Record], list[Record]]:
    records = read_jsonl(run / METRICS_FILE)
    evaluations = read_jsonl(run / "evaluations.jsonl")
    if not records and not evaluations:
        raise ReportError(
            f"{run} is no run folder with results: it has neither {METRICS_FILE} nor "
            "evaluations.jsonl; give the folder that `embodied-rl train` printed last"
        )
    return records, evaluations


def _config(run: Path) -> Mapping[str, Any]:
    import yaml

    path = run / "config.yaml"
    loaded = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
    return loaded if isinstance(loaded, dict) else {}


def _run_name(run: Path) -> str:
    config = _config(run)
    return f"{config['name']}, seed {config.get('seed')}" if "name" in config else run.name


# --- several runs ----------------------------------------------------------------------------


def plot_runs(
    runs: Sequence[str | Path], *, output: str | Path, metric: str = "rollout/success_rate"
) -> Path:
    """Draw one metric of several runs: mean and 95 % bootstrap interval over runs of one name.

    Args:
        runs: run folders; those whose ``config.yaml`` has the same ``name`` are seeds of one line.
        output: picture to write (``.png``, ``.svg`` or ``.pdf``).
        metric: name in ``metrics.jsonl``.

    Returns:
        ``output``.

    Raises:
        ReportError: a run without the metric; the message lists what it has.
    """
    from matplotlib.figure import Figure

    groups: dict[str, list[Curve]] = {}
    for run in map(Path, runs):
        groups.setdefault(_config(run).get("name", run.name), []).append(_metric_curve(run, metric))
    figure = Figure(figsize=(7, 4.3), layout="constrained")
    axes = figure.add_subplot()
    for index, (name, curves) in enumerate(groups.items()):
        _draw_group(axes, name, curves, COLOURS[index % len(COLOURS)])
    _style(axes, PANELS.get(metric, metric), "environment steps")
    axes.legend(fontsize=8, frameon=False)
    if metric.endswith("success_rate"):
        axes.set_ylim(-0.02, 1.02)
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=120)
    return output


def _metric_curve(run: Path, metric: str) -> Curve:
    records, _ = _read_run(run)
    x, y = curve(records, metric)
    if not len(x):
        have = sorted({name for record in records for name in record} - {"iteration", "step"})
        raise ReportError(f"{run} has no metric {metric!r}; it has: {', '.join(have)}")
    return x, trailing_mean(y, max(len(y) // 20, 1))


def average_curves(curves: Sequence[Curve], *, num_points: int = 200) -> tuple[np.ndarray, ...]:
    """Mean and interval of several curves on a common axis.

    Args:
        curves: (x [n], y [n]) each, x ascending.
        num_points: P, points of the common axis.

    Returns:
        x [P] over the range that all curves cover, mean [P], low [P], high [P].
    """
    start = max(x[0] for x, _ in curves)
    stop = max(min(x[-1] for x, _ in curves), start)
    axis = np.linspace(start, stop, num_points)
    values = np.stack([np.interp(axis, x, y) for x, y in curves])
    bounds = np.array([bootstrap_interval(column, num_resamples=1000) for column in values.T])
    return axis, values.mean(axis=0), bounds[:, 0], bounds[:, 1]


def _draw_group(axes: Any, name: str, curves: Sequence[Curve], colour: str) -> None:
    if len(curves) == 1:
        axes.plot(*curves[0], color=colour, linewidth=1.8, label=name)
        return
    for x, y in curves:
        axes.plot(x, y, color=colour, alpha=0.25, linewidth=0.8)
    axis, mean, low, high = average_curves(curves)
    axes.fill_between(axis, low, high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(axis, mean, color=colour, linewidth=1.8, label=f"{name} ({len(curves)} seeds)")


# --- the page --------------------------------------------------------------------------------

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}
h1{font-size:1.4rem} h2{font-size:1.1rem;margin-top:2rem}
table{border-collapse:collapse} th,td{padding:.3rem .8rem;text-align:right;border-bottom:1px solid #d8dee4}
th:first-child,td:first-child{text-align:left} img{max-width:100%} video{width:20rem;margin-right:1rem}
.bar{position:relative;width:10rem;height:.8rem;background:#eef1f4;border-radius:2px}
.bar i{position:absolute;top:0;bottom:0;background:#9ec1f7} .bar b{position:absolute;top:0;bottom:0;width:2px;background:#1f6feb}
pre{background:#f6f8fa;padding:1rem;overflow:auto;font-size:12px} figure{display:inline-block;margin:0}
footer,figcaption{color:#59636e;font-size:12px}
"""  # noqa: E501


def write_report(run: str | Path) -> Path:
    """Write ``curves.png`` and ``report.html``, which needs no other file.

    Returns:
        The page.

    Raises:
        ReportError: nothing was logged in that folder.
    """
    run = Path(run)
    records, every = _read_run(run)
    evaluations, left_out = comparable(every)
    picture = _data_uri(plot_run(run), "image/png")
    config = run / "config.yaml"
    parts = [
        f"<h1>{html.escape(_run_name(run))}</h1>",
        "<h2>Success</h2>",
        _success_table(evaluations),
        *(f"<p>{html.escape(sentence)}</p>" for sentence in left_out),
        _task_table(evaluations),
        f'<h2>Curves</h2><img src="{picture}" alt="curves of the run">',
        _videos(run),
        "<h2>Configuration</h2>",
        f"<details><summary>{html.escape(config.name)}, runs again with "
        f"<code>embodied-rl train --config</code></summary><pre>"
        f"{html.escape(config.read_text(encoding='utf-8')) if config.exists() else ''}</pre>"
        "</details>",
        _footer(records, evaluations),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width">'
        f"<title>{html.escape(_run_name(run))}</title><style>{STYLE}</style><body>"
        f"{''.join(parts)}</body></html>\n"
    )
    path = run / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def comparable(records: Sequence[Record]) -> tuple[list[Record], list[str]]:
    """The records whose success rates may stand side by side, and one sentence for each left out.

    Of the records of one manifest, those count whose fingerprint is that of the newest: where it
    differs, the same seeds gave other initial states, other versions simulated them, or the
    environment had other options.

    Args:
        records: evaluations of a run in the order in which they were made.
    """
    newest = {record["manifest_sha256"]: record["fingerprint"] for record in records}
    kept = [r for r in records if r["fingerprint"] == newest[r["manifest_sha256"]]]
    left_out = [
        f"{_label(record)} ({record['mode']}) was evaluated in another simulator "
        f"(fingerprint {record['fingerprint'][:12]}, now {newest[record['manifest_sha256']][:12]}) "
        "and is not compared: evaluate it again"
        for record in records
        if record["fingerprint"] != newest[record["manifest_sha256"]]
    ]
    return kept, left_out


def _latest(evaluations: Sequence[Record]) -> list[Record]:
    """The last evaluation of every (label, mode), in the order of their first appearance."""
    return list({(record["label"], record["mode"]): record for record in evaluations}.values())


def _label(record: Record) -> str:
    return LABELS.get(record["label"], str(record["label"]))


def _success_table(evaluations: Sequence[Record]) -> str:
    if not evaluations:
        return "<p>This run has not been evaluated yet: <code>embodied-rl eval RUN</code>.</p>"
    rows = [
        f"<tr><td>{html.escape(_label(record))}</td>"
        f"<td>{html.escape(record['mode'])}</td><td>{record['success_rate']:.1%}</td>"
        f"<td>{record['ci_low']:.1%} to {record['ci_high']:.1%}</td><td>{_bar(record)}</td>"
        f"<td>{record['episodes']}</td><td>{record.get('env_steps', 0):,}</td></tr>"
        for record in _latest(evaluations)
    ]
    head = ("policy", "actions", "success", "95 % interval", "", "episodes", "environment steps")
    return _table(head, rows)


def _task_table(evaluations: Sequence[Record]) -> str:
    """Success per task, one column per policy and mode; left out for a single task."""
    records = _latest(evaluations)
    tasks = list(dict.fromkeys(task for record in records for task in record["per_task"]))
    if len(tasks) < 2:
        return ""
    rows = []
    for task in tasks:
        cells = "".join(
            f"<td>{record['per_task'][task]['success_rate']:.1%}</td>"
            if task in record["per_task"]
            else "<td>not run</td>"
            for record in records
        )
        rows.append(f"<tr><td>{html.escape(task)}</td>{cells}</tr>")
    names = [f"{_label(r)}, {r['mode']}" for r in records]
    return "<h2>Success per task</h2>" + _table(("task", *names), rows)


def _table(head: Sequence[str], rows: Sequence[str]) -> str:
    cells = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    return f"<table><tr>{cells}</tr>{''.join(rows)}</table>"


def _bar(record: Record) -> str:
    """The interval as a band from 0 to 1, the rate as a line in it."""
    low, high, rate = (100 * record[key] for key in ("ci_low", "ci_high", "success_rate"))
    return (
        f'<div class="bar"><i style="left:{low:.1f}%;width:{high - low:.1f}%"></i>'
        f'<b style="left:{min(rate, 99.0):.1f}%"></b></div>'
    )


def _videos(run: Path) -> str:
    files = sorted((run / "videos").glob("*.mp4"))
    if not files:
        return ""
    figures = [
        f'<figure><video controls loop muted src="{_data_uri(path, "video/mp4")}"></video>'
        f"<figcaption>{html.escape(path.stem)}</figcaption></figure>"
        for path in files
    ]
    return "<h2>Videos</h2>" + "".join(figures)


def _footer(records: Sequence[Record], evaluations: Sequence[Record]) -> str:
    facts = {
        "iterations": sum("iteration" in record for record in records),
        "manifest": sorted({record["manifest_sha256"][:16] for record in evaluations}),
        "fingerprint": sorted({record["fingerprint"][:16] for record in evaluations}),
        "embodied-rl": __version__,
    }
    return f"<footer><p>{html.escape(json.dumps(facts))}</p></footer>"


def _data_uri(path: Path, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
