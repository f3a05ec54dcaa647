"""Worker processes: same episodes as in one process, whatever happens to the workers."""

# pyright: reportPossiblyUnboundVariable=false
# The last step of a loop is looked at behind the loop.

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.vector import LocalSimulator, WorkerError, make_workers

ROWS = Path(__file__).parents[1] / "rows"
WALK = "faulty_rows:Walk"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROWS))


def workers(options: dict[str, Any] | None = None, **changes: Any) -> Any:
    arguments = {"num_envs": 4, "num_workers": 2, "seed": 3, "timeout": 20.0} | changes
    return make_workers(WALK, options, **arguments)


def local(**changes: Any) -> LocalSimulator:
    from faulty_rows import Walk

    arguments: dict[str, Any] = {"num_envs": 4, "seed": 3} | changes
    return LocalSimulator(Walk, **arguments)


def play(simulator: Any, steps: int = 70, **options: Any) -> list[Any]:
    env = SimulatorVectorEnv(simulator, **options)
    record: list[Any] = [env.reset()[0]]
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        record.append(env.step(torch.rand(4, 1, generator=generator) * 2 - 1))
        record.append((env.task_ids, env.group_ids))
    env.close()
    return record


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] == "Z"


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 20
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, f"still running: {pids}"
        time.sleep(0.05)


@pytest.mark.parametrize("options", [{}, {"group_size": 2}, {"episode_seeds": [5, 6, 7, 8]}])
def test_any_number_of_workers_plays_the_same_episodes(options: dict[str, Any]) -> None:
    expected = play(local(**options))
    for count in (1, 3):
        if "group_size" not in options or count == 3:
            assert_same(play(workers(num_workers=count, **options)), expected)


@pytest.mark.parametrize("options", [{}, {"group_size": 2}, {"episode_seeds": [5, 6, 7, 8]}])
def test_a_block_of_rows_plays_the_same_episodes(options: dict[str, Any]) -> None:
    blocks = make_workers(
        "faulty_rows:WalkBlock", num_envs=4, num_workers=2, seed=3, block=True, **options
    )
    assert_same(play(blocks), play(local(**options)))


def test_a_block_that_dies_is_replayed(tmp_path: Path) -> None:
    seeds = [5, 6, 7, 8]
    options = {"fault": "kill", "every": 12, "marker": str(tmp_path / "once")}
    blocks = make_workers(
        "faulty_rows:WalkBlock",
        options,
        num_envs=4,
        num_workers=2,
        seed=3,
        block=True,
        episode_seeds=seeds,
    )
    played, calm = play(blocks), play(local(episode_seeds=seeds))
    for step, expected in zip(played[1::2], calm[1::2], strict=True):
        assert_same(step[:4], expected[:4])
    assert blocks.worker_restarts == 1


@pytest.mark.parametrize("factory", ["Walk", "WalkBlock"])
def test_finished_rows_are_not_stepped(factory: str) -> None:
    simulator = make_workers(
        f"faulty_rows:{factory}",
        num_envs=4,
        num_workers=2,
        seed=3,
        block=factory == "WalkBlock",
    )
    simulator.reset(np.arange(4), np.zeros(4, np.int64))
    for _ in range(3):
        simulator.send(np.zeros((2, 1), np.float32), np.array([1, 3]))
        obs = simulator.recv().obs["state"]
    assert obs[:, 2].tolist() == [3, 3]
    simulator.send(np.zeros((4, 1), np.float32), None)
    assert simulator.recv().obs["state"][:, 2].tolist() == [1, 4, 1, 4]
    simulator.close()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("raise", "RuntimeError: failed on purpose"),
        ("exit", "SystemExit: 7"),
        ("kill", "SIGKILL"),
        ("segfault", "Segmentation fault"),
        ("hang", "in _fail"),
    ],
)
def test_a_failing_worker_loses_its_episodes_alone(
    fault: str, said: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    timeout = 1.0 if fault == "hang" else 20.0
    options = {"fault": fault, "every": 12, "marker": str(tmp_path / "once")}
    env = SimulatorVectorEnv(workers(options, timeout=timeout), chunk_length=1)
    calm = SimulatorVectorEnv(local())
    assert_same(env.reset()[0], calm.reset()[0])
    dropped = torch.zeros(4, dtype=torch.int64)
    restarts = 0
    for step in range(20):
        actions = torch.full((4, 1), 0.01 * step)
        groups = env.group_ids
        obs, rewards, _, truncated, info = env.step(actions)
        reference = calm.step(actions)
        dropped += info["dropped"]
        restarts += int(info["worker_restarts"].sum())
        lost = info["dropped"]
        assert bool(truncated[lost].all())
        assert not bool((info["valid"] | info["_episode"])[lost].any())
        assert rewards[lost].tolist() == [0.0] * int(lost.sum())
        assert torch.equal((env.group_ids != groups)[lost], lost[lost])
        untouched = dropped == 0
        assert torch.equal(obs["state"][untouched], reference[0]["state"][untouched])
        assert torch.equal(rewards[untouched], reference[1][untouched])
    env.close()
    calm.close()
    assert restarts == 1 and sorted(dropped.tolist()) == [0, 0, 1, 1]
    output = capfd.readouterr().err
    assert output.count(said) == 1 and "restart 1" in output


def test_chosen_episodes_go_on_where_a_worker_died(tmp_path: Path) -> None:
    seeds = {"episode_seeds": [5, 6, 7, 8]}
    expected = play(local(**seeds))
    simulator = workers({"delay": 0.002}, **seeds)
    env = SimulatorVectorEnv(simulator)
    record: list[Any] = [env.reset()[0]]
    generator = torch.Generator().manual_seed(0)
    for step in range(70):
        if step in (7, 40):
            os.kill(simulator.worker_pids[step % 2], signal.SIGKILL)
        env.send(torch.rand(4, 1, generator=generator) * 2 - 1)
        if step == 20:
            os.kill(simulator.worker_pids[0], signal.SIGKILL)
        result = env.recv()
        result[4]["worker_restarts"].zero_()
        record += [result, (env.task_ids, env.group_ids)]
    env.close()
    assert simulator.worker_restarts == 3
    assert_same(record, expected)


def test_a_chosen_episode_that_always_fails_ends_the_run() -> None:
    simulator = workers({"fault": "raise", "every": 5}, episode_seeds=[1, 2, 3, 4])
    with pytest.raises(WorkerError, match="seed 1 failed 3 times"):
        play(simulator)
    simulator.close()


def test_too_many_restarts_end_the_run() -> None:
    simulator = workers({"fault": "raise", "every": 2}, max_restart_rate=1.0)
    with pytest.raises(WorkerError, match="max_restart_rate=1 per 1000"):
        play(simulator)
    simulator.close()


def test_a_reset_that_fails_loses_one_episode_and_keeps_the_next(tmp_path: Path) -> None:
    options = {"fault": "reset", "every": 2, "marker": str(tmp_path / "once")}
    env = SimulatorVectorEnv(workers(options), max_episode_steps=3, autoreset=False)
    calm = SimulatorVectorEnv(local(), max_episode_steps=3, autoreset=False)
    counts = []
    for _ in range(3):
        obs, expected = env.reset()[0], calm.reset()[0]
        lost = env.step(torch.zeros(4, 1))[4]["dropped"]
        counts.append(int(lost.sum()))
        assert torch.equal(obs["state"][~lost], expected["state"][~lost])
        assert torch.equal(env.group_ids, calm.group_ids)
    assert counts == [0, 2, 0]
    env.close()
    calm.close()


def test_a_run_that_lost_episodes_can_be_resumed(tmp_path: Path) -> None:
    options = {"fault": "raise", "every": 4, "marker": str(tmp_path / "once")}
    env = SimulatorVectorEnv(workers(options), autoreset=False)
    env.reset()
    for _ in range(6):
        obs, *_ = env.step(torch.full((4, 1), 0.3))
    state = env.state_dict()
    assert state is not None
    restored = SimulatorVectorEnv(local(), autoreset=False)
    again = restored.load_state_dict(state)
    alive = state["active"]
    assert int(alive.sum()) == 2
    assert torch.equal(again["state"][alive], obs["state"][alive])
    assert_same(env.reset()[0], restored.reset()[0])
    env.close()


def test_wrong_options_are_refused_in_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="size=1: give at least 3"):
        workers({"size": 1})
    with pytest.raises(ValueError, match="give 'module:attr'"):
        make_workers("nothing", num_envs=1, seed=0)
    with pytest.raises(ValueError, match=r"num_workers=9: give 0 \(automatic\) to 4"):
        workers(num_workers=9)
    with pytest.raises(WorkerError, match="cannot be started"):
        workers({"unknown": 1})
    assert capfd.readouterr().err.count("unexpected keyword argument 'unknown'") == 1


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind_by_close_or_by_an_exception() -> None:
    shared, before = set(os.listdir("/dev/shm")), open_descriptors()
    simulator = workers()
    pids = simulator.worker_pids
    simulator.close()
    simulator.close()
    wait_until_gone(pids)
    del simulator  # and with it the mapping
    with pytest.raises(WorkerError):
        workers({"unknown": 1})
    assert set(os.listdir("/dev/shm")) <= shared and open_descriptors() == before


SCRIPT = """
import sys, time
sys.path.insert(0, {rows!r})
from embodied_rl.envs.vector import make_workers
simulator = make_workers("faulty_rows:Walk", {options!r}, num_envs=4, num_workers=2, seed=0)
print(*simulator.worker_pids, flush=True)
import numpy as np
simulator.reset(np.arange(4), np.zeros(4, int))
while True:
    simulator.send(np.zeros((4, 1), np.float32), None)
    simulator.recv()
    {then}
"""


@pytest.mark.parametrize(
    "how", ["exception", "SIGINT", "SIGTERM", "SIGKILL", "SIGKILL while hanging"]
)
def test_workers_do_not_outlive_their_parent(how: str) -> None:
    then = "raise ZeroDivisionError" if how == "exception" else ""
    options = {"fault": "hang", "every": 3} if how.endswith("hanging") else {}
    script = textwrap.dedent(SCRIPT).format(rows=str(ROWS), options=options, then=then)
    shared = set(os.listdir("/dev/shm"))
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs, and so their children, are started with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stderr is not None
    pids = [int(pid) for pid in process.stdout.readline().split()]
    assert len(pids) == 2
    time.sleep(0.5)
    if how != "exception":
        process.send_signal(signal.Signals[how.split()[0]])
    _, errors = process.communicate(timeout=60)
    wait_until_gone(pids)
    assert set(os.listdir("/dev/shm")) <= shared
    assert errors.count("Traceback") <= 1  # that of the parent: they end without a word


def test_a_worker_has_no_standard_input_one_thread_and_clean_output(
    capfd: pytest.CaptureFixture[str],
) -> None:
    simulator = make_workers("faulty_rows:Curious", num_envs=1, seed=0)
    obs, _ = simulator.reset(np.arange(1), np.zeros(1, np.int64))
    simulator.close()
    assert obs["state"].tolist() == [[1.0, 1.0, 1.0]]
    assert capfd.readouterr().out == ""
