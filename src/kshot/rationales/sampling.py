"""Sampling in a batch whose rows do not depend on each other.

Shapes: B rows still going, V vocabulary.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


class SampledChoice:
    """Draws each row's next token with a generator of its own, so that a row is the same in any batch.

    The draw is the Gumbel-max trick, `argmax(logits / temperature + G)` with `G = -log(E)`, E exponential: it
    takes a token with the probability that softmax gives it.

    Args:
        temperature: Above 0.
        seeds: One a row.
    """

    def __init__(self, temperature: float, seeds: Sequence[int]) -> None:
        self._temperature = temperature
        self._draws = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, logits_BV: Tensor, rows: Sequence[int]) -> Tensor:
        """Return (B,) token ids.

        Args:
            logits_BV: Of the next token.
            rows: Index of each row's seed.
        """
        size = logits_BV.shape[-1]
        noise_BV = torch.stack([torch.empty(size).exponential_(generator=self._draws[row]) for row in rows])
        scaled_BV = logits_BV.float().cpu() / self._temperature
        return (scaled_BV - noise_BV.log()).argmax(dim=-1).to(logits_BV.device)
