"""System calls that a sandboxed program may not make, as a filter that the Linux kernel runs (seccomp).

Namespaces and limits leave gaps that this closes: memory that belongs to no address space (System V segments,
memfd), processes beyond a limit that the kernel does not hold root's to, sockets of families that a network
namespace does not contain (AF_VSOCK reaches the host of a virtual machine), namespaces of the program's own.
"""

import errno
import platform
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Machine:
    """How the kernel of one processor family names itself and numbers its calls.

    Attributes:
        audit: `AUDIT_ARCH_*` of linux/audit.h.
        column: Of `FORBIDDEN`.
    """

    audit: int
    column: int


MACHINES: Mapping[str, Machine] = MappingProxyType(
    {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}
)

# Numbers of x86_64 and aarch64: Linux's asm/unistd_64.h and asm-generic/unistd.h; None: no such call.
FORBIDDEN: Mapping[str, tuple[int | None, int | None]] = MappingProxyType(
    {
        "fork": (57, None),
        "vfork": (58, None),
        "socket": (41, 198),
        "shmget": (29, 194),
        "semget": (64, 190),
        "msgget": (68, 186),
        "mq_open": (240, 180),
        "memfd_create": (319, 279),
        "memfd_secret": (447, 447),
        "unshare": (272, 97),
        "setns": (308, 268),
        "mount": (165, 40),
        "umount2": (166, 39),
        "pivot_root": (155, 41),
        "chroot": (161, 51),
        "open_tree": (428, 428),
        "move_mount": (429, 429),
        "fsopen": (430, 430),
        "fsconfig": (431, 431),
        "fsmount": (432, 432),
        "fspick": (433, 433),
        "mount_setattr": (442, 442),
        "ptrace": (101, 117),
        "process_vm_readv": (310, 270),
        "process_vm_writev": (311, 271),
        "kcmp": (312, 272),
        "add_key": (248, 217),
        "request_key": (249, 218),
        "keyctl": (250, 219),
        "bpf": (321, 280),
        "perf_event_open": (298, 241),
        "userfaultfd": (323, 282),
        "io_uring_setup": (425, 425),
        "io_uring_enter": (426, 426),
        "io_uring_register": (427, 427),
    }
)
CLONE, CLONE3 = (56, 220), 435
CLONE_THREAD = 0x10000
_X32 = 0x40000000  # numbers from here on are x86_64's second set, by which the table could be passed by

# struct seccomp_data: number, architecture, instruction pointer, arguments
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def system_call_filter(machine: str | None = None) -> bytes | None:
    """Return the filter as classic BPF, None where this family of processors has no table here.

    A forbidden call fails with EPERM. `clone` may start threads, not processes; `clone3`, whose flags a
    filter cannot see, fails with ENOSYS, upon which the C library takes `clone`. A call in the numbering of
    another family ends the program.

    Args:
        machine: As `platform.machine()` says, which is the default.
    """
    known = MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    refuse = (_RETURN, 0, 0, _ERRNO | errno.EPERM)
    unknown = (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, known.audit),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        unknown,
        (_EQUAL, 0, 1, CLONE3),
        unknown,
    ]
    for numbers in FORBIDDEN.values():
        if (number := numbers[known.column]) is not None:
            program += [(_EQUAL, 0, 1, number), refuse]
    program += [
        (_EQUAL, 0, 3, CLONE[known.column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_ANY_BIT, 1, 0, CLONE_THREAD),
        refuse,
        (_RETURN, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)
