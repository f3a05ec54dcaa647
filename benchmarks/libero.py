"""Control steps per second of LIBERO: robosuite's own stepping against ours, and what bounds both.

    python -m benchmarks.libero [--rounds 8] [--steps 5] [--workers 2]

Two tasks of each suite, one process per worker. Every contestant carries its own episode under the
same actions; a round gives each of them ``--steps`` control steps in turn, timed by CPU time (user
and system), so that a busy machine hurts all alike. The table has medians over rounds of the
ratios within a round. Beside the speed stands how far the state is from stock's at the end.

Bounds: the physics calls alone, from stock's state with its control held: ``mj_forward`` and
``mj_step`` in each substep, and ``mj_step1`` and ``mj_step2``.

Pictures: 128 x 128, software OpenGL, of the first task of each suite as compiled and after
``cheap_rendering``; frames in turn, CPU time of all threads.
"""

# mujoco's functions come from a compiled module without stubs.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embodied_rl.envs.libero.assets import assets_folder

TASKS = tuple(
    (suite, index)
    for suite in ("libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90")
    for index in (0, 5)
)
SUBSTEPS = 25
STEPPED = ("stock", "stock, no observables", "exact", "fast")
BOUNDS = ("mj_forward + mj_step", "mj_step1 + mj_step2")
CAMERAS = ("agentview", "robot0_eye_in_hand")
TABLE = Path("docs/benchmarks_libero.md")

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Result:
    """One task: control steps per CPU second in each round, and distances from stock."""

    suite: str
    task: str
    rates: dict[str, list[float]]
    equal: bool
    """exact's integration state and success equal stock's in every bit, after every round."""
    distance: float
    """Largest difference of a position (m, rad) between fast and stock at the end."""
    steps: int
    load: float


def build(suite: str, index: int, assets: Path) -> Any:
    """A stock LIBERO environment without cameras, at the task's first initial state."""
    import importlib.util

    spec = importlib.util.find_spec("libero")
    assert spec is not None and spec.submodule_search_locations, "hf-libero is not installed"
    package = Path(next(iter(spec.submodule_search_locations))) / "libero"
    folder = assets.parent / f"libero-config-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(f"benchmark_root: {package}\nassets: {assets}\n")
    os.environ["LIBERO_CONFIG_PATH"] = str(folder)
    import libero.libero
    import torch
    from libero.libero.envs.env_wrapper import ControlEnv

    libero.libero._assets_path_cache = str(assets)
    file = sorted((package / "bddl_files" / suite).glob("*.bddl"))[index]
    np.random.seed(0)
    env = ControlEnv(
        bddl_file_name=str(file),
        use_camera_obs=False,
        has_offscreen_renderer=False,
        ignore_done=True,
    )
    states = torch.load(
        package / "init_files" / suite / f"{file.stem}.pruned_init", weights_only=False
    )
    env.set_init_state(states[0])
    return env


class Episodes:
    """One environment, and for each contestant the state of its own episode in it."""

    def __init__(self, env: Any) -> None:
        import mujoco

        from embodied_rl.envs.libero.stepping import Stepper

        self.env, self._mujoco = env.env, mujoco
        self.model, self.data = env.sim.model._model, env.sim.data._data
        self.exact, self.fast = Stepper(env, mode="exact"), Stepper(env, mode="fast")
        start = self.save()
        self.states: dict[str, tuple[Floats, Floats]] = {name: start for name in STEPPED}

    def save(self) -> tuple[Floats, Floats]:
        """MuJoCo's integration state, controller's memory."""
        spec = self._mujoco.mjtState.mjSTATE_INTEGRATION
        state = np.empty(self._mujoco.mj_stateSize(self.model, spec))
        self._mujoco.mj_getState(self.model, self.data, state, spec)
        return state, self.exact.save()

    def load(self, name: str) -> None:
        """Where ``name``'s episode stands; the bounds start from stock's."""
        physics, memory = self.states["stock" if name in BOUNDS else name]
        spec = self._mujoco.mjtState.mjSTATE_INTEGRATION
        self._mujoco.mj_setState(self.model, self.data, physics, spec)
        self.exact.load(memory)

    def advance(self, name: str, action: Floats) -> bool:
        """One control step of a contestant; its success."""
        step: dict[str, Callable[[Floats], object]] = {
            "stock": self.env.step,
            "stock, no observables": self._stock,
            "exact": self.exact.step,
            "fast": self.fast.step,
            BOUNDS[0]: self._forward_and_step,
            BOUNDS[1]: self._halves,
        }
        step[name](action)
        return name not in BOUNDS and self.exact.success()

    def _stock(self, action: Floats) -> None:
        for substep in range(SUBSTEPS):
            self.env.sim.forward()
            self.env._pre_action(action, substep == 0)
            self.env.sim.step()

    def _forward_and_step(self, action: Floats) -> None:
        for _ in range(SUBSTEPS):
            self._mujoco.mj_forward(self.model, self.data)
            self._mujoco.mj_step(self.model, self.data)

    def _halves(self, action: Floats) -> None:
        for _ in range(SUBSTEPS):
            self._mujoco.mj_step1(self.model, self.data)
            self._mujoco.mj_step2(self.model, self.data)

    def distance(self) -> float:
        """Largest difference of a position between fast and stock."""
        nq = self.model.nq
        stock, fast = (self.states[name][0][1 : 1 + nq] for name in ("stock", "fast"))
        return float(np.abs(stock - fast).max())


def actions(steps: int) -> Floats:
    """Random actions [steps, 7], each held for five steps, that close and open the gripper."""
    rng = np.random.default_rng(0)
    return np.repeat(rng.uniform(-1, 1, (-(-steps // 5), 7)), 5, axis=0)[:steps]


def measure(suite: str, index: int, assets: Path, rounds: int, steps: int) -> Result:
    """Interleaved rounds of one task."""
    episodes = Episodes(build(suite, index, assets))
    names = (*STEPPED, *BOUNDS)
    for name in names:  # compiles, and warms caches
        episodes.load(name)
        episodes.advance(name, np.zeros(7))
    rates: dict[str, list[float]] = {name: [] for name in names}
    equal = True
    for chunk in np.split(actions(rounds * steps), rounds):
        successes: dict[str, list[bool]] = {}
        for name in names:
            episodes.load(name)
            start = time.process_time()
            successes[name] = [episodes.advance(name, action) for action in chunk]
            rates[name].append(steps / (time.process_time() - start))
            if name not in BOUNDS:
                episodes.states[name] = episodes.save()
        (stock, memory), (exact, exact_memory) = (episodes.states[n] for n in ("stock", "exact"))
        equal &= np.array_equal(stock, exact) and np.array_equal(memory, exact_memory)
        equal &= successes["stock"] == successes["exact"]
    task = Path(episodes.env.bddl_file_name).stem
    distance = episodes.distance()
    return Result(suite, task, rates, equal, distance, rounds * steps, os.getloadavg()[0])


@dataclass(frozen=True)
class Pictures:
    """One task and camera: CPU milliseconds per frame, triangles, mean difference of a pixel."""

    suite: str
    camera: str
    stock: float
    cheap: float
    stock_triangles: int
    triangles: int
    difference: float


def measure_pictures(suite: str, index: int, assets: Path, rounds: int) -> list[Pictures]:
    """Frames of one task, as compiled and after ``cheap_rendering``, in turn."""
    os.environ.setdefault("MUJOCO_GL", "egl")  # read when mujoco is imported
    env = build(suite, index, assets)
    import mujoco

    from embodied_rl.envs.libero.stepping import cheap_rendering

    model, data = env.sim.model._model, env.sim.data._data
    options = mujoco.MjvOption()
    options.geomgroup[:] = [0, 1, 0, 0, 0, 0]  # what is seen, not what collides
    stock = mujoco.Renderer(model, 128, 128)  # keeps its own copy of the meshes
    stock_triangles = int(model.mesh_facenum.sum())
    cheap_rendering(model)
    renderers = (stock, mujoco.Renderer(model, 128, 128))
    results = []
    for camera in CAMERAS:
        times: tuple[list[float], list[float]] = ([], [])
        frames = [np.zeros((128, 128, 3))] * 2
        for _ in range(rounds + 1):
            for i, renderer in enumerate(renderers):
                renderer.update_scene(data, camera, options)
                start = time.process_time()
                frames[i] = renderer.render().astype(np.float64)
                times[i].append((time.process_time() - start) * 1e3)
        before, after = (statistics.median(t[1:]) for t in times)  # the first frame warms up
        difference = float(np.abs(frames[0] - frames[1]).mean())
        triangles = int(model.mesh_facenum.sum())
        results.append(
            Pictures(suite, camera, before, after, stock_triangles, triangles, difference)
        )
    return results


def picture_table(results: Sequence[Pictures]) -> list[str]:
    """Markdown rows, one per task and camera."""
    lines = [
        "| suite, camera | stock ms | cheap ms | ratio | triangles | cheap triangles | "
        "mean difference of a pixel (of 255) |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.suite}, {r.camera} | {r.stock:.1f} | {r.cheap:.1f} | {r.stock / r.cheap:.2f} | "
        f"{r.stock_triangles:,} | {r.triangles:,} | {r.difference:.1f} |"
        for r in results
    ]
    ratio = statistics.median(r.stock / r.cheap for r in results)
    return [*lines, f"| median | | | **{ratio:.2f}** | | | |"]


def ratio(result: Result, name: str, base: str) -> float:
    """Median over rounds of rate(name) / rate(base)."""
    pairs = zip(result.rates[name], result.rates[base], strict=True)
    return statistics.median(a / b for a, b in pairs)


def table(results: Sequence[Result]) -> list[str]:
    """Markdown rows, one per task."""
    lines = [
        "| task | stock steps/s | stock, no observables | exact | fast | "
        "bound, forward + step | bound, step1 + step2 | exact equal to stock | fast - stock |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        stock = statistics.median(result.rates["stock"])
        columns = " | ".join(
            f"{ratio(result, name, 'stock'):.2f}" for name in (*STEPPED[1:], *BOUNDS)
        )
        equal = "every bit" if result.equal else "NO"
        lines.append(
            f"| {result.suite}: {result.task[:48]} | {stock:.0f} | {columns} | {equal} | "
            f"{result.distance:.1g} |"
        )
    medians = [
        statistics.median(ratio(result, name, "stock") for result in results)
        for name in (*STEPPED[1:], *BOUNDS)
    ]
    columns = " | ".join(f"**{value:.2f}**" for value in medians)
    equal = f"{sum(result.equal for result in results)} of {len(results)}"
    lines.append(f"| median | | {columns} | {equal} | |")
    return lines


def _picture_worker(arguments: tuple[str, int, Path, int]) -> list[Pictures]:
    return measure_pictures(*arguments)


def run_pictures(tasks: Sequence[tuple[str, int]], rounds: int) -> list[Pictures]:
    """The first task of each suite, in a process of its own."""
    assets = assets_folder().resolve()
    jobs = [(suite, index, assets, rounds) for suite, index in tasks if index == 0]
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return [result for results in pool.imap(_picture_worker, jobs) for result in results]


def _worker(arguments: tuple[str, int, Path, int, int]) -> Result:
    return measure(*arguments)


def run(tasks: Sequence[tuple[str, int]], workers: int, rounds: int, steps: int) -> list[Result]:
    """Every task, ``workers`` at a time, each in one of so many processes."""
    assets = assets_folder().resolve()
    jobs = [(suite, index, assets, rounds, steps) for suite, index in tasks]
    context = multiprocessing.get_context("spawn")
    results = []
    with context.Pool(workers) as pool:
        for result in pool.imap(_worker, jobs, chunksize=1):
            print(json.dumps(asdict(result)), flush=True)
            results.append(result)
    return results


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=TABLE)
    options = parser.parse_args()
    lines = ["# LIBERO stepping", "", (__doc__ or "").split("\n\n", 2)[2].strip(), ""]
    for workers in options.workers:
        results = run(TASKS, workers, options.rounds, options.steps)
        low, high = min(r.load for r in results), max(r.load for r in results)
        lines += [
            f"## {workers} process{'es at a time' if workers > 1 else ''}",
            "",
            f"{results[0].steps} control steps per task and contestant in {options.rounds} rounds, "
            f"random actions; load of the machine {low:.1f} to {high:.1f}. "
            "Numbers after the second column are multiples of stock's rate.",
            "",
            *table(results),
            "",
        ]
        options.out.write_text("\n".join(lines))
    lines += ["## Pictures", "", *picture_table(run_pictures(TASKS, options.rounds)), ""]
    options.out.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
