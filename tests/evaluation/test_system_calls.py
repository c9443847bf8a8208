"""The filter of system calls: numbers against the kernel's headers, decisions by running the program."""

import re
import struct
from pathlib import Path

import pytest

from kshot.evaluation.system_calls import CLONE, CLONE3, CLONE_THREAD, FORBIDDEN, MACHINES, system_call_filter

HEADERS = {
    "x86_64": Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h"),
    "aarch64": Path("/usr/include/asm-generic/unistd.h"),
}
ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000


@pytest.mark.parametrize("machine", MACHINES)
def test_against_kernel_headers(machine: str) -> None:
    if not HEADERS[machine].exists():
        pytest.skip(f"no {HEADERS[machine]}: apt-get install linux-libc-dev")
    found = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADERS[machine].read_text()))
    column = MACHINES[machine].column
    calls = {name: numbers[column] for name, numbers in FORBIDDEN.items()}
    calls |= {"clone": CLONE[column], "clone3": CLONE3}
    if "memfd_secret" not in found:  # headers older than Linux 5.14
        del calls["memfd_secret"]
    assert {name: found.get(name) and int(found[name]) for name in calls} == calls


@pytest.mark.parametrize("machine", MACHINES)
def test_decisions(machine: str) -> None:
    program = system_call_filter(machine)
    assert program is not None
    column, audit = MACHINES[machine].column, MACHINES[machine].audit
    for numbers in FORBIDDEN.values():
        if numbers[column] is not None:
            assert _run(program, numbers[column], audit) == EPERM
    assert _run(program, CLONE[column], audit, 17) == EPERM  # SIGCHLD alone: fork
    assert _run(program, CLONE[column], audit, CLONE_THREAD | 0xF00) == ALLOW
    assert _run(program, CLONE3, audit) == ENOSYS
    assert _run(program, 0x40000000 + 41, audit) == ENOSYS
    assert _run(program, 0, audit) == ALLOW
    assert _run(program, 0, 0x40000003) == KILL  # i386


def test_no_table_for_other_processors() -> None:
    assert system_call_filter("riscv64") is None


def _run(program: bytes, number: int, audit: int, first_argument: int = 0) -> int:
    """Interpret classic BPF as the kernel does."""
    fields = {0: number, 4: audit, 16: first_argument}
    instructions = list(struct.iter_unpack("<HBBI", program))
    at = held = 0
    while True:
        code, if_true, if_false, k = instructions[at]
        at += 1
        if code == 0x06:
            return k
        if code == 0x20:
            held = fields[k]
        else:
            holds = {0x15: held == k, 0x35: held >= k, 0x45: bool(held & k)}[code]
            at += if_true if holds else if_false
