"""N rows in W worker processes, and what is done when one of them raises, hangs or dies.

A worker that fails shows its traceback on standard error and is replaced by a new one. Its rows

* go on where they were, if the caller chose the episodes by ``episode_seeds`` (evaluation,
  demonstrations): each is started again with its seed and the actions since are replayed, so that
  the result is that of an undisturbed run; ``ATTEMPTS`` failures of one episode end the run;
* lose their running episodes otherwise (training): the next ``recv`` reports them as ``dropped``
  and the next ``reset`` starts their next seeds. More than ``max_restart_rate`` restarts per 1000
  environment steps end the run.

Axes: N row, n rows of a partial call, W worker.
"""

from __future__ import annotations

import os
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from embodied_rl.envs.base import ArrayDict, BoolArray, IntArray, Transition, check_groups
from embodied_rl.envs.spaces import Array
from embodied_rl.envs.vector import worker as protocol
from embodied_rl.envs.vector.process import GRACE, Worker, WorkerError, WorkerFailure
from embodied_rl.envs.vector.rows import RowSpec
from embodied_rl.envs.vector.shared import SharedArrays, anonymous_file
from embodied_rl.envs.vector.simulator import RowSimulator
from embodied_rl.envs.vector.worker import Job
from embodied_rl.metrics import Progress

ATTEMPTS = 3
"""Failures of one chosen episode, or of one start of a worker, that end the run."""
FREE_RESTARTS = 3
"""Restarts beyond the rate that are always allowed: a rate means nothing in the first steps."""
SHOW_AFTER = 2.0
"""Seconds after which starting workers shows a bar."""


class _Pool:
    """The worker processes: starting, and ending however this process ends.

    Args:
        jobs: one per worker.
        timeout, start_timeout: seconds without a finished (or made) row.
    """

    def __init__(self, jobs: Sequence[Job], *, timeout: float, start_timeout: float) -> None:
        self.memory = anonymous_file()
        self._timeout, self._start_timeout = timeout, start_timeout
        self.workers: list[Worker] = []
        # At the latest when the interpreter ends; after a kill the workers notice by themselves.
        self.close = weakref.finalize(self, _end, self.workers, self.memory)
        try:
            for job in jobs:  # one by one, so that an interrupt loses none of them
                self.workers.append(self._make(job))
            self.spec = self._await_start(self.workers)
        except WorkerFailure as failure:
            self.close()
            print(f"worker process {failure}", file=sys.stderr, flush=True)
            raise WorkerError(
                f"{jobs[0].factory} cannot be started in a worker process: see above, and try it "
                "in this process"
            ) from None
        except BaseException:
            self.close()
            raise

    def _make(self, job: Job) -> Worker:
        return Worker(job, memory=self.memory, timeout=self._timeout)

    def _await_start(self, workers: Sequence[Worker]) -> RowSpec:
        """Wait for all of ``workers``, which start side by side."""
        began, made = time.monotonic(), 0
        total = sum(worker.job.last - worker.job.first for worker in workers)
        bar = Progress()

        def on_row() -> None:
            nonlocal made
            made += 1
            if time.monotonic() - began > SHOW_AFTER:
                bar.update("starting simulators", made, total)

        try:
            specs = [worker.spec(on_row, timeout=self._start_timeout) for worker in workers]
            return specs[0]
        finally:
            bar.close()

    def replace(self, indices: Sequence[int]) -> None:
        """Start new processes in the place of some workers and wait for them.

        Raises:
            WorkerError: ``ATTEMPTS`` starts have failed.
        """
        for attempt in range(1, ATTEMPTS + 1):
            for index in indices:
                self.workers[index].close()
                self.workers[index] = self._make(self.workers[index].job)
            try:
                self._await_start([self.workers[index] for index in indices])
                return
            except (WorkerFailure, ValueError) as failure:
                print(f"a new worker process {failure}", file=sys.stderr, flush=True)
                if attempt == ATTEMPTS:
                    raise WorkerError(
                        f"a worker process could not be started again in {ATTEMPTS} attempts: the "
                        "tracebacks are above"
                    ) from None


def _end(workers: Sequence[Worker], memory: int) -> None:
    """Ask all workers to close their simulators, side by side, then end them."""
    for worker in workers:
        worker.send(protocol.QUIT)
    deadline = time.monotonic() + GRACE
    for worker in workers:
        worker.end(grace=max(deadline - time.monotonic(), 0.0))
        worker.close()
    os.close(memory)


class WorkerSimulator(RowSimulator):
    """A ``Simulator`` over worker processes; see ``make_workers`` for the arguments.

    Attributes:
        worker_restarts: restarts so far.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        *,
        num_envs: int,
        seed: int,
        group_size: int,
        episode_seeds: Sequence[int] | None,
        timeout: float,
        start_timeout: float,
        max_restart_rate: float,
    ) -> None:
        self._pool = _Pool(jobs, timeout=timeout, start_timeout=start_timeout)
        self._shared = SharedArrays(
            self._pool.memory, self._pool.spec, num_envs=num_envs, num_workers=len(jobs)
        )
        self._shared.has_success[0] = True
        self._rate = max_restart_rate
        self.worker_restarts = 0
        self._env_steps = 0
        self._reported = 0
        self._sent: IntArray | None = None
        self._busy: list[int] = []
        self._tracebacks: set[str] = set()
        super().__init__(
            self._pool.spec,
            num_envs=num_envs,
            seed=seed,
            group_size=group_size,
            episode_seeds=episode_seeds,
        )

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers, in the order of their rows."""
        return [worker.pid for worker in self._pool.workers]

    def reseed(self, seed: int | None, episode_seeds: IntArray | None) -> None:
        """See ``Simulator.reseed``."""
        super().reseed(seed, episode_seeds)
        self._forget(self._every)

    def _forget(self, rows: IntArray) -> None:
        """The bookkeeping of running episodes, at their start."""
        if rows.size == self.num_envs:
            self._lost: BoolArray = np.zeros(self.num_envs, np.bool_)
            self._failures: IntArray = np.zeros(self.num_envs, np.int64)
            # Actions of the running episodes, kept for those that are to be replayed.
            self._actions: list[list[Array]] = [[] for _ in range(self.num_envs)]
        self._lost[rows] = False
        self._failures[rows] = 0
        for row in rows.tolist():
            self._actions[row] = []

    def _restart(self, rows: IntArray) -> ArrayDict:
        self._forget(rows)
        for row in rows.tolist():
            self._shared.seeds[row] = self._start_seed(row)
        self._shared.task_ids[rows] = self._task_ids[rows]
        self._command(protocol.RESET, rows)
        self._settle()
        return {name: array[rows] for name, array in self._shared.obs.items()}

    def send(self, actions: Array, rows: IntArray | None) -> None:
        """See ``Simulator.send``; rows that lost their episode are not stepped."""
        self._sent = rows
        rows = self._every if rows is None else rows
        self._shared.actions[rows] = actions
        self._env_steps += rows.size
        if self.fixed_episodes:
            for row, action in zip(rows.tolist(), actions, strict=True):
                self._actions[row].append(action.copy())
        elif self._lost.any():
            rows = rows[~self._lost[rows]]
        self._command(protocol.STEP, rows)

    def _command(self, command: bytes, rows: IntArray) -> None:
        """Give a command to the workers of ``rows``."""
        mask = self._shared.mask
        whole = rows.size == self.num_envs
        mask[:] = whole
        if not whole:
            mask[rows] = True
        self._busy = []
        for index, worker in enumerate(self._pool.workers):
            if whole or mask[worker.rows].any():
                worker.send(command)
                self._busy.append(index)

    def _wait(self) -> dict[int, str]:
        """Wait for the busy workers; returns what is known of those that failed."""
        failures = {}
        for index in self._busy:
            try:
                self._pool.workers[index].wait(self._shared.progress)
            except WorkerFailure as failure:
                failures[index] = str(failure)
        self._busy = []
        return failures

    def _settle(self) -> None:
        """Wait for the present command and deal with workers that fail in it."""
        failures = self._wait()
        while failures:
            self._announce(failures)
            lost = [self._every[self._pool.workers[index].rows] for index in failures]
            rows = np.concatenate(lost)
            if self.fixed_episodes:
                self._count_failure(rows)
            else:
                self._lost[rows] = True
                self._check_rate()
            self._pool.replace(list(failures))
            failures = self._replay(rows) if self.fixed_episodes else {}

    def _announce(self, failures: Mapping[int, str]) -> None:
        """Show each traceback once, and what follows from it."""
        fate = "started again and replayed" if self.fixed_episodes else "dropped"
        for index, text in failures.items():
            self.worker_restarts += 1
            job = self._pool.workers[index].job
            head, _, details = text.partition("\n")
            if details in self._tracebacks:
                details = "(traceback as before)\n"
            self._tracebacks.add(details)
            sys.stderr.write(
                f"worker {index} (rows {job.first} to {job.last - 1}) {head}; its episodes are "
                f"{fate} (restart {self.worker_restarts})\n{details}"
            )
        sys.stderr.flush()

    def _check_rate(self) -> None:
        allowed = FREE_RESTARTS + self._rate * self._env_steps / 1000
        if self.worker_restarts > allowed:
            raise WorkerError(
                f"worker processes failed {self.worker_restarts} times in {self._env_steps} steps, "
                f"more than max_restart_rate={self._rate:g} per 1000 allows: mend the environment "
                "(the tracebacks are above), or raise max_restart_rate"
            )

    def _count_failure(self, rows: IntArray) -> None:
        running = rows[self._starts[rows] > 0]
        self._failures[running] += 1
        bad = running[self._failures[running] >= ATTEMPTS]
        if bad.size:
            task = self.task_names[self._task_ids[bad[0]]]
            raise WorkerError(
                f"the episode of {task} with seed {self._start_seed(int(bad[0]))} failed "
                f"{ATTEMPTS} times in its worker process: mend the environment (the tracebacks are "
                "above)"
            )
        if self.resume != "replay":
            raise WorkerError(
                "a worker process failed, and this environment cannot be replayed because it is "
                "not a function of seed and actions: run the evaluation again"
            )

    def _replay(self, rows: IntArray) -> dict[int, str]:
        """Bring ``rows`` of new workers to where they were; returns failures.

        The last action of a row may be the one that failed: its result is then that of the replay.
        """
        begun = rows[self._starts[rows] > 0]
        self._command(protocol.RESET, begun)
        failures = self._wait()
        lengths = np.array([len(self._actions[row]) for row in begun.tolist()])
        for step in range(lengths.max(initial=0)):
            if failures:
                break
            going = begun[lengths > step]
            self._shared.actions[going] = [self._actions[row][step] for row in going.tolist()]
            self._command(protocol.STEP, going)
            failures = self._wait()
        return failures

    def recv(self) -> Transition:
        """See ``Simulator.recv``."""
        self._settle()
        shared = self._shared
        index = slice(None) if self._sent is None else self._sent
        # Copies: the workers write to the shared arrays again.
        obs = {name: array[index].copy() for name, array in shared.obs.items()}
        rewards = shared.rewards[index].copy()
        terminated, truncated, success = shared.flags[:, index].copy()
        dropped = None
        if self._lost.any():
            dropped = self._lost[index].copy()
            rewards[dropped] = 0.0
            terminated[dropped] = truncated[dropped] = success[dropped] = False
        restarts = self.worker_restarts - self._reported
        self._reported = self.worker_restarts
        return Transition(
            obs,
            rewards,
            terminated,
            truncated,
            success if shared.has_success[0] else None,
            dropped=dropped,
            restarts=restarts,
        )

    def render(self, row: int) -> npt.NDArray[np.uint8]:
        """[H, W, 3] picture of the present state of ``row``.

        Raises:
            WorkerError: the worker failed; the traceback is on standard error.
        """
        self._command(protocol.RENDER, self._every[row : row + 1])
        (index,) = self._busy
        if failures := self._wait():
            sys.stderr.write(f"worker {index} {failures[index]}\n")
            raise WorkerError("the simulator could not draw a picture: the traceback is above")
        return self._pool.workers[index].picture()

    def close(self) -> None:
        """End every worker; may be repeated."""
        self._pool.close()


def make_workers(
    factory: str,
    options: Mapping[str, Any] | None = None,
    *,
    num_envs: int,
    seed: int,
    num_workers: int = 0,
    group_size: int = 1,
    episode_seeds: Sequence[int] | None = None,
    timeout: float = 60.0,
    start_timeout: float = 600.0,
    max_restart_rate: float = 10.0,
    block: bool = False,
) -> WorkerSimulator:
    """Run ``num_envs`` rows in worker processes.

    Args:
        factory: ``"module:attr"``, imported in the worker and called once per row; returns a
            ``RowEnv``.
        options: keyword arguments of the factory; picklable.
        num_envs: N rows, spread evenly over the workers.
        seed: of every row's stream.
        num_workers: W processes; 0: one per usable core, at most N.
        group_size: G consecutive rows start alike.
        episode_seeds: [N] seeds of the rows instead of derived ones; such episodes are replayed
            after a failure instead of dropped.
        timeout: seconds without a finished row after which a worker counts as hanging.
        start_timeout: seconds without a made row after which a starting worker does.
        max_restart_rate: restarts per 1000 environment steps that end the run, beyond the first
            few.
        block: each worker steps its rows together; the factory is called once per worker, with
            ``num_rows`` too, and returns a ``BlockEnv``. ``timeout`` is then that of a whole step.

    Raises:
        ValueError: a number that does not fit, or options that the factory refuses.
        WorkerError: the workers cannot be started; their traceback is on standard error.
    """
    check_groups(num_envs, group_size)
    if num_workers < 0 or num_workers > num_envs:
        raise ValueError(f"num_workers={num_workers}: give 0 (automatic) to {num_envs}")
    workers = num_workers or min(num_envs, len(os.sched_getaffinity(0)))
    bounds = [num_envs * index // workers for index in range(workers + 1)]
    jobs = [
        Job(
            factory=factory,
            options=dict(options or {}),
            index=index,
            num_workers=workers,
            first=bounds[index],
            last=bounds[index + 1],
            num_envs=num_envs,
            block=block,
        )
        for index in range(workers)
    ]
    return WorkerSimulator(
        jobs,
        num_envs=num_envs,
        seed=seed,
        group_size=group_size,
        episode_seeds=episode_seeds,
        timeout=timeout,
        start_timeout=start_timeout,
        max_restart_rate=max_restart_rate,
    )
