"""Rows as padded tensors, and logits only at the positions where they are needed.

Shapes: B rows of a batch, T tokens of a row, D hidden size, L label tokens of a batch, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kshot.prompts import TokenisedExample


@dataclass(frozen=True, slots=True)
class Batch:
    """Left-padded rows.

    Attributes:
        input_ids: (B, T).
        attention_mask: (B, T), 0 on padding.
        labels: (B, T), -100 on prompt and padding.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor

    @property
    def predicts_label(self) -> Tensor:
        """(B, T), true where the next token is a label."""
        mask = torch.zeros_like(self.labels, dtype=torch.bool)
        mask[:, :-1] = self.labels[:, 1:] != -100
        return mask

    @property
    def prompt_BT(self) -> Tensor:  # noqa: N802 - the suffix is its shape
        """(B, T), true at the real tokens before a row's first label."""
        return ((self.labels != -100).cumsum(dim=1) == 0) & self.attention_mask.bool()

    @property
    def targets_L(self) -> Tensor:  # noqa: N802 - the suffix is its shape
        """The label tokens, row by row, as the model's logits come out under `logits_at`."""
        shifted_BT = self.labels[:, 1:]
        return shifted_BT[shifted_BT != -100]


def pad_left(rows: Sequence[TokenisedExample], pad_id: int, device: torch.device, *, width: int = 0) -> Batch:
    """Pad rows on the left, so that positions count from the first real token and targets end together.

    Args:
        rows: Of any length.
        pad_id: Any token.
        device: Of the tensors.
        width: T where no row is longer.
    """
    length = max(width, *(len(row) for row in rows))

    def padded(sequences: Sequence[Sequence[int]], fill: int) -> Tensor:
        return torch.tensor([[fill] * (length - len(row)) + list(row) for row in sequences], device=device)

    return Batch(
        input_ids=padded([row.input_ids for row in rows], pad_id),
        attention_mask=padded([[1] * len(row) for row in rows], 0),
        labels=padded([row.labels for row in rows], -100),
    )


@contextmanager
def logits_at(head: nn.Module, mask_BT: Tensor) -> Iterator[None]:
    """Let the output embedding see only the masked positions; the model's logits come out as (1, L, V).

    A hook keeps whatever the architecture does after its head (soft caps, scaling). On SmolLM2 the
    logits of prompt tokens are otherwise most of the memory and a fifth of the time.
    """

    def select(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (inputs[0][mask_BT].unsqueeze(0), *inputs[1:])

    handle = head.register_forward_pre_hook(select)
    try:
        yield
    finally:
        handle.remove()


def position_ids(attention_mask_BT: Tensor) -> Tensor:
    """(B, T) positions that count real tokens from 0; padding gets 0."""
    return (attention_mask_BT.cumsum(dim=1) - 1).clamp(min=0)


def label_logits(model: nn.Module, batch: Batch, *, head: nn.Module | None = None) -> Tensor:
    """Return the (L, V) logits at the positions that predict a label, row by row.

    Args:
        model: A causal language model, or a wrapper of one.
        batch: Left-padded rows.
        head: Its output embedding, where a wrapper hides it.

    A model that routes by the prompt has a method `route_by_prompt`: it is told where the prompt ends, since
    the labels are not passed on.
    """
    tell = getattr(getattr(model, "module", model), "route_by_prompt", None)
    routed = tell(batch.prompt_BT) if tell else nullcontext()
    head = head or model.get_output_embeddings()  # type: ignore[operator]
    with routed, logits_at(head, batch.predicts_label):
        output = model(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=position_ids(batch.attention_mask),
            use_cache=False,
        )
    logits_LV: Tensor = output.logits[0]
    return logits_LV


def length_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Group row indices of similar length into batches of at most `tokens_per_batch` padded tokens."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: (lengths[index], index)):
        if batch and (len(batch) + 1) * lengths[index] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
