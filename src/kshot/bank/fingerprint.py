"""A fingerprint of an adapter: a few thousand numbers whose dot products tell how alike adapters are.

r rank   D inputs or outputs of a module   F features
"""

import hashlib

import numpy as np
import torch

from kshot.errors import AdapterError
from kshot.mixture import LoraExpert

FINGERPRINT_VERSION = 1  # fingerprints of different versions do not compare

NUM_FEATURES = 4_096  # standard error of a cosine about 1 / 64, in 16 kB an adapter; a power of 2 for the FFT
_CANCELLED = 1e-7  # of the factors' sizes: a smaller change is rounding error


def fingerprint(expert: LoraExpert) -> np.ndarray:
    """Project the weight change of an adapter at random, through its factors.

    The change of a module, `ΔW = s Σ_r b_r a_rᵀ`, is count-sketched: its entry of output o and input i is
    added, with the sign `σ(o) τ(i)`, to feature `(g(o) + h(i)) mod F`; modules add up. Hashes and signs
    follow from the module's name alone, so that adapters of any ranks and targets compare, on any machine.
    The dot product of two fingerprints is an unbiased estimate of `<ΔW1, ΔW2>`, and the cosine it gives has a
    standard error of about `1 / √F` whatever the ranks and the number of modules; less for adapters that are
    alike.

    The sketch of `b aᵀ` is the circular convolution of the sketches of b and a: a product of their spectra,
    of which an adapter's are added up and turned back once.

    Returns:
        float32 (F,).

    Raises:
        AdapterError: The adapter changes nothing, or more than float32 holds.

    Reference: Pham and Pagh 2013, Fast and scalable polynomial kernels via explicit feature maps. Two-sided
    projections `G ΔW H` to as many numbers were five times as fast and, on adapters of a single module, two
    to five times as wrong.
    """
    spectrum_F = np.zeros(NUM_FEATURES // 2 + 1, dtype=np.complex128)
    bound = 0.0
    for module, factors in expert.factors.items():
        A_rD, B_rD = _float64(factors.A_rI), factors.scaling * _float64(factors.B_Or).T
        inputs_rF = np.fft.rfft(_count_sketch(f"{module} inputs", A_rD))
        outputs_rF = np.fft.rfft(_count_sketch(f"{module} outputs", B_rD))
        spectrum_F += (inputs_rF * outputs_rF).sum(axis=0)
        bound = float(np.hypot(bound, np.linalg.norm(A_rD) * np.linalg.norm(B_rD)))
    features_F = np.fft.irfft(spectrum_F, NUM_FEATURES)
    size = float(np.linalg.norm(features_F))
    if not _CANCELLED * bound < size < float(np.finfo(np.float32).max):
        raise AdapterError(
            f"adapter {expert.name!r}: expected a change of the weights, other than zero and within float32, "
            f"got one of size {size:g}: train it again, or leave it out"
        )
    return features_F.astype(np.float32)


def _count_sketch(key: str, rows_rD: np.ndarray) -> np.ndarray:
    """Add each of D columns, with a random sign, to one of F."""
    num_rows, size = rows_rD.shape
    drawn_D = np.frombuffer(hashlib.shake_256(f"kshot {key}".encode()).digest(4 * size), dtype="<u4")
    signs_D = np.where(drawn_D >> 31, 1.0, -1.0)
    places_rD = NUM_FEATURES * np.arange(num_rows)[:, None] + drawn_D % NUM_FEATURES
    sketch = np.bincount(places_rD.ravel(), (rows_rD * signs_D).ravel(), minlength=num_rows * NUM_FEATURES)
    return sketch.reshape(num_rows, NUM_FEATURES)


def _float64(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float64).numpy()
