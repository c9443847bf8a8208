"""Which expert of a mixture had most to say about the next token of each row, over all modules of the base.

B rows   T tokens of a pass   E choices of a router
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from kshot.mixture import MixtureLinear
from kshot.mixture.model import mixture_config
from kshot.mixture.statistics import NULL_EXPERT
from kshot.serving.generation import ExpertUse


class LastGates:
    """The gates at the last token of each row, in one pass, as their mean over modules.

    Args:
        model: Holds the mixtures.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = [module for module in model.modules() if isinstance(module, MixtureLinear)]
        self._sums: dict[str, Tensor] = {}
        self._num_modules: dict[str, int] = {}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record the pass of the block."""
        self._sums, self._num_modules = {}, {}
        for layer in self._layers:
            layer.recorders.append(self._record)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.recorders.remove(self._record)

    def uses(self, adapters: Sequence[str]) -> list[ExpertUse | None]:
        """Return the expert with the largest gate for each row of the pass, None for rows of the base.

        Args:
            adapters: That of each row.
        """
        found = {name: self._uses_of(name) for name in self._sums}
        return [next(found[name]) if name in found else None for name in adapters]

    def _uses_of(self, adapter: str) -> Iterator[ExpertUse]:
        names = choices_of(self._model, adapter)
        weights_B, choice_B = (self._sums[adapter] / self._num_modules[adapter]).max(dim=-1)
        for choice, weight in zip(choice_B.tolist(), weights_B.tolist(), strict=True):
            yield ExpertUse(names[choice], weight)

    def _record(self, module: str, adapter: str, gates_BTE: Tensor, mask_BT: Tensor | None) -> None:
        gates_BE = gates_BTE[:, -1].float()
        seen = self._sums.get(adapter)
        self._sums[adapter] = gates_BE if seen is None else torch.add(seen, gates_BE)
        self._num_modules[adapter] = self._num_modules.get(adapter, 0) + 1


def choices_of(model: nn.Module, adapter: str) -> tuple[str, ...]:
    """Return the experts of a mixture, then the null expert if there is one."""
    config = mixture_config(model, adapter)
    return (*config.expert_names, *((NULL_EXPERT,) if config.null_expert else ()))
