"""The next token of one row: the likeliest, or drawn by temperature and top_p from the row's own generator.

V vocabulary
"""

import torch
from torch import Tensor


class Sampler:
    """Draws tokens with a random state of its own.

    A draw is one uniform number laid along the cumulative probabilities in the order of ids, in float64.
    The rest of the batch changes logits by about 1e-6, which then hardly ever changes the token; in the order
    by probability, where neighbours swap, it would.

    Args:
        temperature: > 0.
        top_p: In (0, 1].
        seed: None draws one.
    """

    def __init__(self, temperature: float, top_p: float, seed: int | None) -> None:
        self._temperature = temperature
        self._top_p = top_p
        self._draw = torch.Generator()
        if seed is None:
            self._draw.seed()
        else:
            self._draw.manual_seed(seed)

    def pick(self, logits_V: Tensor) -> int:
        """Return a token id."""
        logits_V = logits_V.cpu().double()
        probs_V = ((logits_V - logits_V.max()) / self._temperature).softmax(dim=-1)
        if self._top_p < 1:
            probs_V = nucleus(probs_V, self._top_p)
        summed_V = probs_V.cumsum(dim=-1)
        point = torch.rand((), generator=self._draw, dtype=torch.float64) * summed_V[-1]
        return min(int(torch.searchsorted(summed_V, point, right=True)), len(summed_V) - 1)


def nucleus(probs_V: Tensor, top_p: float) -> Tensor:
    """Keep the likeliest tokens whose probabilities first sum to `top_p`, at least one; the others get 0."""
    sorted_V, order_V = probs_V.sort(descending=True, stable=True)
    before_V = sorted_V.cumsum(dim=-1) - sorted_V
    return torch.zeros_like(probs_V).scatter(0, order_V, sorted_V.masked_fill(before_V >= top_p, 0))
