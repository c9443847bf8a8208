"""What a run ran on, for whoever wants to run it again."""

import os
import platform
from importlib.metadata import version

import torch

_PACKAGES = (
    "kshot",
    "torch",
    "transformers",
    "peft",
    "datasets",
    "accelerate",
    "sentence-transformers",
    "numpy",
)


def describe_environment() -> dict[str, object]:
    """Return versions, processor and accelerator."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "accelerator": str(accelerator) if accelerator else None,
        "packages": {package: version(package) for package in _PACKAGES},
    }
