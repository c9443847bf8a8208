"""A bank of random adapters of the tiny model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def write_bank(
    folder: Path,
    lora_folder: Callable[..., Path],
    names: Sequence[str] = ("aa", "bb", "cc", "dd", "ee"),
    **settings: Any,
) -> Path:
    """Write adapters into a new folder, without an index; `settings` are those of `lora_folder`."""
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        lora_folder(name, seed=seed, **settings).rename(folder / name)
    return folder
