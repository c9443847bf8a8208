"""The peak of this process's memory: it rises with what is held."""

import numpy as np
import psutil
import torch

from kshot.peak_memory import peak_memory

MIB = 2**20


def test_invariant_peak_is_at_least_what_is_held() -> None:
    held = psutil.Process().memory_info().rss / MIB
    assert peak_memory()["peak_memory_mb"] >= held - 1


def test_peak_rises_and_does_not_fall() -> None:
    before = peak_memory()["peak_memory_mb"]
    size = int((before + 64) * MIB) - psutil.Process().memory_info().rss
    block = np.ones(max(size, MIB), dtype=np.uint8)
    held = peak_memory()["peak_memory_mb"]
    assert held > before
    del block
    assert peak_memory()["peak_memory_mb"] >= held


def test_accelerator_is_told_where_there_is_one() -> None:
    assert ("peak_accelerator_mb" in peak_memory()) == torch.cuda.is_available()
