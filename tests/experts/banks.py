"""Banks of adapters that lie anywhere, and adapters of other weights."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from kshot.bank import Bank
from kshot.bank.adapter import WEIGHTS, Adapter, describe


def bank_of(*folders: Path) -> Bank:
    return Bank([Adapter(folder, describe(folder, folder.name)) for folder in folders])


def three_adapters(lora_folder: Callable[..., Path]) -> Bank:
    """`first`, `second` and `third`, the second of another rank."""
    return bank_of(
        lora_folder("first", seed=1), lora_folder("second", seed=2, r=2), lora_folder("third", seed=3)
    )


def change_weights(adapter: Adapter, change: Callable[[str, torch.Tensor], torch.Tensor]) -> Adapter:
    """Write other weights, with an entry that fits them."""
    weights = load_file(adapter.folder / WEIGHTS)
    save_file(
        {key: change(key, value).contiguous() for key, value in weights.items()}, adapter.folder / WEIGHTS
    )
    return Adapter(adapter.folder, describe(adapter.folder, adapter.name))
