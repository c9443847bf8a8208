"""Rows with their keys and values, padded on the left to one length, that rows join and leave.

Joining costs one copy of the cache, as much as `DynamicCache` copies for every token anyway. What a
sequence-level router decided for a row stays with it.

B rows   S tokens of the longest row   H heads   D size of a head
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from kshot.errors import ConfigError
from kshot.mixture.routing import KEPT_WITH_CACHE, Decision

Decisions = dict[str, Decision]


class CachedRows:
    """What the model has read of each row.

    Without the model's config the cache keeps every token in layers with a sliding window too, which their
    masks hide: only so can rows of different lengths be joined.

    Args:
        mask_BS: (B, S) of the prompts that are to be read, 0 at padding.

    Attributes:
        cache: To be passed to the model.
        mask_BS: 0 at padding, after each pass of the same length as the cache.
    """

    def __init__(self, mask_BS: Tensor) -> None:
        self.cache = DynamicCache()
        self.mask_BS = mask_BS

    def __len__(self) -> int:
        return len(self.mask_BS)

    def add_column(self) -> Tensor:
        """Make room for one more token in each row; return its positions, (B, 1)."""
        positions_B1 = self.mask_BS.sum(dim=1, keepdim=True)
        self.mask_BS = pad(self.mask_BS, (0, 1), value=1)
        return positions_B1

    def select(self, kept_B: Tensor) -> None:
        """Keep some rows, by their places, and drop the padding that no row needs any more."""
        self.mask_BS = self.mask_BS[kept_B]
        unused = self.mask_BS.shape[1] - int(self.mask_BS.sum(dim=1).max())
        self.mask_BS = self.mask_BS[:, unused:]
        for layer, keys_BHSD, values_BHSD in _filled(self.cache):
            layer.keys, layer.values = keys_BHSD[kept_B, :, unused:], values_BHSD[kept_B, :, unused:]
        for decision in self._decisions.values():
            decision.select(kept_B)

    def join(self, others: "CachedRows") -> None:
        """Append the rows of another batch to these."""
        length = max(self.mask_BS.shape[1], others.mask_BS.shape[1])
        rows_before = len(self)
        self.mask_BS = _stacked(self.mask_BS.unsqueeze(-1), others.mask_BS.unsqueeze(-1), length).squeeze(-1)
        for (layer, *own), (_, *new) in zip(_filled(self.cache), _filled(others.cache), strict=True):
            layer.keys, layer.values = (_stacked(*pair, length) for pair in zip(own, new, strict=True))
        joined = self._decisions
        for name, decision in others._decisions.items():
            moved = Decision(decision.gates_B1E, _places(decision) + rows_before)
            joined[name] = _joined(joined[name], moved) if name in joined else moved
        setattr(self.cache, KEPT_WITH_CACHE, joined)

    @property
    def _decisions(self) -> Decisions:
        found: Decisions = getattr(self.cache, KEPT_WITH_CACHE, {})
        return found


def check_joinable(model: nn.Module) -> None:
    """Refuse models whose state is not keys and values alone, such as those with linear attention.

    Raises:
        ConfigError: Names what the model would keep.
    """
    cache = DynamicCache(config=model.config.get_text_config())  # type: ignore[union-attr, operator]
    usable = (DynamicLayer, DynamicSlidingWindowLayer)
    strange = sorted({type(layer).__name__ for layer in cache.layers if type(layer) not in usable})
    if strange:
        raise ConfigError(
            f"expected a model with attention alone, got one that keeps {', '.join(strange)}: rows cannot "
            "join its batch; serve another base model"
        )


def _filled(cache: DynamicCache) -> Iterator[tuple[DynamicLayer, Tensor, Tensor]]:
    for layer in cache.layers:
        if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
            yield layer, layer.keys, layer.values


def _stacked(first: Tensor, second: Tensor, length: int) -> Tensor:
    """Stack rows, (B, ..., S, D) each, filled up with zeros at the beginning of S."""
    return torch.cat([pad(one, (0, 0, length - one.shape[-2], 0)) for one in (first, second)])


def _places(decision: Decision) -> Tensor:
    assert decision.rows_B is not None  # each pass names the adapters of its rows
    return decision.rows_B


def _joined(first: Decision, second: Decision) -> Decision:
    return Decision(
        torch.cat([first.gates_B1E, second.gates_B1E]), torch.cat([_places(first), _places(second)])
    )
