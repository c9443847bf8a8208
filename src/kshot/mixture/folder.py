"""An adapter's folder, here or on the Hub: its files, read with suspicion."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import metadata_load, snapshot_download
from safetensors.torch import load_file

from kshot.errors import AdapterError, reason_of

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
CARD_NAME = "README.md"
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w-][\w.-]*)(?:@(?P<revision>[\w./-]+))?")


def find_folder(source: str | Path) -> tuple[Path, str]:
    """Return a local folder, fetched first if it is on the Hub, and what to call its source elsewhere.

    Args:
        source: A folder, or a Hub id with an optional `@revision`. What exists or is absolute is a folder.

    Returns:
        The folder, and its name or the Hub id with the commit: never a path of this machine.

    Raises:
        AdapterError: No such folder, and the Hub does not have it either or cannot be reached.
    """
    folder = Path(source).expanduser()
    if isinstance(source, Path) or folder.is_absolute() or folder.exists():
        return folder, folder.resolve().name
    match = _HUB_ID.fullmatch(source)
    if match is None:
        raise AdapterError(f"expected an adapter folder or a Hub id, got {source!r}: no such folder")
    try:
        # the three files that are read: no pickles, no code, no training states
        files = [CONFIG_NAME, WEIGHTS_NAME, CARD_NAME]
        fetched = Path(snapshot_download(match["name"], revision=match["revision"], allow_patterns=files))
    except Exception as error:  # the Hub client raises its own, httpx's and the standard library's kinds
        raise AdapterError(
            f"expected the adapter {source!r} as a folder, in the Hub cache or on the Hub, got: "
            f"{reason_of(error)}: check the name, the revision and the network, or give a local folder"
        ) from error
    revision = fetched.name if fetched.parent.name == "snapshots" else match["revision"]
    return fetched, f"{match['name']}@{revision}" if revision else match["name"]


def read_config(folder: Path) -> dict[str, Any]:
    """Return what `adapter_config.json` holds.

    Raises:
        AdapterError: It is missing or no JSON object.
    """
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterError(
            f"{folder}: expected a PEFT adapter folder with {CONFIG_NAME}, got none: "
            "give the folder that `save_pretrained` wrote"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: expected JSON, got {error}: fetch or save the adapter again") from error
    if not isinstance(config, dict):
        raise AdapterError(
            f"{path}: expected a JSON object, got a {type(config).__name__}: save the adapter again"
        )
    return config


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors as stored.

    Raises:
        AdapterError: They are missing, pickled, or not whole.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        got = f"only {PICKLE_NAME}, which is never unpickled" if (folder / PICKLE_NAME).exists() else "none"
        raise AdapterError(
            f"{folder}: expected {WEIGHTS_NAME}, got {got}: convert it to safetensors with `save_pretrained` "
            "in a sandbox you trust"
        )
    try:
        return load_file(path)
    except Exception as error:  # a stranger's file: whatever the reader trips over, the file is at fault
        raise AdapterError(
            f"{path}: expected whole safetensors, got {type(error).__name__}: {error}: fetch the file again"
        ) from error


def read_licence(folder: Path) -> str | None:
    """Return `license` of the model card's front matter; None without a card, or if that is damaged."""
    try:
        card = metadata_load(folder / CARD_NAME)
    except Exception:  # a stranger's file, of which nothing depends: damaged says as little as missing
        return None
    licence = card.get("license") if isinstance(card, dict) else None
    named = card.get("license_name") if isinstance(card, dict) else None
    if licence == "other" and isinstance(named, str):  # the Hub's way to name one that is not on its list
        return named
    return licence if isinstance(licence, str) and licence else None


def kind_of_tensor(key: str) -> str:
    """Say in words what a tensor is that no LoRA factor of a linear layer can hold."""
    if "lora_embedding_" in key:
        return "a trained embedding"
    if "lora_magnitude_vector" in key:
        return "a DoRA magnitude"
    if key.endswith(".bias"):
        return "a bias"
    if ".lora_" in key:
        return "a second or unknown LoRA tensor"
    return "a whole weight (modules_to_save, or saved embeddings: save_embedding_layers=False omits those)"
