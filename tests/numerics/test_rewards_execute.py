"""Programs that try to get out of the sandbox, and what a harmless one may do."""

import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from embodied_rl.rewards import execute
from embodied_rl.rewards.base import SetupError
from embodied_rl.rewards.execute import Execution, Limits, check_protections, exec_ok, run_code
from embodied_rl.types import Question

PATIENT = Limits(wall_s=60.0, cpu_s=20)


@pytest.fixture(autouse=True, scope="module")
def protections() -> None:
    try:
        check_protections()
    except SetupError as error:
        pytest.skip(str(error))


def run(code: str, *, limits: Limits = PATIENT, collect: tuple[str, ...] = ()) -> Execution:
    return run_code(textwrap.dedent(code), limits=limits, collect=collect)


def attempt(code: str) -> str:
    """The error that ``code`` meets, or what it printed."""
    body = textwrap.indent(textwrap.dedent(code), "    ")
    result = run(f"try:\n{body}\nexcept BaseException as e:\n    print(type(e).__name__, e)")
    assert result.ok, result.stderr
    return result.stdout


def test_a_harmless_program_computes_prints_and_writes() -> None:
    result = run(
        """
        import json, threading
        numbers = []
        threads = [threading.Thread(target=numbers.append, args=(i,)) for i in range(3)]
        [t.start() for t in threads]; [t.join() for t in threads]
        open("out.json", "w").write(json.dumps(sorted(numbers)))
        print("done")
        """,
        collect=("out.json", "missing"),
    )
    assert (result.ok, result.stdout, result.files) == (True, "done\n", {"out.json": b"[0, 1, 2]"})


def test_numpy_works_inside() -> None:
    assert run("import numpy as np; print(int(np.linalg.det(np.eye(3))))").stdout == "1\n"


def test_files_of_others_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh" / "id_rsa").write_text("TOP SECRET")
    for path in (tmp_path / ".ssh" / "id_rsa", "/etc/passwd", f"/proc/{os.getpid()}/environ"):
        assert attempt(f"print(open({str(path)!r}).read())").startswith("PermissionError")
    for path in (tmp_path, Path.home(), "/proc", "/"):
        code = f"import os; print(os.listdir({str(path)!r}))"
        assert attempt(code).startswith("PermissionError")


def test_files_of_others_cannot_be_changed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    mode = mine.stat().st_mode
    for code in (
        f"open({str(mine)!r}, 'w')",
        f"import os; os.truncate({str(mine)!r}, 0)",
        f"import os; os.unlink({str(mine)!r})",
        f"import os; os.chmod({str(mine)!r}, 0o777)",
        f"import os; os.rename({str(mine)!r}, 'here')",
        f"import os; os.link({str(mine)!r}, 'here')",
        f"open({str(tmp_path / 'new')!r}, 'w')",
    ):
        assert "Error" in attempt(code), code
    assert (mine.read_text(), mine.stat().st_mode) == ("mine", mode)
    assert list(tmp_path.iterdir()) == [mine]


def test_a_link_to_a_secret_is_not_collected(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    code = f"import os; os.symlink({str(tmp_path / 'secret')!r}, 'out')"
    result = run(code, collect=("out",))
    assert result.ok and result.files == {}


def test_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}))"
        assert attempt(code).startswith("PermissionError")
    assert attempt("import socket; socket.socketpair()").startswith("PermissionError")


@pytest.mark.parametrize(
    "code",
    [
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import ctypes, os; l = ctypes.CDLL(None, use_errno=True)\n"
        "if l.syscall(435, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'clone3')",
        "import ctypes, os; l = ctypes.CDLL(None, use_errno=True)\n"
        "if l.syscall(56, 17, 0, 0, 0, 0) < 0: raise OSError(ctypes.get_errno(), 'clone')",
    ],
)
def test_no_other_process(code: str) -> None:
    assert "Error" in attempt(code)


def test_a_fork_bomb_ends_at_once() -> None:
    start = time.monotonic()
    result = run("import os\nwhile True:\n    os.fork()")
    assert not result.ok and "PermissionError" in result.stderr
    assert time.monotonic() - start < PATIENT.wall_s


def test_a_daemon_is_not_left_behind() -> None:
    mark = f"daemon-{os.getpid()}"
    run(f"import os, time\nos.setsid()\nif os.fork() == 0:\n    time.sleep(99)  # {mark}")
    run(
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()",
        limits=Limits(wall_s=2.0),
    )
    listing = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    assert str(execute.SANDBOX) not in listing.stdout


def test_nobody_can_be_signalled_or_limited() -> None:
    for code in (
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal; os.killpg(0, signal.SIGTERM)",
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40)); "
        "bytearray(3 << 30)",
    ):
        assert "Error" in attempt(code), code


def test_an_endless_loop_runs_out_of_processor_time() -> None:
    result = run("while True:\n    pass", limits=Limits(wall_s=60.0, cpu_s=1))
    assert not result.ok and ("SIGKILL" in result.reason or "SIGXCPU" in result.reason)


def test_a_sleeper_runs_out_of_time() -> None:
    start = time.monotonic()
    result = run("import time; time.sleep(99)", limits=Limits(wall_s=1.0))
    assert "longer than 1 s" in result.reason and time.monotonic() - start < 20


def test_signals_that_end_it_cannot_be_caught() -> None:
    code = """
        import signal, time
        for s in range(1, 65):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        time.sleep(99)
    """
    assert "longer than" in run(code, limits=Limits(wall_s=3.0)).reason


def test_four_gigabytes_of_memory_are_refused() -> None:
    assert attempt("b = bytearray(4 << 30)").startswith("MemoryError")
    assert "Error" in attempt("import os; os.memfd_create('m')")


def test_a_gigabyte_of_output_is_refused() -> None:
    one = run("f = open('big', 'wb')\nfor _ in range(1024): f.write(b'x' * 2**20)")
    assert not one.ok and ("File too large" in one.stderr or "bytes" in one.reason)
    many = """
        for i in range(1024):
            with open(str(i), "wb") as file:
                file.write(b"x" * (1 << 20))
    """
    assert "bytes" in run(many).reason
    loud = run("import sys\nfor _ in range(1024): sys.stdout.write('x' * 2**20)")
    assert not loud.ok and len(loud.stdout) <= PATIENT.output_bytes


def test_the_environment_is_empty_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    assert "secret" not in run("import os; print(dict(os.environ))").stdout


def test_it_dies_with_its_parent() -> None:
    program = (
        "from embodied_rl.rewards.execute import run_code, Limits\n"
        "run_code('import time; print(1, flush=True); time.sleep(120)',"
        " limits=Limits(wall_s=120.0))"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    found = wait_for(lambda: children_of(parent.pid))
    time.sleep(1.0)
    parent.kill()
    parent.wait()
    assert found and wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))


def children_of(pid: int) -> list[str]:
    """Sandboxes of a process that has finished its check of the protections."""
    path = Path(f"/proc/{pid}/task/{pid}/children")
    pids = path.read_text().split() if path.exists() else []
    return [p for p in pids if b'"wall_s": 120' in Path(f"/proc/{p}/cmdline").read_bytes()]


def wait_for(condition, *, timeout_s: float = 60.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def test_nothing_runs_where_a_protection_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = Execution(ok=False, reason="", stdout="", stderr="the kernel has no Landlock\n")
    check_protections.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(execute, "_run", lambda *_: broken)
        with pytest.raises(SetupError, match=r"no Landlock; .* unsafe=True"):
            run_code("print(1)")
    assert run_code("print(1)", unsafe=True).stdout == "1\n"


def test_a_program_cannot_pretend_that_a_protection_is_missing() -> None:
    question = Question(task="t", prompt="p", answer="")
    assert exec_ok("```python\nimport sys; sys.exit(120)\n```", question) == 0.0
    assert exec_ok("```python\nprint(1)\n```", question) == 1.0
