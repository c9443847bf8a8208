"""Comparing a thousand adapters: exact cosines of their weight changes, and fingerprints against them.

    python benchmarks/similarity.py [--adapters 1000]

Adapters of SmolLM2-135M's shapes (r = 16 on q_proj and v_proj of 30 layers, d = 576, bfloat16) with random
weights, in families of ten that share half of their ranks, written as PEFT folders and read from them. Each
measurement has a process of its own, so that its peak memory is its own too.

Writes benchmarks/results/similarity.json. About four minutes on two cores.
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from measuring.memory import process_peak_bytes
from safetensors.torch import save_file

from kshot.atomic import write_json
from kshot.bank.fingerprint import NUM_FEATURES, fingerprint
from kshot.experts import adapter_similarity, fingerprint_similarity
from kshot.mixture import LoraExpert, LoraFactors, read_lora
from kshot.pipeline.environment import describe_environment

ADAPTERS = 1_000
FAMILY = 10
CHECKED = 12  # adapters whose dense changes are compared: 13 million numbers each
R, D, LAYERS = 16, 576, 30
OUTPUTS = {"q_proj": 576, "v_proj": 192}
MAX_SECONDS, MAX_GB, MAX_ERROR = 180, 4.0, 1e-6  # what exact similarity is held to
MAX_FINGERPRINT_SECONDS = 60
RESULTS = Path(__file__).parent / "results" / "similarity.json"


@dataclass(frozen=True)
class Stored:
    """An adapter folder, read when it is asked for."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    def load(self) -> LoraExpert:
        return read_lora(self.folder, self.name)


def main(num_adapters: int, results: Path) -> None:
    busy = round(os.getloadavg()[0], 2)
    with TemporaryDirectory() as root:
        folders = [_write_adapter(Path(root) / f"m{place:04d}", place) for place in range(num_adapters)]
        exact, cosines_MM = _alone(measure_exact, folders)
        prints, estimates_MM = _alone(measure_fingerprints, folders)
        checks = _alone(check_exact, folders[:CHECKED])
    found = {
        "adapters": num_adapters,
        "load_average_before": busy,
        "setting": f"r = {R}, {2 * LAYERS} modules, d = {D}, bfloat16, families of {FAMILY}",
        "exact": exact | checks,
        "fingerprints": prints | {"error": errors(estimates_MM, cosines_MM)},
    }
    found["met"] = {
        f"exact under {MAX_SECONDS} s": exact["seconds"] < MAX_SECONDS,
        f"exact under {MAX_GB} GB": exact["peak_gb"] < MAX_GB,
        f"exact to {MAX_ERROR}": max(checks.values()) < MAX_ERROR,
        f"fingerprints under {MAX_FINGERPRINT_SECONDS} s": prints["seconds"] < MAX_FINGERPRINT_SECONDS,
    }
    print(json.dumps(found, indent=1))
    write_json(results, found | {"environment": describe_environment()})


def measure_exact(folders: list[Path]) -> tuple[dict[str, float], np.ndarray]:
    started, busy = time.perf_counter(), time.process_time()
    similarity = adapter_similarity([Stored(folder) for folder in folders])
    timed = {
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - busy, 1),  # of all threads
        "peak_gb": _peak_gb(),
    }
    return timed, similarity.matrix


def measure_fingerprints(folders: list[Path]) -> tuple[dict[str, Any], np.ndarray]:
    reading = features = 0.0
    rows = []
    for folder in folders:
        started = time.perf_counter()
        expert = Stored(folder).load()
        read = time.perf_counter()
        rows.append(fingerprint(expert))
        reading, features = reading + read - started, features + time.perf_counter() - read
    started = time.perf_counter()
    similarity = fingerprint_similarity([folder.name for folder in folders], np.stack(rows))
    timed = {
        "features": NUM_FEATURES,
        "seconds": round(features, 1),
        "seconds_reading": round(reading, 1),
        "seconds_comparing": round(time.perf_counter() - started, 2),
        "peak_gb": _peak_gb(),
    }
    return timed, similarity.matrix


def check_exact(folders: list[Path]) -> dict[str, float]:
    """Return the largest error against dense float64 changes, and after a random change of basis."""
    adapters = [Stored(folder) for folder in folders]
    cosines_MM = adapter_similarity(adapters).matrix
    experts = [adapter.load() for adapter in adapters]
    dense = np.stack([np.concatenate([_dense(one) for one in expert.factors.values()]) for expert in experts])
    dense /= np.linalg.norm(dense, axis=1, keepdims=True)
    turned = adapter_similarity([Turned(expert) for expert in experts]).matrix
    return {
        "largest_error_against_dense": float(np.abs(cosines_MM - dense @ dense.T).max()),
        "largest_error_under_a_change_of_basis": float(np.abs(cosines_MM - turned).max()),
    }


@dataclass(frozen=True)
class Turned:
    """An adapter rewritten as (R A, B R⁻¹), with R of condition 100."""

    expert: LoraExpert

    @property
    def name(self) -> str:
        return self.expert.name

    def load(self) -> LoraExpert:
        draw = np.random.default_rng(0)
        factors = {}
        for module, old in self.expert.factors.items():
            left, right = (np.linalg.qr(draw.normal(size=(old.r, old.r)))[0] for _ in range(2))
            R_rr = torch.from_numpy(left * np.geomspace(1, 100, old.r) @ right)
            factors[module] = LoraFactors(
                R_rr @ old.A_rI.double(), old.B_Or.double() @ torch.linalg.inv(R_rr), old.scaling
            )
        return LoraExpert(self.expert.name, None, factors)


def errors(estimates_MM: np.ndarray, cosines_MM: np.ndarray) -> dict[str, Any]:
    """Return quantiles of the absolute error over all pairs, within families and across."""
    one, other = np.triu_indices(len(cosines_MM), k=1)
    error = np.abs(estimates_MM - cosines_MM)[one, other]
    kin = one // FAMILY == other // FAMILY
    return {
        name: {
            "pairs": int(which.sum()),
            "mean_cosine": round(float(cosines_MM[one, other][which].mean()), 4),
            "rms": round(float(np.sqrt((error[which] ** 2).mean())), 5),
            **{f"q{q}": round(float(np.quantile(error[which], q / 100)), 5) for q in (50, 95, 99)},
            "max": round(float(error[which].max()), 5),
        }
        for name, which in (("within families", kin), ("across families", ~kin))
    }


def _write_adapter(folder: Path, place: int) -> Path:
    own = torch.Generator().manual_seed(10_000 + place)
    shared = torch.Generator().manual_seed(place // FAMILY)
    tensors = {}
    for layer in range(LAYERS):
        for side, outputs in OUTPUTS.items():
            draws = [(one, R // 2) for one in (shared, own)]
            A_rI = torch.cat([torch.randn(r, D, generator=one) for one, r in draws]) / D**0.5
            B_Or = torch.cat([torch.randn(outputs, r, generator=one) for one, r in draws], dim=1) / 100
            module = f"base_model.model.model.layers.{layer}.self_attn.{side}"
            tensors[f"{module}.lora_A.weight"] = A_rI.bfloat16()
            tensors[f"{module}.lora_B.weight"] = B_Or.bfloat16()
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R, "target_modules": list(OUTPUTS)}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _dense(factors: LoraFactors) -> np.ndarray:
    return (factors.scaling * factors.B_Or.double() @ factors.A_rI.double()).ravel().numpy()


def _alone(measure: Callable[[list[Path]], Any], folders: list[Path]) -> Any:
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, folders).result()


def _peak_gb() -> float:
    return round(process_peak_bytes() / 1e9, 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--adapters", type=int, default=ADAPTERS)
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    main(given.adapters, given.results)
