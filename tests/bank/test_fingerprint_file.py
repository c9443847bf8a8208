"""A stored fingerprint is that of the adapter beside it, or none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from kshot.bank import Adapter, Bank
from kshot.bank.fingerprint import FINGERPRINT_VERSION, fingerprint
from kshot.bank.fingerprint_file import FINGERPRINT


@pytest.fixture
def adapter(lora_folder: Any, tmp_path: Path) -> Adapter:
    return Bank.create(tmp_path / "bank").add(lora_folder("math"))


def test_roundtrip(adapter: Adapter) -> None:
    assert adapter.fingerprint is not None
    assert np.array_equal(adapter.fingerprint, fingerprint(adapter.load()))
    assert (adapter.folder / FINGERPRINT).stat().st_size < 17_000


def test_of_other_weights(adapter: Adapter, lora_folder: Any) -> None:
    changed = adapter.entry.model_copy(update={"sha256": 64 * "0"})
    assert Adapter(adapter.folder, changed).fingerprint is None


def test_of_another_version(adapter: Adapter) -> None:
    path = adapter.folder / FINGERPRINT
    of_version = f'"version":"{FINGERPRINT_VERSION}"'.encode()
    assert of_version in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(of_version, b'"version":"0"'))
    assert adapter.fingerprint is None
    bank = Bank.open(adapter.folder.parent)
    assert bank.complete() == ["math"]
    assert bank["math"].fingerprint is not None


@pytest.mark.parametrize("shape", [(3,), (1, 4096)])
def test_of_another_shape(adapter: Adapter, shape: tuple[int, ...]) -> None:
    metadata = {"version": str(FINGERPRINT_VERSION), "adapter": adapter.digest}
    save_file({"fingerprint": np.zeros(shape, np.float32)}, adapter.folder / FINGERPRINT, metadata)
    assert adapter.fingerprint is None


def test_missing_and_damaged(adapter: Adapter) -> None:
    path = adapter.folder / FINGERPRINT
    path.write_bytes(path.read_bytes()[:-3])
    assert adapter.fingerprint is None
    path.unlink()
    assert adapter.fingerprint is None
