"""Runs inside the sandbox: takes on the limits, calls one function, reports what it returned.

What a program prints goes nowhere; the report goes out by a descriptor of its own, marked with a token that
came in with the job.
"""

import json
import os
import resource
import sys
from typing import Any


def enter() -> None:
    """Read a job from standard input, do it, and end the process."""
    job: dict[str, Any] = json.load(sys.stdin)
    token, write, leave = job["token"], os.write, os._exit
    _become(job["uid"])
    _limit(job["limits"])
    report_to = os.dup(1)
    os.set_inheritable(report_to, False)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nowhere, standard)
    write(report_to, f"{token} started\n".encode())
    scope: dict[str, Any] = {"__name__": "inside"}
    exec(compile(job.pop("source"), "<inside>", "exec"), scope)
    report: dict[str, Any] = {"value": None, "error": None}
    try:
        report["value"] = scope["main"](job.pop("data"))
    except BaseException as error:
        report["error"] = _in_words(error)
    write(report_to, f"\n{token} {json.dumps(report)}\n".encode())
    leave(0)


def _become(uid: int | None) -> None:
    """Stop being root: the kernel does not hold root to a number of processes."""
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)


def _limit(limits: dict[str, list[int]]) -> None:
    for name, (soft, hard) in limits.items():
        resource.setrlimit(getattr(resource, name), (soft, hard))


def _in_words(error: BaseException) -> str:
    """Return kind and text of an error, which may be of a class that lies about itself."""
    try:
        return f"{type(error).__name__}: {error}"[:200].rstrip(": ")
    except BaseException:
        return "an error without a text"


if __name__ == "__main__":
    enter()
