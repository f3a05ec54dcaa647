"""One GRPO iteration of a tiny vision-language model: this library against TRL's ``GRPOTrainer``.

    make bench-vlm                                       # builds .venv-trl, then every setting
    bash benchmarks/vlm.sh --settings image:64:1 --rounds 5    # one of them, narrower intervals

An iteration is generation, scoring and update: 16 prompts with 8 answers each, no two iterations
with the same prompts, one gradient step over all 128 answers. The contestants take turns, each in a
process of its own, and both read the same folder of weights, the same file of questions and
pictures, and the same reward. What is equal:

* a Qwen2.5-VL of 1.2 M parameters in float32, all of them trained; every answer has exactly the
  stated number of tokens (ours ignores end tokens, TRL is told ``min_new_tokens``);
* temperature 1, no top-k; clipped surrogate without KL term, mean over tokens, group-normalised
  rewards, Adam, gradient clipping; no gradient checkpointing, one backward pass over all rows. TRL
  puts them through the model at once, ours in portions of about 4096 tokens that fit into caches.

Ours goes through ``trainer.reinforce``, the loop of ``embodied-rl train``, logging included; TRL
through ``GRPOTrainer.train`` with logging off. The first iteration is not counted. Samples per
second are given by processor time (user and system, all threads) and by wall time, which on a busy
machine measures the others too. So does the processor time of two threads, which wait for each
other without rest; that of one thread grows when caches and memory are shared. Memory is the peak
of the process (VmHWM) and how much of it the iterations added to what was resident when they began.
Ratios are taken within a round.

The table goes to ``docs/benchmarks_vlm.md``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

PROMPTS, GROUP = 16, 8
QUESTIONS, PICTURES, SIDE = 1024, 64, 224
MODEL = "tiny/qwen2_5_vl"
SHORT = "What colour is the shape in image number {}? Think, then answer with one word."
LONG = " ".join(f"This is remark {i} and it says that square number {{}} is red." for i in range(8))
SETTINGS = [f"{p}:{n}:{t}" for t in (1, 2) for p in ("image", "text") for n in (64, 16, 256)]
TABLE = Path("docs/benchmarks_vlm.md")
CONTESTANTS = ("ours", "trl")


@dataclass(frozen=True)
class Setting:
    """What one row of the table measures.

    Attributes:
        prompt: ``image``, a picture of 224 x 224 pixels and a question; or ``text``, words alone.
        tokens: of every answer.
        threads: of torch.
        iterations: that count; one more comes before.
    """

    prompt: str
    tokens: int
    threads: int
    iterations: int


@dataclass
class Watch:
    """Clock readings of a contestant: start, then (answers are there, weights are new) in turn."""

    readings: list[tuple[float, float]] = field(default_factory=list)
    resident: float = 0.0

    def mark(self) -> None:
        """Read both clocks."""
        self.readings.append((time.process_time(), time.perf_counter()))

    def start(self) -> None:
        """The iterations begin."""
        self.resident = memory("VmRSS")
        self.mark()

    def figures(self) -> dict[str, float]:
        """Median processor and wall seconds of the two stages, without the first iteration; MiB."""
        steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(self.readings)][2:]
        figures: dict[str, float] = {}
        for name, part in (("generation", steps[0::2]), ("update", steps[1::2])):
            figures[f"{name}_cpu"], figures[f"{name}_wall"] = map(
                statistics.median, zip(*part, strict=True)
            )
        for clock in ("cpu", "wall"):
            figures[clock] = figures[f"generation_{clock}"] + figures[f"update_{clock}"]
        peak = memory("VmHWM")
        return figures | {"peak": peak, "added": peak - self.resident}


def memory(name: str) -> float:
    """A line of this process's status, MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def checksum(text: str) -> float:
    """A reward in [0, 1) that differs between answers."""
    return zlib.crc32(text.encode()) / 2**32


# --- what both contestants read --------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Weights, pictures and both files of questions."""
    import torch
    from PIL import Image, ImageDraw

    from embodied_rl.policies.vlm import presets

    torch.manual_seed(0)
    presets.save(MODEL, folder / "model")
    colours = ("red", "green", "blue", "yellow")
    for n in range(PICTURES):
        picture = Image.new("RGB", (SIDE, SIDE), (200 + n % 8, 200, 200 + n // 8))
        corner = (10 + 2 * n, 20 + n)
        ImageDraw.Draw(picture).rectangle((*corner, *(c + 60 for c in corner)), colours[n % 4])
        picture.save(folder / f"{n}.png")
    for name, question in (("image", SHORT), ("text", LONG)):
        rows = [{"prompt": question.format(*[n] * 8), "answer": "red"} for n in range(QUESTIONS)]
        if name == "image":
            rows = [row | {"image": f"{n % PICTURES}.png"} for n, row in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))


# --- contestants -----------------------------------------------------------------------------


def ours(setting: Setting, folder: Path, output: Path, watch: Watch) -> None:
    """This library."""
    from embodied_rl import trainer
    from embodied_rl.config import CheckpointConfig, EnvConfig, TrainConfig, component
    from embodied_rl.policies.vlm import model
    from embodied_rl.registry import register

    model.end_tokens = lambda *_: []  # answers of one length
    register("rewards", "checksum")(lambda response, question: checksum(response))
    rows = PROMPTS * GROUP
    config = TrainConfig(
        name="benchmark",
        env=EnvConfig(
            simulator=component(
                "envs",
                "vqa",
                file=str(folder / f"{setting.prompt}.jsonl"),
                reward="checksum",
                heldout_share=0.0,
                answer_bytes=8 * setting.tokens,
            ),
            num_envs=rows,
            group_size=GROUP,
        ),
        policy=component(
            "policies", "vlm", model=str(folder / "model"), max_new_tokens=setting.tokens
        ),
        algorithm=component(
            "algorithms", "grpo", learning_rate=1e-5, num_epochs=1, num_minibatches=1
        ),
        advantage=component("advantages", "group_relative"),
        total_env_steps=rows * (setting.iterations + 1),
        checkpoint=CheckpointConfig(every=10**9),
        num_threads=setting.threads,
    )
    session = trainer.open_session(config, output)
    steps = session.algorithm.gradient_steps

    def watched(rollout: Any, *arguments: Any, **options: Any) -> Any:
        assert int(rollout.unit_mask.sum()) == rows * setting.tokens
        watch.mark()
        yield from steps(rollout, *arguments, **options)
        watch.mark()

    session.algorithm.gradient_steps = watched
    watch.start()
    trainer.reinforce(session)


def trl(setting: Setting, folder: Path, output: Path, watch: Watch) -> None:
    """TRL's trainer."""
    import torch
    from datasets import Dataset, Image
    from transformers import AutoModelForImageTextToText, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from embodied_rl.policies.vlm.processing import load_processor

    class Watched(GRPOTrainer):
        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            assert int(batch["completion_mask"].sum()) == PROMPTS * GROUP * setting.tokens
            watch.mark()
            return batch

    class Clock(TrainerCallback):
        def on_train_begin(self, *arguments: Any, **options: Any) -> None:
            watch.start()

        def on_step_end(self, *arguments: Any, **options: Any) -> None:
            watch.mark()

    torch.set_num_threads(setting.threads)
    torch.manual_seed(0)
    lines = (folder / f"{setting.prompt}.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    dataset = Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": row["prompt"]}]}
            | ({"image": str(folder / row["image"])} if "image" in row else {})
            for row in rows
        ]
    )
    if "image" in dataset.column_names:
        dataset = dataset.cast_column("image", Image())
    config = GRPOConfig(
        output_dir=str(output),
        per_device_train_batch_size=PROMPTS * GROUP,
        num_generations=GROUP,
        max_completion_length=setting.tokens,
        generation_kwargs={"min_new_tokens": setting.tokens},
        max_steps=setting.iterations + 1,
        learning_rate=1e-5,
        max_grad_norm=0.5,
        beta=0.0,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    Watched(
        model=AutoModelForImageTextToText.from_pretrained(folder / "model", dtype=torch.float32),
        processing_class=load_processor(str(folder / "model"), "qwen2_5_vl"),
        reward_funcs=lambda completions, **_: [checksum(c[0]["content"]) for c in completions],
        args=config,
        train_dataset=dataset,
        callbacks=[Clock()],
    ).train()


# --- measuring -------------------------------------------------------------------------------


def measure(name: str, setting: Setting, folder: Path) -> dict[str, float]:
    """Figures of one contestant in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.vlm", "--one", name, "--folder", str(folder)]
    command += ["--setting", json.dumps(asdict(setting))]
    threads = str(setting.threads)
    environment = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, check=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def one(name: str, setting: Setting, folder: Path) -> None:
    """What ``measure`` starts: prints the figures as the last line."""
    watch = Watch()
    with tempfile.TemporaryDirectory() as output:
        {"ours": ours, "trl": trl}[name](setting, folder, Path(output), watch)
    print(json.dumps(watch.figures()))


def row(setting: Setting, results: dict[str, list[dict[str, float]]]) -> str:
    """A row of the table: medians, and smallest and largest ratio of a round."""
    answers = PROMPTS * GROUP

    def rates(name: str, clock: str) -> str:
        return f"{answers / statistics.median(r[clock] for r in results[name]):.1f}"

    def ratio(name: str, form: str = ".2f", *, more: bool = True) -> str:
        pairs = zip(results["ours"], results["trl"], strict=True)
        values = [b[name] / a[name] if more else a[name] / b[name] for a, b in pairs]
        return f"{statistics.median(values):{form}} ({min(values):{form}}-{max(values):{form}})"

    def mib(name: str) -> str:
        ours, trl = (statistics.median(r[name] for r in results[c]) for c in CONTESTANTS)
        return f"{ours:.0f} / {trl:.0f}"

    cells = [
        setting.prompt,
        *map(str, (setting.tokens, setting.threads, len(results["ours"]))),
        *(f"{rates('ours', clock)} / {rates('trl', clock)}" for clock in ("cpu", "wall")),
        f"**{ratio('cpu')}**",
        *(ratio(name) for name in ("wall", "generation_cpu", "update_cpu")),
        *(f"{mib(name)}, {ratio(name, more=False)}" for name in ("peak", "added")),
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| prompt | tokens | threads | rounds | samples/s of processor time, ours / TRL | samples/s of "
    "wall time, ours / TRL | times TRL, processor | times TRL, wall | generation, processor "
    "| update, processor | peak MiB, ours / TRL, ratio | MiB added, ours / TRL, ratio |",
    "|" + "---|" * 12,
)


def preamble(iterations: int) -> str:
    """What is measured, versions and machine."""
    names = ("torch", "transformers", "trl", "datasets", "accelerate")
    versions = ", ".join(f"{name} {version(name)}" for name in names)
    about = (__doc__ or "").strip()
    return (
        f"# GRPO on a vision-language model\n\n{about}\n\n"
        f"Medians over rounds, of {iterations} iteration(s) each; ratios with (smallest-largest). "
        f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} at the start; Python "
        f"{platform.python_version()}, {versions}.\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.vlm")
    about = "prompt:tokens:threads of each row of the table, the prompt image or text"
    parser.add_argument("--settings", nargs="+", default=SETTINGS, help=about)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--output", type=Path, default=TABLE)
    for name in ("--one", "--folder", "--setting"):
        parser.add_argument(name, default="", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        one(options.one, Setting(**json.loads(options.setting)), Path(options.folder))
        return
    results: dict[Setting, dict[str, list[dict[str, float]]]] = {}
    for text in options.settings:
        prompt, tokens, threads = text.split(":")
        setting = Setting(prompt, int(tokens), int(threads), options.iterations)
        results[setting] = {name: [] for name in CONTESTANTS}
    head = [preamble(options.iterations), *HEAD]
    with tempfile.TemporaryDirectory() as place:
        prepare(Path(place))
        for _, setting in itertools.product(range(options.rounds), results):
            for name in CONTESTANTS:
                results[setting][name].append(measure(name, setting, Path(place)))
                print(setting, name, results[setting][name][-1], file=sys.stderr, flush=True)
            rows = [row(each, found) for each, found in results.items() if found["trl"]]
            print(rows[-1], flush=True)
            options.output.write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
