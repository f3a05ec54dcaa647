"""Imports a library once and forks a process for every program that uses it; started by path.

A request is a line of JSON on standard input, its reply one on standard output:

    {"folder": F, "limits": {...}, "environment": {...}}  ->  process id of the program
    {"ended": process id}  ->  null, or its exit status (minus a signal)

This process runs nothing but our own code and knows nothing of a program: the fork reads it from F.
Before that it leaves all that it shares with this process, and becomes what a program started by
``_sandbox`` is, with the library in its memory. Standard library only.
"""

import atexit
import gc
import importlib
import importlib.util
import json
import os
import random
import sys
import tempfile
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

TIMERS_S = 10.0
"""What a thread that a library left behind may take to end."""


def load_sandbox() -> ModuleType:
    """``_sandbox``, which lies beside this file; nothing else there can be imported."""
    path = os.path.join(os.path.dirname(__file__), "_sandbox.py")
    spec = importlib.util.spec_from_file_location("_sandbox", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def warm_up(first_use: str) -> None:
    """Run our own program with the library; no thread may live on, since a fork would lose it."""
    exec(compile(first_use, "<first use>", "exec"), {})
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(TIMERS_S)
    if sys.platform == "linux":
        threads = len(os.listdir("/proc/self/task"))
        assert threads == 1, f"{threads} threads live on after the first use"
    if "numpy" in sys.modules:
        importlib.import_module("numpy.random")  # NumPy leaves that to the first use
    gc.collect()
    gc.freeze()  # memory that the collector does not touch stays shared


def serve(requests: Any, replies: Any) -> dict[str, Any] | None:
    """Answer requests; returns the one to run in each fork, None when there are no more."""
    for line in requests:
        request = json.loads(line)
        if "ended" in request:
            pid, status = os.waitpid(request["ended"], os.WNOHANG)
            reply(replies, os.waitstatus_to_exitcode(status) if pid else None)
        elif os.fork() == 0:
            os.setsid()
            reply(replies, os.getpid())
            return request
    return None


def reply(replies: Any, value: Any) -> None:
    """One line."""
    replies.write(json.dumps(value) + "\n")
    replies.flush()


def leave(request: dict[str, Any]) -> None:
    """Give up what a fork has from this process: folder, open files, environment, random state."""
    os.chdir(os.path.join(request["folder"], "work"))
    places = ((os.devnull, os.O_RDONLY), ("../logs/stdout", os.O_WRONLY), ("../logs/stderr", 1))
    for number, (path, flags) in enumerate(places):
        os.dup2(os.open(path, flags), number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(request["environment"])
    tempfile.tempdir = None
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)


def run_and_exit(run: Callable[[], None]) -> None:
    """``run``, and then the end of the process without freeing every object of the library.

    Threads and exit handlers of the program come first, as ever: ours is the first one registered
    and so the last one called.
    """
    status = 1

    def leave_all() -> None:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    atexit.register(leave_all)
    try:
        run()
        status = 0
    except SystemExit as end:
        status = end.code & 0xFF if isinstance(end.code, int) else int(end.code is not None)
        raise


def main() -> None:
    """Warm up, say how that went, then serve; what a fork does ends here as well."""
    config = json.loads(sys.argv[1])
    sandbox = load_sandbox()
    if config["protect"]:
        sandbox.die_with_parent(config["parent"])
    requests, replies = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDWR), 0)
    os.dup2(2, 1)  # what a library prints is no reply
    sandbox.find_packages(config["packages"])
    try:
        warm_up(config["first_use"])
    except Exception as error:
        reply(replies, f"{type(error).__name__}: {error}")
        return
    reply(replies, "ready")
    parent = os.getpid()
    request = serve(requests, replies)
    requests.close()
    replies.close()
    if request is not None:
        leave(request)
        told = {**config, "parent": parent, "limits": request["limits"]}
        run_and_exit(lambda: sandbox.run(told))


if __name__ == "__main__":
    main()
