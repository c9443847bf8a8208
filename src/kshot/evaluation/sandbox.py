"""Run what a model wrote without trusting it: bubblewrap, limits of the kernel, a time limit from outside.

A program in the sandbox sees a read-only /usr and Python, an empty /tmp of its own, four devices, and nothing
else: no home, no /etc, no /proc, no network, no other process, no variable of the environment. It is nobody,
holds no privilege and can gain none. Processor time, memory, files, threads and output are limited; it can
have no processes and no sockets of its own (`system_calls`).

What remains: the kernel itself is trusted, and its own memory (such as of a million empty files) is bounded
by the processor time alone. On processors without a table in `system_calls`, System V segments are not
bounded.
"""

import json
import secrets
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from kshot.errors import SandboxError
from kshot.evaluation.bubblewrap import PYTHON_FLAGS, bubblewrap_command, interpreter, uid_to_become
from kshot.evaluation.inside import text_of
from kshot.evaluation.system_calls import system_call_filter
from kshot.evaluation.watched_process import how_it_died, kill, read_to_end

_MB = 2**20


@dataclass(frozen=True, slots=True)
class Limits:
    """What one program may use.

    Attributes:
        cpu_s: Seconds of processor time; the slowest reference program of MBPP's test rows takes 3.2.
        wall_s: Seconds until it is killed; six times as long, so that a busy machine changes no verdict.
        memory_mb: Address space; the interpreter alone takes 15.
        file_mb: Its folder, which lies in memory.
        threads: At once.
        open_files: At once.
        output_bytes: Of a report; whoever writes more is killed.
    """

    cpu_s: int = 10
    wall_s: float = 60.0
    memory_mb: int = 1024
    file_mb: int = 16
    threads: int = 32
    open_files: int = 64
    output_bytes: int = 65536

    def of_process(self, *, alone: bool) -> dict[str, tuple[int, int]]:
        """Return soft and hard limits by their names in `resource`.

        Args:
            alone: Whether the program has a user to itself, by whom threads are counted.
        """
        limits = {
            "RLIMIT_CPU": (self.cpu_s, self.cpu_s + 1),  # a signal first, which tells this from other deaths
            "RLIMIT_AS": (self.memory_mb * _MB,) * 2,
            "RLIMIT_FSIZE": (self.file_mb * _MB,) * 2,
            "RLIMIT_NOFILE": (self.open_files,) * 2,
            "RLIMIT_CORE": (0, 0),
        }
        return limits | ({"RLIMIT_NPROC": (self.threads,) * 2} if alone else {})


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
        call_filter: See `system_calls`; needs bubblewrap.
    """

    def __init__(self, limits: Limits, bwrap: str | None, call_filter: bytes | None = None) -> None:
        self.limits = limits
        self._bwrap = bwrap
        self._filter = call_filter

    @property
    def isolated(self) -> bool:
        """Whether bubblewrap stands between a program and this machine."""
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
        job = {
            "token": token,
            "limits": self.limits.of_process(alone=self.isolated),
            "uid": uid_to_become() if self.isolated else None,
            "source": source,
            "data": data,
        }
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
                env={"PATH": "/usr/bin:/bin", "PYTHONHASHSEED": "0"},  # sets in one order: one verdict
                pass_fds=[filter_file.fileno()] if self._filter else [],
                start_new_session=True,
            )
            try:
                output, problem = read_to_end(
                    process, wall_s=self.limits.wall_s, output_bytes=self.limits.output_bytes
                )
            finally:
                kill(process)
        death = problem or how_it_died(process.returncode)
        return _outcome(output.decode(errors="replace"), token, death)

    def _command(self, filter_fd: int) -> list[str]:
        launcher = text_of("enter")
        if self._bwrap is None:
            return [str(interpreter()), *PYTHON_FLAGS, "-c", launcher]
        return bubblewrap_command(
            self._bwrap,
            launcher,
            tmp_bytes=self.limits.file_mb * _MB,
            filter_fd=filter_fd if self._filter else None,
        )


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


def allows_unsafe_code() -> bool:
    """Whether an `unsafe_code` lasts that allows it."""
    return _allowed


def open_sandbox() -> Sandbox:
    """Return a sandbox that works here; the first call tries it.

    Raises:
        SandboxError: There is no bubblewrap, or it cannot make a sandbox here, and `unsafe_code` does not
            allow to run without.
    """
    return _open(_allowed)


@cache
def _open(unsafe: bool) -> Sandbox:
    bwrap = shutil.which("bwrap")
    problem = "there is none here: install it (Debian: apt-get install bubblewrap)"
    if bwrap is not None:
        sandbox = Sandbox(Limits(), bwrap, system_call_filter())
        try:
            sandbox.run("def main(data): return data", None)
        except SandboxError as error:
            problem = f"it fails here ({error}): let it have user namespaces, which containers often withhold"
        else:
            return sandbox
    if unsafe:
        return Sandbox(Limits(), None)
    raise SandboxError(
        f"expected bubblewrap to run what models write; {problem}; "
        "or add --allow-unsafe-code, which runs it with your own rights"
    )


def _file_of(content: bytes) -> Any:
    """Return an open file of some bytes, at its beginning: unlike a pipe it never waits for a reader."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    file.write(content)
    file.seek(0)
    return file


def _outcome(output: str, token: str, death: str) -> Outcome:
    lines = output.splitlines()
    if f"{token} started" not in lines:
        raise SandboxError(next((line for line in reversed(lines) if line.strip()), death))
    reports = [line.removeprefix(f"{token} ") for line in lines if line.startswith(f"{token} {{")]
    if not reports:
        return Outcome(None, death)
    try:
        report = json.loads(reports[-1])
        return Outcome(report["value"], report["error"])
    except (ValueError, TypeError, KeyError):  # a program that found the token, and used it badly
        return Outcome(None, "wrote a report of its own")
