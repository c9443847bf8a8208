"""Memory of tensors: live bytes counted at every operation, and the most that the process held."""

import resource
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages made in its block, from the operation that made them until they are let go.

    What an operation holds only inside itself is not seen.

    Attributes:
        live: Bytes alive now.
        peak: The most that was.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = 0
        self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {id(one.untyped_storage()) for one in tree_leaves((args, kwargs)) if _is_tensor(one)}
        result = func(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if id(storage) not in given and storage not in self._seen:
                self._seen.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._let_go, storage.nbytes())
        self.peak = max(self.peak, self.live)
        return result

    def _let_go(self, num_bytes: int) -> None:
        self.live -= num_bytes


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)


def peak_of(run: Callable[[], object]) -> int:
    """Return the most bytes that tensors made by `run` held at once."""
    with LiveBytes() as counted:
        run()
    return counted.peak


def process_peak_bytes() -> int:
    """Return the largest resident size of this process so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
