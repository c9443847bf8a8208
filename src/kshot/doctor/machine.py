"""The machine: Python, accelerator, processor, memory."""

import platform
from pathlib import Path
from typing import Any

import psutil
import torch

from kshot.doctor.finding import Finding

LEAST_MEMORY_GB = 2.0  # SmolLM2-135M in float32 takes 0.5, a batch of scoring 1, the libraries 0.5
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def check_machine() -> list[Finding]:
    """Look at what computes."""
    return [_python(), _accelerator(), _processor(), _memory()]


def _python() -> Finding:
    return Finding("Python", "ok", f"{platform.python_version()} on {platform.platform(terse=True)}")


def _accelerator() -> Finding:
    if not torch.accelerator.is_available():
        advice = "" if _cuda_is_built() else "a GPU needs a torch that is built for it: see pytorch.org"
        return Finding("accelerator", "ok", "none; the CPU computes", advice, {"device": "cpu"})
    if torch.cuda.is_available():
        devices = [_cuda_device(index) for index in range(torch.cuda.device_count())]
        found = "; ".join(
            f"{one['name']}, {one['memory_gb']:.0f} GB, {'' if one['bfloat16'] else 'no '}bfloat16"
            for one in devices
        )
        return Finding("accelerator", "ok", found, details={"device": "cuda", "devices": devices})
    kind = str(torch.accelerator.current_accelerator())
    return Finding("accelerator", "ok", kind, details={"device": kind})


def _cuda_is_built() -> bool:
    return torch.version.cuda is not None or torch.version.hip is not None


def _cuda_device(index: int) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(index)
    with torch.cuda.device(index):
        bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "name": properties.name,
        "memory_gb": round(properties.total_memory / 1e9, 1),
        "bfloat16": bfloat16,
    }


def _processor() -> Finding:
    """Tell the cores, and whether bfloat16 is computed natively, which decides which dtype is fast."""
    flags = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}  # since torch 2.12
    native = [flag for flag in ("amx_bf16", "avx512_bf16", "sve_bf16", "bf16") if flags.get(flag)]
    threads, cores = torch.get_num_threads(), psutil.cpu_count(logical=False) or psutil.cpu_count()
    speed = f"native bfloat16 ({native[0]})" if native else "no native bfloat16: float32 is the fast dtype"
    details = {
        "cores": cores,
        "threads": threads,
        "bfloat16": native,
        "vectors": torch.backends.cpu.get_cpu_capability(),
    }
    few = cores is not None and threads < cores
    return Finding(
        "processor",
        "ok",
        f"{cores} cores, {threads} threads, {details['vectors']}, {speed}",
        "OMP_NUM_THREADS leaves cores idle" if few else "",
        details,
    )


def _memory() -> Finding:
    memory = psutil.virtual_memory()
    limit = _cgroup_limit()
    total, free = min(memory.total, limit or memory.total), min(memory.available, limit or memory.available)
    details = {"total_gb": round(total / 1e9, 1), "available_gb": round(free / 1e9, 1)}
    few = free / 1e9 < LEAST_MEMORY_GB
    return Finding(
        "memory",
        "warning" if few else "ok",
        f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} GB",
        f"the demo takes about {LEAST_MEMORY_GB:g} GB" if few else "",
        details,
    )


def _cgroup_limit() -> int | None:
    """Return what a container may take, in bytes."""
    for path in _CGROUP_LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdecimal():
            return int(text)
    return None
