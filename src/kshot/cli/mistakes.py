"""What a command prints when it fails; exit code 2 for what the user can mend, 1 for a fault of kshot."""

import os
import sys

import torch

from kshot.errors import KshotError, reason_of
from kshot.terminal import ERRORS

_LESS_MEMORY = (
    "lower training.per_device_train_batch_size, evaluation.batch_size or experts.memory_mb, set "
    "training.gradient_checkpointing or dtype: bfloat16; 'kshot run --dry-run' tells what a run takes"
)


def explain(error: Exception) -> int:
    """Print one line about an error; return the exit code.

    Raises:
        Exception: The error itself, where KSHOT_DEBUG asks for the traceback.
    """
    text, code = _line_and_code(error)
    if os.environ.get("KSHOT_DEBUG") and not isinstance(error, KshotError):
        raise error
    sys.stdout.flush()
    ERRORS.print(text, style="bold red", markup=False, highlight=False, soft_wrap=True)
    return code


def _line_and_code(error: Exception) -> tuple[str, int]:
    if isinstance(error, KshotError):
        return f"error: {error}", 2
    if _is_out_of_memory(error):
        return f"error: out of memory ({reason_of(error)}); {_LESS_MEMORY}", 2
    if isinstance(error, OSError) and error.strerror:
        about = f"{error.filename}: " if error.filename else ""
        return f"error: {about}{error.strerror}; check the path, its permissions and the space on its disk", 2
    return (
        f"internal error: {type(error).__name__}: {reason_of(error)}; "
        "set KSHOT_DEBUG=1 for the traceback and report it",
        1,
    )


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an allocation failed; on a CPU torch raises a plain RuntimeError."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
