"""The base model's own view of a text: its last hidden states, averaged with weights that grow (RDS+).

B: rows of a batch, T: tokens of a row, N: texts, D: hidden size.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256

import numpy as np
import torch
from torch import Tensor, nn

from kshot.batching import length_batches, pad_left, position_ids
from kshot.corpus.encoders.protocol import unit_rows
from kshot.language_model import TOKENS_PER_BATCH, LanguageModel
from kshot.prompts import TokenisedExample

MAX_TOKENS = 2_048  # of a text, as in the paper


class HiddenStateEncoder:
    """A base model as a `TextEncoder`: `Σ i·h_i / Σ i` over the real tokens i = 1..T of a text.

    Later tokens have read more of the text, so they count for more. Request and response are one text,
    without a chat template. Cosines lie high: of SmolLM2-135M, 0.94 is the median of two rows of one data set
    and 0.73 of two data sets, so that `data.threshold` must be near 1 (0.9 takes most rows for copies).

    Args:
        lm: Runs in evaluation mode, without gradients.
        tokens_per_batch: Padded tokens of one forward pass.

    Reference: Ivison et al. 2025, Large-Scale Data Selection for Instruction Tuning, arXiv 2503.01807; the
    weights are those of SGPT, arXiv 2202.08904.
    """

    def __init__(self, lm: LanguageModel, *, tokens_per_batch: int = TOKENS_PER_BATCH) -> None:
        self._lm, self._tokens_per_batch = lm, tokens_per_batch
        self._max_length = min(MAX_TOKENS, lm.max_length)
        self._name = f"{lm.name or 'base-model'} hidden states {_weights_hash(lm.model)[:16]}"

    @property
    def name(self) -> str:
        """Name of the model and hash of its weights."""
        return self._name

    @torch.inference_mode()
    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Embed texts; see `TextEncoder.encode`."""
        lm = self._lm
        lm.model.eval()
        ids = [self._ids(text) for text in texts]
        filled = [index for index, row in enumerate(ids) if row]  # an empty text stays a row of zeros
        rows = [TokenisedExample(ids[index], len(ids[index])) for index in filled]
        vectors_ND = np.zeros((len(texts), _hidden_size(lm.model)), dtype=np.float32)
        for places in length_batches([len(row) for row in rows], self._tokens_per_batch):
            batch = pad_left([rows[place] for place in places], lm.pad_id, lm.device)
            hidden_BTD = _last_hidden(lm.model, batch.input_ids, batch.attention_mask)
            means_BD = position_weighted_mean(hidden_BTD, batch.attention_mask)
            vectors_ND[[filled[place] for place in places]] = means_BD.cpu().numpy()
        return unit_rows(vectors_ND, self._name, texts)

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self._lm.tokenizer(text, truncation=True, max_length=self._max_length)["input_ids"])


def position_weighted_mean(hidden_BTD: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Return float32 means (B, D) with the weights `i / Σ i` over real tokens; padding counts for nothing."""
    weights_BT = (attention_mask_BT.cumsum(dim=1) * attention_mask_BT).float()
    weights_BT = weights_BT / weights_BT.sum(dim=1, keepdim=True)
    return torch.einsum("bt,btd->bd", weights_BT, hidden_BTD.float())


def _last_hidden(model: nn.Module, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    """Return what the output embedding reads (B, T, D), without computing logits of more than a token."""
    with _input_of(model.get_output_embeddings()) as seen:  # type: ignore[operator]
        model(
            input_ids=input_ids_BT,
            attention_mask=attention_mask_BT,
            position_ids=position_ids(attention_mask_BT),
            use_cache=False,
        )
    return seen[0]


@contextmanager
def _input_of(head: nn.Module) -> Iterator[list[Tensor]]:
    """Keep the input of a module and pass on its last position alone."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0])
        return (inputs[0][:, -1:], *inputs[1:])

    handle = head.register_forward_pre_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()


def _hidden_size(model: nn.Module) -> int:
    return int(model.get_output_embeddings().weight.shape[1])  # type: ignore[operator]


def _weights_hash(model: nn.Module) -> str:
    """Return a hash of every parameter, so that an adapter or another precision is another encoder."""
    digest = sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().contiguous().view(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()
