"""The picture of the README: frames of a film and the success curve of a demo run.

python -m benchmarks.picture RUN docs/demo.png
"""

from __future__ import annotations

import sys
from pathlib import Path

import av
import matplotlib as mpl
import numpy as np

from embodied_rl.metrics import read_jsonl

mpl.use("Agg")

import matplotlib.pyplot as plt

NUM_FRAMES = 4
COLOURS = {"greedy": "#d1451b", "sampled": "#2a9d4a"}


def film_frames(path: Path) -> list[np.ndarray]:
    """Frames spread over the first third of a film (its first episode)."""
    with av.open(str(path)) as film:
        frames = [frame.to_ndarray(format="rgb24") for frame in film.decode(video=0)]
    episode = frames[: len(frames) // 3]
    return [episode[i] for i in np.linspace(4, len(episode) - 1, NUM_FRAMES).astype(int)]


def draw(run: Path, output: Path) -> None:
    """Frames above, success during training and on held-out episodes below."""
    frames = film_frames(run / "videos" / "policy.mp4")
    records = [r for r in read_jsonl(run / "metrics.jsonl") if "iteration" in r]
    figure = plt.figure(figsize=(10, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, NUM_FRAMES, height_ratios=(1, 1.1))
    for index, frame in enumerate(frames):
        axes = figure.add_subplot(grid[0, index])
        axes.imshow(frame)
        axes.axis("off")
    axes = figure.add_subplot(grid[1, :])
    steps = [r["time/env_steps"] / 1000 for r in records]
    success = [r["rollout/success_rate"] for r in records]
    axes.plot(steps, success, color="#1f6feb", label="in training, sampled")
    for record in read_jsonl(run / "evaluations.jsonl"):
        colour, rate = COLOURS[record["mode"]], record["success_rate"]
        error = [[rate - record["ci_low"]], [record["ci_high"] - rate]]
        label = f"200 held-out episodes, {record['mode']}" if record["label"] == "rl" else None
        axes.errorbar(
            record["env_steps"] / 1000, rate, error, fmt="o", color=colour, label=label, capsize=4
        )
    axes.set(xlabel="thousand simulator steps of RL", ylabel="success", ylim=(0, 1.03))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(output, dpi=90)


if __name__ == "__main__":
    draw(Path(sys.argv[1]), Path(sys.argv[2]))
