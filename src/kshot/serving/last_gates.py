"""Which expert of a mixture had most to say about the next token of each row, over all modules of the base.

B rows   T tokens of a pass   E choices of a router
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from kshot.mixture import MixtureLinear
from kshot.mixture.model import mixture_config
from kshot.mixture.statistics import NULL_EXPERT
from kshot.serving.generation import ExpertUse

STANDS_STILL = 1e-4  # the last digit of a gate that answers tell; sums of many tokens round far below it


@dataclass(slots=True)
class RunningGates:
    """The gates of one row, summed over its prompt and its answer so far.

    Attributes:
        sum_E: Each as its mean over modules; 0 before the first pass.
        num_tokens: How many are summed.
    """

    sum_E: Tensor = field(default_factory=lambda: torch.zeros(()))  # noqa: N815 - the suffix is its shape
    num_tokens: int = 0

    def add(self, sum_E: Tensor, num_tokens: int) -> Tensor:
        """Add the tokens of a pass, and return the mean of all (E,)."""
        self.sum_E = self.sum_E + sum_E
        self.num_tokens += num_tokens
        return self.sum_E / self.num_tokens


class LastGates:
    """The gates of one pass: at the last token of each row, and their sum over its tokens.

    Args:
        model: Holds the mixtures.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._layers = [module for module in model.modules() if isinstance(module, MixtureLinear)]
        self._masks_BT: dict[str, Tensor] = {}
        self._gates_2BE: dict[str, Tensor] = {}
        self._num_modules: dict[str, int] = {}

    @contextmanager
    def recording(self, adapters: Sequence[str], mask_BT: Tensor) -> Iterator[None]:
        """Record the pass of the block.

        Args:
            adapters: That of each row.
            mask_BT: False at padding.
        """
        places: dict[str, list[int]] = {}
        for place, name in enumerate(adapters):
            places.setdefault(name, []).append(place)
        self._masks_BT = {name: mask_BT[rows].bool() for name, rows in places.items()}
        self._gates_2BE, self._num_modules = {}, {}
        for layer in self._layers:
            layer.recorders.append(self._record)
        try:
            yield
        finally:
            for layer in self._layers:
                layer.recorders.remove(self._record)

    def uses(self, adapters: Sequence[str], running: Sequence[RunningGates]) -> list[ExpertUse | None]:
        """Return the expert behind the next token of each row of the pass, None for rows of the base.

        Args:
            adapters: That of each row.
            running: The gates of each row before the pass, which those of the pass are added to.
        """
        found = {name: self._rows_of(name) for name in self._gates_2BE}
        names = {name: choices_of(self._model, name) for name in found}
        uses: list[ExpertUse | None] = []
        for name, row in zip(adapters, running, strict=True):
            if name not in found:
                uses.append(None)
                continue
            last_E, sum_E, num_tokens = next(found[name])
            uses.append(use_of(names[name], last_E, row.add(sum_E, num_tokens)))
        return uses

    def _rows_of(self, adapter: str) -> Iterator[tuple[Tensor, Tensor, int]]:
        last_BE, sum_BE = (self._gates_2BE[adapter] / self._num_modules[adapter]).cpu()
        yield from zip(last_BE, sum_BE, self._masks_BT[adapter].sum(dim=1).tolist(), strict=True)

    def _record(self, module: str, adapter: str, gates_BTE: Tensor, mask_BT: Tensor | None) -> None:
        gates_BTE = gates_BTE.float()
        real_BTE = gates_BTE.masked_fill(~self._masks_BT[adapter].unsqueeze(-1), 0)
        gates_2BE = torch.stack([gates_BTE[:, -1], real_BTE.sum(dim=1)])
        seen = self._gates_2BE.get(adapter)
        self._gates_2BE[adapter] = gates_2BE if seen is None else torch.add(seen, gates_2BE)
        self._num_modules[adapter] = self._num_modules.get(adapter, 0) + 1


def use_of(names: Sequence[str], gates_E: Tensor, mean_E: Tensor) -> ExpertUse:
    """Return the expert whose gate lies farthest above its mean.

    A gate that is high at every token says nothing about this one. Where all gates stand still, as those of a
    router that decides once a prompt and fixed ones do, it is the expert with the largest.

    Args:
        names: Of the choices.
        gates_E: At the token.
        mean_E: Over the tokens so far, this one included.
    """
    above_E = gates_E - mean_E
    ranked_E = above_E if float(above_E.max()) > STANDS_STILL else gates_E
    choice = int(ranked_E.argmax())
    return ExpertUse(names[choice], float(gates_E[choice]), float(above_E[choice]))


def choices_of(model: nn.Module, adapter: str) -> tuple[str, ...]:
    """Return the experts of a mixture, then the null expert if there is one."""
    config = mixture_config(model, adapter)
    return (*config.expert_names, *((NULL_EXPERT,) if config.null_expert else ()))
