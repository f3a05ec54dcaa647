"""``check-env`` passes sound environments and names what is wrong with others."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

from embodied_rl.check_env import CHECKS, CheckFailure, check_row
from embodied_rl.commands import run
from embodied_rl.envs.base import SimulatorVectorEnv
from embodied_rl.envs.toy import make_reach
from embodied_rl.envs.vector import LocalSimulator, RowTransition

ROOT = Path(__file__).resolve().parent.parent.parent


def test_the_row_of_the_guide_passes_from_another_folder(tmp_path: Path) -> None:
    text = (ROOT / "docs/extending.md").read_text()
    block = re.search(r"```python\n(# arms.py\n.*?)```", text, re.S)
    assert block is not None
    (tmp_path / "arms.py").write_text(block[1])
    command = [sys.executable, "-W", "ignore", "-m", "embodied_rl.cli", "check-env"]
    for target, more in (("arms:Arm", ()), ("arms:make", ("--num-workers", "1"))):
        result = subprocess.run(
            [*command, target, "--speed", "0.3", *more],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert result.stdout.splitlines()[-1] == "every check passed"
        assert result.stdout.count("ok  ") == len(CHECKS) + 2 * (target == "arms:Arm")
        assert "skip" not in result.stdout


def test_registered_and_gymnasium_names_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check-env", ["reach", "--num-tasks", "2"]) == 0
    assert run("check-env", ["CartPole-v1"]) == 0
    assert "fail" not in capsys.readouterr().out
    assert run("check-env", ["CartPole-v9"]) == 1
    assert "did you mean 'CartPole-v" in capsys.readouterr().err
    assert run("check-env", ["nowhere:Nothing"]) == 1
    assert "nowhere:Nothing cannot be imported" in capsys.readouterr().err
    assert run("check-env", ["reach", "--reward", "dens"]) == 1
    assert "give 'sparse' or 'dense'" in capsys.readouterr().out


class Row:
    """A sound row; a subclass breaks one rule."""

    task_names: tuple[str, ...] = ("only",)
    instructions: tuple[str, ...] = ("",)
    observation_space = spaces.Dict({"state": spaces.Box(-9, 9, (2,), np.float32)})
    action_space: Any = spaces.Box(-1.0, 1.0, (1,), np.float32)
    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.number = self.made
        self.state = np.zeros(2, np.float32)

    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        self.state = np.random.default_rng(seed).uniform(-1, 1, 2).astype(np.float32)
        return {"state": self.state.copy()}

    def step(self, action: np.ndarray) -> RowTransition:
        self.state[0] += 0.1 * action[0]
        return RowTransition({"state": self.state.copy()}, 0.5, False, False, False)

    def render(self) -> np.ndarray:
        raise NotImplementedError

    def close(self) -> None:
        pass


class IgnoresSeed(Row):
    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        return super().reset(task_id=task_id, seed=self.number * 1000 + np.random.randint(1000))


class Constant(Row):
    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        return super().reset(task_id=task_id, seed=0)


class Remembers(Row):
    """Noise in the step that the seed does not start anew."""

    def __init__(self) -> None:
        super().__init__()
        self.random = np.random.default_rng(0)

    def step(self, action: np.ndarray) -> RowTransition:
        self.state[1] += self.random.normal()
        return super().step(action)


class Nan(Row):
    def step(self, action: np.ndarray) -> RowTransition:
        self.state[1] = np.nan
        return super().step(action)


class Position(Row):
    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        return super().reset(task_id=task_id, seed=seed + self.number % 2)


BROKEN = [
    (IgnoresSeed, "seeds", "draw only from the seed"),
    (IgnoresSeed, "groups", "seed them alike"),
    (Constant, "variety", "every episode starts alike"),
    (Remembers, "resume", "another state"),
    (Nan, "spaces", "NaN"),
    (Position, "rows", "depends on its position"),
]


@pytest.mark.parametrize(("row", "check", "message"), BROKEN)
def test_a_broken_row_is_found(row: type[Row], check: str, message: str) -> None:
    def build(
        *,
        num_envs: int,
        seed: int,
        group_size: int = 1,
        episode_seeds: Any = None,
        **options: Any,
    ) -> SimulatorVectorEnv:
        simulator = LocalSimulator(
            row, num_envs=num_envs, seed=seed, group_size=group_size, episode_seeds=episode_seeds
        )
        return SimulatorVectorEnv(simulator, group_size=group_size, **options)

    with pytest.raises(CheckFailure, match=message):
        CHECKS[check][0](build)


class Wide(Row):
    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        return {"state": super().reset(task_id=task_id, seed=seed)["state"][:1]}


class Named(Row):
    def reset(self, *, task_id: int, seed: int) -> dict[str, np.ndarray]:
        return {"sate": super().reset(task_id=task_id, seed=seed)["state"]}


class Wordless(Row):
    instructions: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (Wide, r"shape \(1,\), its space says \(2,\)"),
        (Named, r"\['sate'\], the space says \['state'\]"),
        (Wordless, "not of one length"),
        (Remembers, None),
        (IgnoresSeed, "two instances differ"),
    ],
)
def test_a_broken_row_is_found_by_itself(row: type[Row], message: str | None) -> None:
    if message is None:
        check_row(row)  # equal in two fresh instances: `resume` finds this one
        return
    with pytest.raises(CheckFailure, match=message):
        check_row(row)


class Wrong:
    """``reach`` with one answer changed."""

    def __init__(self, change: str, **options: Any) -> None:
        self.env, self.change = make_reach(**options), change

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def step(self, actions: torch.Tensor) -> Any:
        obs, rewards, terminated, truncated, info = self.env.step(actions)
        info = dict(info)
        if self.change == "double":
            rewards = rewards.double()
        elif self.change == "metrics":
            info["episode"] = {**info["episode"], "return": info["episode"]["return"] + 1}
        elif self.change == "both":
            terminated = truncated = terminated | truncated
        elif self.change == "waiting":
            rewards = rewards + 1
        elif self.change == "chunks":
            info["step_rewards"] = info["step_rewards"].flip(1)
        return obs, rewards, terminated, truncated, info


@pytest.mark.parametrize(
    ("change", "check", "message"),
    [
        ("double", "spaces", "rewards are not float32"),
        ("metrics", "autoreset", "not the sum of the rewards"),
        ("both", "autoreset", "terminated and truncated at once"),
        ("waiting", "waiting", "has a reward"),
        ("chunks", "chunks", "step_rewards"),
    ],
)
def test_a_broken_vector_env_is_found(change: str, check: str, message: str) -> None:
    with pytest.raises(CheckFailure, match=message):
        CHECKS[check][0](lambda **options: Wrong(change, reward="dense", **options))  # type: ignore[arg-type]
