"""Run what a model wrote without trusting it: bubblewrap, limits of the kernel, and a time limit from outside.

A program in the sandbox sees a read-only /usr and Python, an empty /tmp of its own, four devices, and nothing else: no
home, no /etc, no /proc, no network, no other process, no variable of the environment. It is nobody, holds no
privilege and can gain none. Processor time, memory, files, threads and output are limited; processes and sockets
of its own it cannot have (`system_calls`).

What remains: the kernel itself is trusted, and kernel memory (such as of a million empty files) is bounded by the
processor time alone. On processors without a table in `system_calls` memory in System V segments is not bounded.
"""

import itertools
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from kshot.errors import SandboxError
from kshot.evaluation.system_calls import system_call_filter

_NOBODY = 65534
_FIRST_UID = 2**30  # far from any user's; each run takes its own, as the kernel counts processes by user
_RUNS_AT_ONCE = 64  # of one process; a uid comes round again after so many
_EVERY_UID = "0 0 4294967295"  # /proc/self/uid_map outside of containers that rename users
_MB = 2**20
_POLL_S = 0.002  # between the last byte and the end of a process lies less than this


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_s: Seconds of processor time; the slowest reference program of MBPP's test rows takes 3.2.
        wall_s: Seconds until it is killed; three times as long, so that a busy machine changes no verdict.
        memory_mb: Address space; the interpreter alone takes 15.
        file_mb: Its folder, which lies in memory.
        threads: At once.
        open_files: At once.
        output_bytes: Of a report; whoever writes more is killed.
    """

    cpu_s: int = 10
    wall_s: float = 30.0
    memory_mb: int = 1024
    file_mb: int = 16
    threads: int = 32
    open_files: int = 64
    output_bytes: int = 65536

    def of_process(self, *, counted: bool) -> dict[str, tuple[int, int]]:
        """Return soft and hard limits by their names in `resource`.

        Args:
            counted: Whether threads are counted for this program alone, and not for a whole user.
        """
        limits = {
            "RLIMIT_CPU": (self.cpu_s, self.cpu_s + 1),  # a signal first, which tells this from other deaths
            "RLIMIT_AS": (self.memory_mb * _MB,) * 2,
            "RLIMIT_FSIZE": (self.file_mb * _MB,) * 2,
            "RLIMIT_NOFILE": (self.open_files,) * 2,
            "RLIMIT_CORE": (0, 0),
        }
        return limits | ({"RLIMIT_NPROC": (self.threads,) * 2} if counted else {})


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended.

    Attributes:
        value: What `main` returned.
        problem: Why it returned nothing; None where it did.
    """

    value: Any
    problem: str | None


class Sandbox:
    """Runs Python source; may be used by several threads at once.

    Args:
        limits: Of each run.
        bwrap: The bubblewrap program; None runs with the rights of this process, under the limits alone.
        call_filter: See `system_calls`; only with bubblewrap.
    """

    def __init__(self, limits: Limits, bwrap: str | None, call_filter: bytes | None = None) -> None:
        self.limits = limits
        self._bwrap = bwrap
        self._filter = call_filter
        self._launcher = _text_of("inside.py")
        self._steps_down = bwrap is not None and _is_root_outside()
        self._runs = itertools.count()

    @property
    def isolated(self) -> bool:
        """Whether bubblewrap stands between the program and this machine."""
        return self._bwrap is not None

    def run(self, source: str, data: Any) -> Outcome:
        """Call `main(data)` of some source in a fresh interpreter.

        Args:
            source: Trusted, stands by itself, and defines `main`, which may run what is not trusted.
            data: What JSON can say.

        Raises:
            SandboxError: The sandbox could not be started, so that nothing is known of the program.
        """
        token = secrets.token_hex(16)
        limits = self.limits.of_process(counted=self.isolated)
        uid = None
        if self._steps_down:
            uid = _FIRST_UID + os.getpid() * _RUNS_AT_ONCE + next(self._runs) % _RUNS_AT_ONCE
        job = {"token": token, "limits": limits, "uid": uid, "source": source, "data": data}
        with (
            _file_of(json.dumps(job).encode()) as job_file,
            _file_of(self._filter or b"") as filter_file,
            tempfile.TemporaryDirectory(prefix="kshot-run-") as folder,
        ):
            process = subprocess.Popen(
                self._command(filter_file.fileno()),
                stdin=job_file,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},
                pass_fds=[filter_file.fileno()] if self.isolated else [],
                start_new_session=True,
            )
            try:
                output, problem = _read(process, self.limits)
            finally:
                _kill(process)
        return _outcome(output.decode(errors="replace"), token, problem or _how_it_died(process.returncode))

    def _command(self, filter_fd: int) -> list[str]:
        # No site-packages (-S, -s), no folder of its own on the path (-P).
        python = [*_PYTHON_FLAGS, "-c", self._launcher]
        if self._bwrap is None:
            return [str(_interpreter()), *python]
        who = ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY), "--cap-drop", "ALL"]
        if (
            self._steps_down
        ):  # real root keeps what it takes to become nobody, and does so before anything runs
            who = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        calls = [] if self._filter is None else ["--seccomp", str(filter_fd)]
        size = str(self.limits.file_mb * _MB)
        return [
            self._bwrap, "--die-with-parent", "--new-session", *who,
            "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
            *_seen_folders(),
            "--perms", "1777", "--size", size, "--tmpfs", "/tmp",
            "--remount-ro", "/",  # the root is a tmpfs too, and of any size
            "--chdir", "/tmp", *calls,
            str(_inside_path(_interpreter())), *python,
        ]  # fmt: skip


_PYTHON_FLAGS = ["-s", "-S", "-P", "-B"]
_allowed = False


@contextmanager
def unsafe_code(allowed: bool) -> Iterator[None]:
    """Let programs run without bubblewrap, where it is absent, while the context lasts.

    It counts for the whole process: scorers run in threads.
    """
    global _allowed
    before, _allowed = _allowed, allowed
    try:
        yield
    finally:
        _allowed = before


def open_sandbox(limits: Limits | None = None) -> Sandbox:
    """Return a sandbox that works here; the first call tries it.

    Raises:
        SandboxError: There is no bubblewrap, or it cannot make a sandbox here, and `unsafe_code` does not allow to
            run without.
    """
    return _open(limits or Limits(), _allowed)


@cache
def _open(limits: Limits, unsafe: bool) -> Sandbox:
    bwrap = shutil.which("bwrap")
    problem = "there is none here: install it (Debian: apt-get install bubblewrap)"
    if bwrap is not None:
        sandbox = Sandbox(limits, bwrap, system_call_filter())
        try:
            sandbox.run("def main(data): return data", None)
        except SandboxError as error:
            problem = f"{error}: let it have user namespaces, which containers often withhold"
        else:
            return sandbox
    if unsafe:
        return Sandbox(limits, None)
    raise SandboxError(
        f"what a model wrote runs in bubblewrap alone, and {problem}; "
        "or add --allow-unsafe-code, which runs it with your rights"
    )


def _text_of(name: str) -> str:
    return files("kshot.evaluation").joinpath(name).read_text(encoding="utf-8")


@cache
def _is_root_outside() -> bool:
    """Whether this process is root of the machine, whom a user namespace would leave root for the kernel."""
    if os.geteuid() != 0:
        return False
    return " ".join(Path("/proc/self/uid_map").read_text().split()) == _EVERY_UID


@cache
def _interpreter() -> Path:
    """Return the interpreter below any virtual environment: its folder holds nothing of this project."""
    prefix = Path(sys.base_prefix).resolve()
    names = (f"python{sys.version_info.major}.{sys.version_info.minor}", "python3", "python")
    found = [prefix / "bin" / name for name in names if (prefix / "bin" / name).exists()]
    return found[0] if found else Path(sys.executable)


def _inside_path(path: Path) -> Path:
    return path if path.is_relative_to("/usr") else Path("/python") / path.relative_to(path.parents[1])


@cache
def _seen_folders() -> tuple[str, ...]:
    """Return bubblewrap's options for all that a program sees."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib32", "lib64"):
        folder = Path("/", name)
        if folder.is_symlink():
            options += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            options += ["--ro-bind", str(folder), str(folder)]
    options += ["--perms", "0755", "--dir", "/etc", "--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    prefix = _interpreter().parents[1]
    if not prefix.is_relative_to("/usr"):
        options += ["--ro-bind", str(prefix), "/python"]
    options += ["--setenv", "LD_LIBRARY_PATH", str(_inside_path(_interpreter()).parents[1] / "lib")]
    options += ["--perms", "0755", "--dir", "/dev"]
    for device in ("null", "zero", "random", "urandom"):
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return tuple(options)


def _file_of(content: bytes) -> Any:
    """Return an open file of some bytes, at its beginning: unlike a pipe it never waits for a reader."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(content)
    file.seek(0)
    return file


def _read(process: subprocess.Popen[bytes], limits: Limits) -> tuple[bytes, str | None]:
    """Return what a process wrote until it ended, and why it was not waited for any longer."""
    assert process.stdout is not None
    ends, output = time.monotonic() + limits.wall_s, b""
    with process.stdout as pipe, selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while len(output) <= limits.output_bytes:
            if not ready.select(max(0.0, ends - time.monotonic())):
                return output, f"ran longer than {limits.wall_s:g} s"
            part = os.read(pipe.fileno(), 65536)
            if not part:
                break
            output += part
        else:
            return output, f"wrote more than {limits.output_bytes} bytes"
    while not _has_ended(process):  # whoever closes the pipe may still go on
        if time.monotonic() > ends:
            return output, f"ran longer than {limits.wall_s:g} s"
        time.sleep(_POLL_S)
    return output, None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Look without reaping: until then no other process can have its number, and `_kill` hits the right one."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started; bubblewrap's end takes its namespace along."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _how_it_died(code: int) -> str:
    number = -code if code < 0 else code - 128  # bubblewrap says 128 and the signal
    if number == signal.SIGXCPU:
        return "used up its processor time"
    known = number in set(signal.Signals)
    return f"died of {signal.Signals(number).name}" if known else f"ended with code {code} before it was done"


def _outcome(output: str, token: str, death: str) -> Outcome:
    lines = output.splitlines()
    if f"{token} started" not in lines:
        said = next((line for line in reversed(lines) if line.strip()), death)
        raise SandboxError(said)
    reports = [line.removeprefix(f"{token} ") for line in lines[1:] if line.startswith(f"{token} {{")]
    if not reports:
        return Outcome(None, death)
    try:
        report = json.loads(reports[-1])
        return Outcome(report["value"], report["error"])
    except (ValueError, TypeError, KeyError):  # a program that found the token, and used it badly
        return Outcome(None, "wrote a report of its own")
