"""The sandbox against programs that attack it, each as the body of `main`."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from kshot.errors import SandboxError
from kshot.evaluation import sandbox
from kshot.evaluation.sandbox import Limits, Outcome, Sandbox, open_sandbox, unsafe_code


def _attack(box: Sandbox, body: str) -> Outcome:
    return box.run("def main(data):\n" + textwrap.indent(textwrap.dedent(body), "    "), None)


def test_roundtrip_of_data(quick: Sandbox) -> None:
    assert quick.run("def main(data): return data[::-1]", [1, "ä\n", None]) == Outcome([None, "ä\n", 1], None)


def test_hashes_are_the_same_each_time(quick: Sandbox) -> None:
    assert len({_attack(quick, "return hash('abc')").value for _ in range(2)}) == 1


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("import os\nwhile True: os.fork()", "Operation not permitted"),
        ("while True: pass", "used up its processor time"),
        ("x = bytearray(10 * 2**30)", "MemoryError"),
        # on a machine short of memory, pages come so slowly that the other limit is met first
        ("x = []\nwhile True: x.append(bytearray(10**7))", "MemoryError or used up its processor time"),
        ("open('/x', 'w')", "Read-only file system"),
        ("open('/usr/x', 'w')", "Read-only file system"),
        ("open('/dev/x', 'w')", "Read-only file system"),
        ("import sys; open(sys.prefix + '/x', 'w')", "Read-only file system"),
        ("while True: print('x' * 1000)", "used up its processor time"),
        (
            """
            import os
            while True:
                for fd in range(3, 9):
                    try: os.write(fd, b'x' * 10000)
                    except OSError: pass
            """,
            "wrote more than 65536 bytes",
        ),
        ("import socket; socket.create_connection(('1.1.1.1', 53), timeout=1)", "Operation not permitted"),
        ("import socket; socket.socket(socket.AF_UNIX)", "Operation not permitted"),
        ("import subprocess; subprocess.run(['/usr/bin/id'])", "Operation not permitted"),
        ("import os; os.setuid(0)", "Error"),
        ("import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1))", "not allowed to raise maximum limit"),
        ("import os; os.memfd_create('x')", "Operation not permitted"),
        ("for i in range(99): open(f'/tmp/{i}', 'w').write('x' * 10**6)", "No space left on device"),
        ("with open('/tmp/x', 'wb') as f:\n  f.seek(10**9); f.write(b'x'); f.flush()", "File too large"),
        ("import os; os._exit(0)", "ended with code 0 before it was done"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import ctypes; ctypes.string_at(0)", "died of SIGSEGV"),
        ("class E(Exception):\n  def __str__(self): raise self\nraise E", "an error without a text"),
    ],
)  # fmt: skip
def test_attacks_fail(quick: Sandbox, body: str, problem: str) -> None:
    outcome = _attack(quick, body)
    assert outcome.value is None
    assert any(one in (outcome.problem or "") for one in problem.split(" or "))


def test_a_program_that_waits_is_killed() -> None:
    _real_or_skip()
    box = Sandbox(Limits(wall_s=4), open_sandbox()._bwrap, open_sandbox()._filter)
    started = time.monotonic()
    assert _attack(box, "import time; time.sleep(60)").problem == "ran longer than 4 s"
    assert time.monotonic() - started < 30


def test_a_program_that_closes_its_output_and_waits_is_killed() -> None:
    _real_or_skip()
    box = Sandbox(Limits(wall_s=4), open_sandbox()._bwrap, open_sandbox()._filter)
    body = "import os, time\nos.closerange(0, 64)\ntime.sleep(60)"
    assert _attack(box, body).problem == "ran longer than 4 s"


def test_it_sees_nothing_of_this_machine(
    quick: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_SECRET", "x")
    (tmp_path / "secret").write_text("x")
    places = [
        str(Path.home()),
        "/root",
        "/home",
        "/etc/passwd",
        "/proc/1",
        "/var",
        "/run",
        str(tmp_path / "secret"),
    ]
    body = f"""
    import os
    return [[place for place in {places!r} if os.path.exists(place)], os.listdir('/tmp'), sorted(os.environ),
            os.getpid(), os.getuid(), os.path.expanduser('~')]
    """
    seen, own, variables, pid, uid, home = _attack(quick, body).value
    assert (seen, own, home) == ([], [], "~")
    assert "A_SECRET" not in variables
    assert pid < 10
    assert uid not in (0, os.getuid())


def test_the_interpreter_of_the_project_is_not_there(quick: Sandbox) -> None:
    body = f"import os, sys; return os.path.exists({sys.prefix!r}) or 'site-packages' in str(sys.path)"
    assert sys.prefix == sys.base_prefix or _attack(quick, body).value is False


@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1"])
def test_it_cannot_kill_what_started_it(quick: Sandbox, target: str) -> None:
    own, beside = os.getpid(), subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"])
    try:
        body = f"""
        import os, signal
        for pid in ({target}, {own}, {beside.pid}):
            try: os.kill(pid, signal.SIGKILL)
            except OSError: pass
        return 'tried'
        """
        assert _attack(quick, body).value in ("tried", None)
        assert beside.poll() is None
    finally:
        beside.kill()
        beside.wait()
    assert _attack(quick, "return 1").value == 1


def test_threads_are_limited(quick: Sandbox) -> None:
    body = """
    import threading, time
    threading.stack_size(65536)
    for count in range(1000):
        try: threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        except RuntimeError: return count
    """
    assert 1 <= _attack(quick, body).value <= quick.limits.threads


def test_processes_are_limited_without_the_filter(quick: Sandbox) -> None:
    box = Sandbox(quick.limits, quick._bwrap, None)
    body = """
    import os
    for count in range(1000):
        try:
            if os.fork() == 0:
                while True: pass
        except OSError: return count
    """
    assert 1 <= _attack(box, body).value <= box.limits.threads


def test_memory_outside_of_address_spaces_is_refused(quick: Sandbox) -> None:
    body = """
    import ctypes
    libc = ctypes.CDLL(None, use_errno=True)
    mounted = libc.mount(b'x', b'/tmp', b'tmpfs', 0, None)
    return [libc.shmget(0, 10**8, 0o1600), libc.unshare(0x10000000), mounted]
    """
    if quick._filter is None:
        pytest.skip("no filter of system calls for this processor")
    assert _attack(quick, body).value == [-1, -1, -1]


def test_without_bubblewrap_it_refuses_unless_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    message = r"expected bubblewrap .*\(Debian: apt-get install bubblewrap\); or add --allow-unsafe-code"
    with pytest.raises(SandboxError, match=message):
        open_sandbox()
    with unsafe_code(True):
        assert not open_sandbox().isolated
    with pytest.raises(SandboxError, match=message):
        open_sandbox()


def test_a_bubblewrap_that_fails_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2; exit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(SandboxError, match=r"fails here \(bwrap: No permissions to create new namespace\)"):
        open_sandbox()


def test_bubblewrap_is_taken_even_where_it_need_not_be() -> None:
    _real_or_skip()
    with unsafe_code(True):
        assert open_sandbox().isolated


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ("while True: pass", "used up its processor time"),
        ("x = bytearray(10 * 2**30)", "MemoryError"),
        ("import os; os._exit(0)", "ended with code 0 before it was done"),
    ],
)
def test_limits_hold_without_bubblewrap(body: str, problem: str) -> None:
    outcome = _attack(Sandbox(Limits(cpu_s=1, wall_s=30), None), body)
    assert (outcome.value, outcome.problem) == (None, problem)


def test_what_a_program_left_behind_is_killed_without_bubblewrap(tmp_path: Path) -> None:
    body = """
    import os, time
    pid = os.fork()
    if pid == 0:
        os.closerange(0, 64)
        time.sleep(60)
    return pid
    """
    pid = _attack(Sandbox(Limits(), None), body).value
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_running(pid):
        time.sleep(0.05)
    assert not _is_running(pid)


def test_a_report_that_is_no_json_is_no_verdict() -> None:
    outcome = sandbox._outcome("abc started\nabc {nonsense\n", "abc", "died")
    assert outcome == Outcome(None, "wrote a report of its own")


def _is_running(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return False


def _real_or_skip() -> None:
    try:
        open_sandbox()
    except SandboxError as error:
        pytest.skip(str(error))
