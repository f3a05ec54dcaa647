"""Mathematical equivalence through math-verify, in a process that is killed when it takes too long.

A model may write ``9^{9^{9}}``; no timer inside a process stops the arithmetic of one big integer,
so each comparison is sent to a worker (``_math_worker``) and the worker is replaced on a timeout.
math-verify evaluates nothing but digits and operators as Python; words go through a grammar.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from embodied_rl.rewards import parse
from embodied_rl.rewards.base import SetupError, library
from embodied_rl.types import Question

WORKER = Path(__file__).with_name("_math_worker.py")
START_TIMEOUT_S = 300.0
MAX_WALL_RATIO = 20
"""Of wall time to processor time: on a busy machine an honest formula waits."""
MAX_CHARS = 2000
"""Longer answers are wrong: no reference is that long, and parsing is not linear."""


class _Worker:
    """One process, started on first use; the lock makes callers take turns."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[str] | None = None
        self.owner = 0

    def ask(self, pair: tuple[str, str], *, timeout_s: float) -> Any:
        """The worker's reply; None if there was none in time."""
        with self.lock:
            process = self._running() or self._start()
            assert process.stdin is not None
            process.stdin.write(json.dumps([*pair, timeout_s]) + "\n")
            process.stdin.flush()
            reply = self._read(process, MAX_WALL_RATIO * timeout_s)
            if reply == "":
                self._stop(process)
                return None
            return json.loads(reply)

    def _running(self) -> subprocess.Popen[str] | None:
        """The process, unless it has died or is that of the process this one was forked from."""
        if self.process is None or self.owner != os.getpid() or self.process.poll() is not None:
            return None
        return self.process

    def _start(self) -> subprocess.Popen[str]:
        library("math_verify", extra="vqa")
        command = [sys.executable, "-I", str(WORKER)]
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = subprocess.Popen(command, text=True, stderr=subprocess.DEVNULL, **pipes)
        if not self._read(process, START_TIMEOUT_S):
            self._stop(process)
            raise SetupError("the process that compares formulas did not start; try `import sympy`")
        self.process, self.owner = process, os.getpid()
        return process

    @staticmethod
    def _read(process: subprocess.Popen[str], timeout_s: float) -> str:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], timeout_s)
        return process.stdout.readline() if ready else ""

    def _stop(self, process: subprocess.Popen[str]) -> None:
        process.kill()
        process.communicate()
        self.process = None


_WORKER = _Worker()


def math_equivalence(response: str, question: Question, *, timeout_s: float = 5.0) -> float:
    r"""1 if the answer is the same quantity as the reference: 1/2, 0.5, \frac{1}{2}.

    Args:
        response: one formula in its answer, at most 2,000 characters; ``$`` around it are dropped.
        question: ``answer`` is a formula.
        timeout_s: a comparison that takes longer scores 0, in seconds of processor time.

    Raises:
        ValueError: the reference is no formula.
        SetupError: math-verify is not installed.
    """
    answer = (parse.answer_text(response) or "").strip("$ ")
    if not answer or len(answer) > MAX_CHARS or "$" in answer:
        return 0.0
    reply = _WORKER.ask((question.answer.strip("$ "), answer), timeout_s=timeout_s)
    if reply == "no formula":
        raise ValueError(f"the reference {question.answer!r} is no formula")
    return float(reply is True)
