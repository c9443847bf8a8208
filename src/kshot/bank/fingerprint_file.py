"""The fingerprint of an adapter as a file beside its weights, with what it is the fingerprint of.

F features
"""

from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from kshot.atomic import write_bytes
from kshot.bank.fingerprint import FINGERPRINT_VERSION, NUM_FEATURES, fingerprint
from kshot.mixture import LoraExpert

FINGERPRINT = "fingerprint.safetensors"  # one of 16 kB in each adapter's folder: adding one rewrites no other
_KEY = "fingerprint"


def write_fingerprint(folder: Path, digest: str, expert: LoraExpert) -> None:
    """Compute and store the fingerprint of an adapter.

    Args:
        folder: The adapter's.
        digest: Of the adapter, as `Adapter.digest`.
        expert: Its factors.

    Raises:
        AdapterError: The adapter changes nothing, or more than float32 holds.
        RunFolderError: The folder cannot be written.
    """
    metadata = {"version": str(FINGERPRINT_VERSION), "adapter": digest}
    write_bytes(folder / FINGERPRINT, save({_KEY: fingerprint(expert)}, metadata))


def read_fingerprint(folder: Path, digest: str) -> np.ndarray | None:
    """Return the stored fingerprint, float32 (F,); None if it is missing, damaged, old or another's."""
    try:
        with safe_open(folder / FINGERPRINT, framework="np") as file:
            wanted = {"version": str(FINGERPRINT_VERSION), "adapter": digest}
            if file.metadata() != wanted:
                return None
            found: np.ndarray = file.get_tensor(_KEY)
    except (OSError, SafetensorError):  # it can be computed again
        return None
    return found if found.shape == (NUM_FEATURES,) and found.dtype == np.float32 else None
