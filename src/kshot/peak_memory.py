"""The most memory that this process has held so far."""

import sys

import psutil
import torch


def peak_memory() -> dict[str, float]:
    """Return `peak_memory_mb` and, with a CUDA device, `peak_accelerator_mb`, in MiB.

    The system keeps one peak a process, which only rises: that of a stage counts what came before it too. It
    is left out where the system does not tell.
    """
    found = {}
    peak_bytes = _peak_bytes()
    if peak_bytes is not None:
        found["peak_memory_mb"] = round(peak_bytes / 2**20, 1)
    if torch.cuda.is_available():
        found["peak_accelerator_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return found


def _peak_bytes() -> int | None:
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    import resource  # there is none on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # in bytes on macOS, in KiB elsewhere
