"""Simulators that cannot batch: one environment at a time, many of them in worker processes.

A simulator file supplies a ``RowEnv``, one environment in numpy. ``make_workers`` runs N of them in
W worker processes and ``LocalSimulator`` in this process; both are ``Simulator``s of
``embodied_rl.envs.base`` and give the same episodes. Where one process can step several
environments for less than one after the other, it supplies a ``BlockEnv`` as well.

* ``rows``: the protocols ``RowEnv`` and ``BlockEnv``.
* ``simulator``: seeds of episodes, and ``LocalSimulator``.
* ``pool``: ``WorkerSimulator``; what happens when a worker raises, hangs or is killed.
* ``process``: one worker process as the parent sees it: start, wait, end.
* ``worker``: what runs inside.
* ``shared``: the arrays both sides see.
"""

from __future__ import annotations

if not __name__.startswith("embodied_rl."):
    raise ImportError("import embodied_rl.envs.vector instead of envs.vector")

from importlib import import_module
from typing import TYPE_CHECKING, Any

from embodied_rl.envs.vector.rows import BlockEnv, BlockTransition, RowEnv, RowTransition

if TYPE_CHECKING:
    from embodied_rl.envs.vector.pool import WorkerSimulator, make_workers
    from embodied_rl.envs.vector.process import WorkerError
    from embodied_rl.envs.vector.simulator import LocalSimulator

__all__ = [
    "BlockEnv",
    "BlockTransition",
    "LocalSimulator",
    "RowEnv",
    "RowTransition",
    "WorkerError",
    "WorkerSimulator",
    "make_workers",
]

# Imported on demand: they need torch, which worker processes start without.
_LAZY = {
    "LocalSimulator": "simulator",
    "WorkerError": "process",
    "WorkerSimulator": "pool",
    "make_workers": "pool",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LAZY[name]}"), name)
