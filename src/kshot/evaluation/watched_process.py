"""A process that is not trusted, watched from outside until it ends: by the clock, and by what it writes."""

import os
import selectors
import signal
import subprocess
import time

_POLL_S = 0.002  # between the last byte and the end of a process lies less than this


def read_to_end(
    process: subprocess.Popen[bytes], *, wall_s: float, output_bytes: int
) -> tuple[bytes, str | None]:
    """Return what a process wrote until it ended, and why it was not waited for any longer; None if it ended.

    Args:
        process: Its standard output is a pipe. It is not reaped.
        wall_s: Seconds that it may take.
        output_bytes: That it may write.
    """
    assert process.stdout is not None
    ends, output = time.monotonic() + wall_s, b""
    too_long = f"ran longer than {wall_s:g} s"
    with process.stdout as pipe, selectors.DefaultSelector() as ready:
        ready.register(pipe, selectors.EVENT_READ)
        while len(output) <= output_bytes:
            if not ready.select(max(0.0, ends - time.monotonic())):
                return output, too_long
            part = os.read(pipe.fileno(), 65536)
            if not part:
                break
            output += part
        else:
            return output, f"wrote more than {output_bytes} bytes"
    while not _has_ended(process):  # whoever closes the pipe may still go on
        if time.monotonic() > ends:
            return output, too_long
        time.sleep(_POLL_S)
    return output, None


def _has_ended(process: subprocess.Popen[bytes]) -> bool:
    """Look without reaping: until then no other process has its number, and `kill` hits the right one."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process with all that it started; bubblewrap's end takes its namespace along."""
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def how_it_died(code: int) -> str:
    """Say it in words, from an exit code as subprocess or bubblewrap give it."""
    number = -code if code < 0 else code - 128  # bubblewrap says 128 and the signal
    if number == signal.SIGXCPU:
        return "used up its processor time"
    known = number in set(signal.Signals)
    return f"died of {signal.Signals(number).name}" if known else f"ended with code {code} before it was done"
