"""Programs that try to get out of the sandbox, and what a harmless one may do.

Every attempt is made twice: by a process of its own and by a fork of a warm one.
"""

import contextlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embodied_rl.rewards import _sandbox, execute, warm
from embodied_rl.rewards.base import SetupError
from embodied_rl.rewards.execute import (
    Execution,
    Limits,
    check_protections,
    exec_ok,
    run_code,
    run_codes,
)
from embodied_rl.types import Question

PATIENT = Limits(wall_s=300.0, cpu_s=20)
LIBRARY = ""
"""Of every program; set by the fixture."""


@pytest.fixture(autouse=True, params=["", "matplotlib"], ids=["cold", "warm"])
def library(
    request: pytest.FixtureRequest, tmp_path_factory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Skips where nothing can be protected, and looks for what outlives a program."""
    try:
        check_protections()
    except SetupError as error:
        pytest.skip(str(error))
    if request.param:
        pytest.importorskip(request.param)
    monkeypatch.setattr(sys.modules[__name__], "LIBRARY", request.param)
    folder = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield request.param
    assert list(folder.iterdir()) == [] and programs_of(os.getpid()) == []


def run(code: str, *, limits: Limits = PATIENT, collect: tuple[str, ...] = ()) -> Execution:
    return run_code(textwrap.dedent(code), limits=limits, collect=collect, library=LIBRARY)


def attempts(*codes: str, limits: Limits = PATIENT) -> list[str]:
    """What became of each: "done" or its error; in one process, one after the other."""
    program = f"""
        import json
        outcomes = []
        for code in {codes!r}:
            try:
                exec(code, {{}})
                outcomes.append("done")
            except BaseException as error:
                outcomes.append(f"{{type(error).__name__}}: {{error}}")
        json.dump(outcomes, open("outcomes", "w"))
    """
    result = run(program, collect=("outcomes",), limits=limits)
    assert result.ok, (result.reason, result.stderr)
    return json.loads(result.files["outcomes"])


def all_refused(*codes: str) -> None:
    outcomes = dict(zip(codes, attempts(*codes), strict=True))
    assert "done" not in outcomes.values(), outcomes


def in_a_fork(action: Callable[[], object]) -> str:
    """The message of the SetupError that ``action`` meets in a copy of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        message = "no error"
        try:
            action()
        except SetupError as error:
            message = str(error)
        except BaseException as error:
            message = repr(error)
        finally:
            os.write(writer, message.encode())
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        return pipe.read().decode()


def test_a_harmless_program_computes_prints_and_writes() -> None:
    result = run(
        """
        import threading
        numbers = []
        threads = [threading.Thread(target=numbers.append, args=(i,)) for i in range(3)]
        [t.start() for t in threads]; [t.join() for t in threads]
        open("out.json", "w").write(str(sorted(numbers)))
        print("done")
        """,
        collect=("out.json", "missing"),
    )
    assert (result.ok, result.stdout, result.files) == (True, "done\n", {"out.json": b"[0, 1, 2]"})


def test_python_finds_what_it_needs() -> None:
    assert (
        attempts(
            "import numpy as np; assert np.linalg.det(np.eye(3)) == 1",
            "import asyncio, decimal, email, random, statistics, zoneinfo; random.random()",
            "import sqlite3; sqlite3.connect('a.db').execute('create table t (x)')",
            "import tempfile; tempfile.TemporaryFile().write(b'x')",
            "import os; os.makedirs('a/b'); os.rename('a/b', 'c'); os.symlink('c', 'd')",
            "import datetime; datetime.datetime.now().astimezone()",
        )
        == ["done"] * 6
    )


def test_files_of_others_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / ".ssh").mkdir()
    secret = tmp_path / ".ssh" / "id_rsa"
    secret.write_text("TOP SECRET")
    for path in (secret, "/etc/passwd", f"/proc/{os.getpid()}/environ", "/proc/self/environ"):
        all_refused(
            f"open({str(path)!r}).read()",
            f"import os; os.symlink({str(path)!r}, 'to'); os.rename('to', 'it'); open('it').read()",
            f"import os; os.link({str(path)!r}, 'hard'); open('hard').read()",
            f"open('/proc/self/root{path}').read()",
            f"import os; os.open({str(path)[1:]!r}, 0, dir_fd=os.open('/', os.O_PATH))",
            f"import os; os.open('../' * 40 + {str(path)[1:]!r}, 0)",
            f"import shutil; shutil.copy({str(path)!r}, 'mine')",
            f"import sqlite3; sqlite3.connect({str(path)!r}).execute('pragma schema_version')",
        )
    folders = (tmp_path, Path.home(), "/proc", "/", "/etc", "/tmp", sys.prefix)
    all_refused(*(f"import os; os.listdir({str(folder)!r})" for folder in folders))


def test_open_descriptors_of_the_trainer_are_not_passed_on(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("TOP SECRET")
    with (tmp_path / "secret").open() as file:
        os.set_inheritable(file.fileno(), True)
        result = run(
            """
            import os
            for number in range(256):
                try: print(os.read(number, 100))
                except OSError: pass
            """
        )
    assert result.ok and "SECRET" not in result.stdout


def test_three_descriptors_are_open() -> None:
    result = run(
        """
        import os
        for number in range(256):
            try: os.fstat(number)
            except OSError: continue
            print(number, end=" ")
        """
    )
    assert result.stdout == "0 1 2 "


def test_files_of_others_cannot_be_changed(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("mine")
    mode, path = mine.stat().st_mode, repr(str(mine))
    all_refused(
        f"open({path}, 'w')",
        f"import os; os.truncate({path}, 0)",
        f"import os; os.unlink({path})",
        f"import os; os.chmod({path}, 0o777)",
        f"import os; os.rename({path}, 'here')",
        f"import os; os.rename('outcomes', {path})",
        f"import os; os.symlink({path}, 'link'); open('link', 'w')",
        f"import os; os.utime({path}, (0, 0))",
        f"open({str(tmp_path / 'new')!r}, 'w')",
        "open('../logs/new', 'w')",
        "open('/dev/shm/new', 'w')",
        "import os; os.mkfifo('fifo')",
    )
    assert (mine.read_text(), mine.stat().st_mode) == ("mine", mode)
    assert list(tmp_path.iterdir()) == [mine]


def test_a_link_to_a_secret_is_not_collected(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    code = f"import os; os.symlink({str(tmp_path / 'secret')!r}, 'out'); os.mkdir('folder')"
    result = run(code, collect=("out", "folder"))
    assert result.ok and result.files == {}


def test_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        all_refused(
            f"import socket; socket.create_connection(('127.0.0.1', {port}))",
            "import socket; socket.socketpair()",
            "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM)",
            "import socket; socket.socket(socket.AF_UNIX).connect('\\0abstract')",
            "import socket; socket.getaddrinfo('example.com', 80)",
            f"import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=5)",
        )


def test_no_other_process() -> None:
    all_refused(
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.execv('/bin/true', ['true'])",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing as m; p = m.Process(target=print); p.start()",
        "import os; assert os.system('true') == 0, 'Error'",
    )


RAW = """
import ctypes
library = ctypes.CDLL(None, use_errno=True)
zeros = [ctypes.c_long(0)] * 6
if library.syscall({number}, *{first}, *zeros) < 0:
    assert ctypes.get_errno() not in (1, 38), "refused"  # EPERM, ENOSYS
"""


def test_system_calls_by_number_are_refused_too() -> None:
    numbers = {
        "socket": 41, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "tkill": 200,
        "ptrace": 101, "process_vm_readv": 310, "pidfd_open": 434, "memfd_create": 319,
        "shmget": 29, "io_uring_setup": 425, "mount": 165, "unshare": 272, "bpf": 321,
        "userfaultfd": 323, "perf_event_open": 298, "keyctl": 250, "open_by_handle_at": 304,
        "chroot": 161, "personality": 135, "syslog": 103, "later": 463, "much later": 5000,
        "x32 getpid": 0x40000000 | 39, "clone3": 435, "setrlimit": 160,
    }  # fmt: skip
    codes = [RAW.format(number=number, first=[]) for number in numbers.values()]
    codes.append(RAW.format(number=56, first=["ctypes.c_long(17)"]).replace("'", ""))  # clone
    codes.append(RAW.format(number=157, first=["ctypes.c_long(1)"]).replace("'", ""))  # PDEATHSIG
    outcomes = attempts(*codes)
    assert all("refused" in outcome for outcome in outcomes), dict(
        zip([*numbers, "clone", "prctl"], outcomes, strict=True)
    )


def test_the_other_door_to_the_kernel_is_closed() -> None:
    # mov eax, 20 (getpid of 32-bit Linux); int 0x80; ret
    result = run(
        """
        import ctypes, mmap
        page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        page.write(bytes.fromhex("b814000000cd80c3"))
        address = ctypes.addressof(ctypes.c_char.from_buffer(page))
        print(ctypes.CFUNCTYPE(ctypes.c_int)(address)())
        """
    )
    assert not result.ok and "SIGSYS" in result.reason, (result.reason, result.stdout)


def test_a_fork_bomb_ends_at_once() -> None:
    result = run("import os\nwhile True:\n    os.fork()")
    assert not result.ok and "PermissionError" in result.stderr


def test_a_bomb_of_threads_is_ended() -> None:
    result = run(
        """
        import threading, time
        threading.stack_size(1 << 16)
        while True:
            threading.Thread(target=time.sleep, args=(999,)).start()
        """
    )
    assert "more than 64 threads" in result.reason


def test_a_thread_left_behind_ends_with_the_program() -> None:
    code = "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()"
    assert "longer than" in run(code, limits=Limits(wall_s=1.0)).reason
    assert programs_of(os.getpid()) == []


def programs_of(pid: int) -> list[int]:
    """Processes that run programs for this one: its cold ones and the forks of its warm ones."""
    found = []
    for child in children(pid):
        if (command := command_of(child)) and str(execute.SANDBOX) in command:
            found.append(child)
        if str(warm.SERVER) in command:
            found += children(child)
    return found


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in found for child in path.read_text().split()]


def command_of(pid: int) -> str:
    with contextlib.suppress(OSError):  # it has ended since
        return Path(f"/proc/{pid}/cmdline").read_text()
    return ""


def test_nobody_can_be_signalled_or_limited() -> None:
    all_refused(
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal; os.killpg(0, signal.SIGTERM)",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import os, resource; resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (0, 0))",
        "import fcntl, os; r, w = os.pipe(); fcntl.fcntl(r, fcntl.F_SETOWN, os.getppid())",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
    )


def test_limits_cannot_be_raised_again() -> None:
    all_refused(
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1 << 40, 1 << 40))",
        "import resource; resource.prlimit(0, resource.RLIMIT_CPU, (1 << 40, 1 << 40))",
        RAW.format(number=160, first="[ctypes.c_long(0)]"),
    )
    assert attempts("import resource; resource.getrlimit(resource.RLIMIT_AS)") == ["done"]


def test_an_endless_loop_runs_out_of_processor_time() -> None:
    result = run("while True:\n    pass", limits=Limits(wall_s=300.0, cpu_s=1))
    assert not result.ok and ("SIGKILL" in result.reason or "SIGXCPU" in result.reason)


def test_a_sleeper_that_ignores_signals_runs_out_of_time() -> None:
    code = """
        import signal, time
        for s in range(1, 65):
            try: signal.signal(s, signal.SIG_IGN)
            except (OSError, ValueError): pass
        time.sleep(999)
    """
    start = time.monotonic()
    assert "longer than 2 s" in run(code, limits=Limits(wall_s=2.0)).reason
    assert time.monotonic() - start < 60


def test_memory_is_limited() -> None:
    outcomes = attempts(
        "bytearray(1 << 30)",
        "parts = []\nwhile True: parts.append(bytearray(1 << 26))",
        "import mmap; mmap.mmap(-1, 1 << 30)",
        "import os; os.memfd_create('m')",
        limits=Limits(wall_s=300.0, cpu_s=20, memory_bytes=1 << 29),
    )
    assert "done" not in outcomes, outcomes
    assert outcomes[0].startswith("MemoryError") and outcomes[1].startswith("MemoryError")


@pytest.mark.parametrize(
    "code",
    [
        "f = open('big', 'wb')\nwhile True: f.write(b'x' * 2**20)",
        "import os; os.truncate(os.open('sparse', os.O_CREAT | os.O_RDWR), 1 << 40)",
        "for i in range(10**6):\n    open(str(i), 'wb').write(b'x' * 2**20)",
        "for i in range(10**7):\n    open(str(i), 'wb')",
        "import sys\nwhile True: sys.stdout.write('x' * 2**20)",
        "import os\nwhile True:\n    os.mkdir('d' * 200)\n    os.chdir('d' * 200)",
        "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')",
    ],
    ids=["big", "sparse", "many", "empty", "loud", "deep", "nested"],
)
def test_the_disk_cannot_be_filled(code: str) -> None:
    result = run(code)
    known = ("it wrote more than 4194304 bytes", "it made a folder that cannot be read")
    too_large = result.reason.startswith("it ended") and "File too large" in result.stderr
    assert result.reason.startswith(known) or too_large, (result.reason, result.stderr)
    assert len(result.stdout) <= PATIENT.output_bytes


def test_what_was_written_just_before_the_end_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute._Watch, "breach", lambda self, pid: "")  # it looked too early
    code = "for i in range(3): open(str(i), 'wb').write(b'x' * 2**20)"
    assert run(code).ok
    assert "bytes" in run(code.replace("3", "5")).reason


def test_a_closed_folder_is_removed() -> None:
    run("import os; os.makedirs('a/b'); os.mkdir('a/c', 0); os.mkdir('e', 0); os.umask(0o777)")


def test_the_environment_is_empty_of_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "secret")
    assert "secret" not in run("import os; print(dict(os.environ))").stdout


def test_it_dies_with_its_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import ctypes, time
        ctypes.CDLL(None).prctl(1, 0)  # it would rather live on
        open("running", "w")
        time.sleep(999)
    """
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # nobody is left to tidy up
    parent = os.fork()
    if parent == 0:
        run(code, limits=Limits(wall_s=1234.0))
        os._exit(0)
    assert wait_for(lambda: list(tmp_path.glob("*/work/running")))
    found = [*programs_of(parent), *children(parent)]
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert found and wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in found))


def wait_for(condition, *, timeout_s: float = 120.0):
    deadline = time.monotonic() + timeout_s
    while not (value := condition()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return value


def without(call: int, first_argument: int | None = None) -> Callable[[], object]:
    """``run_code`` on a kernel without a system call (with this first argument)."""
    absent = (_sandbox.RETURN, 0, 0, _sandbox.ERRNO | _sandbox.ENOSYS)
    allow = (_sandbox.RETURN, 0, 0, _sandbox.ALLOW)
    steps = [(_sandbox.LOAD, 0, 0, 0), (_sandbox.EQUAL, 1, 0, call), allow]
    if first_argument is not None:
        steps += [(_sandbox.LOAD, 0, 0, 16), (_sandbox.EQUAL, 1, 0, first_argument), allow]
    program = b"".join(struct.pack("=HBBI", *step) for step in [*steps, absent])

    def act() -> None:
        check_protections.cache_clear()
        _sandbox.prctl(_sandbox.PR_SET_NO_NEW_PRIVS, 1)
        _sandbox.filter_system_calls(program)
        run("print(1)")

    return act


@pytest.mark.parametrize(
    ("call", "first_argument", "reason"),
    [
        (444, None, "the kernel has no Landlock (Function not implemented)"),
        (157, 22, "the kernel takes no seccomp filter"),
    ],
    ids=["landlock", "seccomp"],
)
def test_nothing_runs_on_a_kernel_without_protection(
    call: int, first_argument: int | None, reason: str
) -> None:
    message = in_a_fork(without(call, first_argument))
    assert message == (
        f"model code is not run here: {reason}; on a machine to lose, set unsafe=True"
    )


def test_an_old_landlock_or_another_machine_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_sandbox, "MIN_LANDLOCK_ABI", 99)
        with pytest.raises(_sandbox.RefusedError, match="99 is needed"):
            _sandbox.restrict_files([], "/nowhere")
    monkeypatch.setattr(_sandbox.platform, "machine", lambda: "aarch64")
    with pytest.raises(_sandbox.RefusedError, match="x86-64"):
        _sandbox.protect({})


def test_unsafe_runs_without_protection_and_with_limits(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    code = f"print(open({str(tmp_path / 'file')!r}).read())"
    assert run_code(code, unsafe=True, limits=PATIENT, library=LIBRARY).stdout == "content\n"
    code, limits = "import time; time.sleep(99)", Limits(wall_s=1.0)
    reason = run_code(code, unsafe=True, limits=limits, library=LIBRARY).reason
    assert "longer than 1 s" in reason


def test_a_program_cannot_pretend_that_a_protection_is_missing() -> None:
    question = Question(task="t", prompt="p", answer="")
    options = {"limits": PATIENT, "library": LIBRARY}
    assert exec_ok("```python\nimport sys; sys.exit(120)\n```", question, **options) == 0.0
    assert exec_ok("```python\nprint(1)\n```", question, **options) == 1.0
    assert exec_ok("print(1)", question, **options) == 1.0


def test_programs_run_together_and_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(execute, "JOBS", 4)
    now = "import time; print(time.monotonic()); time.sleep({}); print(time.monotonic(), {})"
    codes = [now.format(2.0 if i == 0 else 0.0, i) for i in range(6)]
    results = run_codes(codes, limits=PATIENT, library=LIBRARY)
    told = [[float(word) for word in result.stdout.split()] for result in results]
    assert [number for *_, number in told] == list(range(6))
    assert all(start < told[0][1] for start, *_ in told[1:4])
    assert run_codes([], library=LIBRARY) == []


@pytest.mark.parametrize(
    ("code", "status", "stdout", "stderr"),
    [
        ("import atexit; atexit.register(print, 'last'); print('first')", 0, "first\nlast\n", ""),
        ("import threading as t; t.Timer(.2, print, ['later']).start()", 0, "later\n", ""),
        ("import sys; print('out'); sys.exit('bad')", 1, "out\n", "bad\n"),
        ("raise SystemExit", 0, "", ""),
        ("raise SystemExit(7)", 7, "", ""),
        ("raise SystemExit(256 + 8)", 8, "", ""),
        ("import os; os._exit(9)", 9, "", ""),
    ],
)
def test_how_programs_end(code: str, status: int, stdout: str, stderr: str) -> None:
    result = run(code)
    reason = f"it ended with status {status}" if status else ""
    assert (result.reason, result.stdout, result.stderr) == (reason, stdout, stderr)


def test_hashes_and_random_numbers_repeat() -> None:
    code = "import random; print(hash('a'))"
    if LIBRARY:
        code += "\nimport numpy; print(random.random(), numpy.random.rand())"
    first = run(code).stdout
    warm.close_all()
    assert first and run(code).stdout == first


def test_a_program_finds_nothing_of_the_one_before() -> None:
    change = """
        import builtins, matplotlib.pyplot as plt, os
        builtins.left, os.environ["left"] = "left", "left"
        plt.figure()
        print(plt.get_fignums())
    """
    look = "import builtins, os; print(hasattr(builtins, 'left'), 'left' in os.environ)"
    assert run(change).stdout == run(change).stdout == "[1]\n"
    assert run(look).stdout == "False False\n"


# --- warm processes ----------------------------------------------------------------------------


@pytest.fixture
def warm_pid(library: str) -> int:
    if not library:
        pytest.skip("of warm processes")
    run("pass")
    return warm._PROCESSES[library, True].process.pid


def test_a_fork_need_not_import_what_it_seeds(warm_pid: int) -> None:
    assert "/numpy/random/" in Path(f"/proc/{warm_pid}/maps").read_text()


def test_neither_a_program_nor_its_inputs_enter_the_warm_process(warm_pid: int) -> None:
    told, mark = f"{time.time_ns()}", "never in its memory "
    code = f"print({(mark + told)!r}); import time; time.sleep(0.2)"
    assert run_code(code, inputs={"x": code.encode()}, library=LIBRARY, limits=PATIENT).ok
    assert (mark + told).encode() not in memory_of(warm_pid)
    with subprocess.Popen(  # one that knows it is found out
        [sys.executable, "-c", f"kept = {mark!r} + input(); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as knows:
        assert knows.stdin and knows.stdout
        knows.stdin.write(told.encode() + b"\n")
        knows.stdin.flush()
        knows.stdout.readline()
        assert (mark + told).encode() in memory_of(knows.pid)
        knows.kill()


def memory_of(pid: int) -> bytes:
    parts = []
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights, *_ = line.split()
            start, end = (int(side, 16) for side in span.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError, ValueError):
                    memory.seek(start)
                    parts.append(memory.read(end - start))
    return b"".join(parts)


def test_a_warm_process_that_died_is_replaced(warm_pid: int) -> None:
    os.kill(warm_pid, signal.SIGKILL)
    assert run("print(1)").stdout == "1\n"
    assert children(os.getpid()) != [warm_pid]


def test_programs_whose_warm_process_dies_run_again_once(warm_pid: int) -> None:
    code = "open('running', 'w'); import time; time.sleep(1.5); print('done')"
    folder = Path(tempfile.gettempdir())

    def kill_when_busy(times: int) -> None:
        for _ in range(times):
            running = wait_for(lambda: list(folder.glob("answer-*/work/running")))
            warm._PROCESSES[LIBRARY, True].process.kill()
            wait_for(lambda path=running[0]: not path.exists())

    for times in (1, 2):
        killer = threading.Thread(target=kill_when_busy, args=(times,))
        killer.start()
        if times == 1:
            assert [r.stdout for r in run_codes([code] * 2, library=LIBRARY)] == ["done\n"] * 2
        else:
            with pytest.raises(SetupError, match="died twice"):
                run(code)
        killer.join()


def test_warm_processes_end_with_the_trainer(warm_pid: int) -> None:
    code = f"""
        from embodied_rl.rewards import warm
        from embodied_rl.rewards.execute import run_code
        run_code("pass", library={LIBRARY!r})
        print(warm._PROCESSES[{LIBRARY!r}, True].process.pid)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert not Path(f"/proc/{int(done.stdout)}").exists() and not done.stderr


def test_a_fork_of_the_trainer_has_warm_processes_of_its_own(warm_pid: int) -> None:
    def act() -> None:
        assert not warm._PROCESSES
        ok = run("pass").ok
        mine = warm._PROCESSES[LIBRARY, True].process.pid
        warm.close_all()
        raise SetupError(f"{ok} {mine != warm_pid}")

    assert in_a_fork(act) == "True True"
    assert warm._PROCESSES[LIBRARY, True].process.pid == warm_pid and run("pass").ok


def test_threads_take_turns(warm_pid: int) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = pool.map(run, [f"print({i})" for i in range(8)])
        assert [result.stdout for result in results] == [f"{i}\n" for i in range(8)]
