"""The bubblewrap command: what a sandboxed program sees, and who it is."""

import itertools
import os
import sys
from functools import cache
from pathlib import Path

NOBODY = 65534
PYTHON_FLAGS = ("-s", "-S", "-P", "-B")  # no site-packages, no folder of its own on the path
_FIRST_UID = 2**30  # far from any user's; each run takes its own, as the kernel counts processes by user
_RUNS_AT_ONCE = 64  # of one process; a uid comes round again after so many
_EVERY_UID = "0 0 4294967295"  # /proc/self/uid_map outside of containers that rename users
_DEVICES = ("null", "zero", "random", "urandom")

_runs = itertools.count()


def bubblewrap_command(bwrap: str, code: str, *, tmp_bytes: int, filter_fd: int | None) -> list[str]:
    """Return the command that runs Python code in a sandbox.

    Args:
        bwrap: The program.
        code: For `python -c`; where `uid_to_become` names a user, it must become that before all else.
        tmp_bytes: Of /tmp, the one folder that can be written to.
        filter_fd: Inherited descriptor of a filter of system calls.
    """
    who = ["--unshare-user", "--uid", str(NOBODY), "--gid", str(NOBODY), "--cap-drop", "ALL"]
    if is_root_outside():
        who = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return [
        bwrap, "--die-with-parent", "--new-session", *who,
        "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
        *_seen_folders(),
        "--perms", "1777", "--size", str(tmp_bytes), "--tmpfs", "/tmp",
        "--remount-ro", "/",  # the root is a tmpfs too, and of any size
        "--chdir", "/tmp",
        *([] if filter_fd is None else ["--seccomp", str(filter_fd)]),
        str(_inside_path(interpreter())), *PYTHON_FLAGS, "-c", code,
    ]  # fmt: skip


def uid_to_become() -> int | None:
    """Return the user that the next program must become itself; None where bubblewrap sees to it.

    A user namespace leaves root what it is for the kernel, which holds root to no number of processes.
    """
    if not is_root_outside():
        return None
    return _FIRST_UID + os.getpid() * _RUNS_AT_ONCE + next(_runs) % _RUNS_AT_ONCE


@cache
def is_root_outside() -> bool:
    """Whether this process is root of the machine, and not of a container that renames users."""
    if os.geteuid() != 0:
        return False
    return " ".join(Path("/proc/self/uid_map").read_text().split()) == _EVERY_UID


@cache
def interpreter() -> Path:
    """Return the interpreter below any virtual environment: its folder holds nothing of this project."""
    folder = Path(sys.base_prefix).resolve() / "bin"
    names = (f"python{sys.version_info.major}.{sys.version_info.minor}", "python3", "python")
    return next((folder / name for name in names if (folder / name).exists()), Path(sys.executable))


def _inside_path(path: Path) -> Path:
    return path if path.is_relative_to("/usr") else Path("/python") / path.relative_to(path.parents[1])


@cache
def _seen_folders() -> tuple[str, ...]:
    """Return the options for all that a program sees: /usr, its Python, four devices."""
    options = ["--ro-bind", "/usr", "/usr"]
    for name in ("lib", "lib32", "lib64"):
        folder = Path("/", name)
        if folder.is_symlink():
            options += ["--symlink", str(folder.readlink()), str(folder)]
        elif folder.is_dir():
            options += ["--ro-bind", str(folder), str(folder)]
    prefix = interpreter().parents[1]
    if not prefix.is_relative_to("/usr"):
        options += ["--ro-bind", str(prefix), "/python"]
    options += ["--setenv", "LD_LIBRARY_PATH", str(_inside_path(interpreter()).parents[1] / "lib")]
    options += ["--perms", "0755", "--dir", "/etc"]
    options += ["--ro-bind-try", "/etc/ld.so.cache", "/etc/ld.so.cache"]
    options += ["--perms", "0755", "--dir", "/dev"]
    for device in _DEVICES:
        options += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return tuple(options)
