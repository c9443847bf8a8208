"""Several targets after one prompt, in one row of a batch, so that the prompt is computed once.

    row      p1 p2 | p3 a1 a2 a3 | p3 b1 b2          targets a and b after the prompt p1 p2 p3
    block     0  0    1  1  1  1    2  2  2
    position  0  1    2  3  4  5    2  3  4

Each block starts with the last token of the prompt, which predicts its first target token. A token sees what
is before it in block 0 and in its own block, so that every target comes out as if it stood alone.

Shapes: B rows   T tokens   L target tokens of a batch   V vocabulary
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from kshot.batching import Batch, label_logits, logits_at, pad_left
from kshot.errors import ConfigError
from kshot.prompts import TokenisedExample

PADDING = -1  # its block
LOGITS_AT_ONCE = 128  # tokens; 25 MB at a vocabulary of 49,152, which malloc keeps and hands out again
PROBE_LENGTH = 12  # tokens of a prompt and of a target
# Mean difference of a token's NLL, in nats. On SmolLM2-135M it is 1e-5 in float32 and 0.06 in bfloat16, as
# between any two batches; with a mask that lets targets see each other it is 0.34 and more.
PROBE_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
PROBE_TOLERANCE_HALF = 0.15


@dataclass(frozen=True, slots=True)
class SharedRow:
    """Targets of one prompt laid out as a row.

    Attributes:
        input_ids: Prompt, then blocks.
        labels: -100 but for target tokens.
        blocks: 0 in the prompt, then 1, 2, ...
        positions: Of each token in its own prompt and target.
        target_lengths: Tokens of each target.
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    blocks: tuple[int, ...]
    positions: tuple[int, ...]
    target_lengths: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.input_ids)

    def after_prompt(self) -> "SharedRow":
        """Return the blocks of the targets, without what is before them."""
        start = self.blocks.index(1)
        return SharedRow(
            self.input_ids[start:],
            self.labels[start:],
            self.blocks[start:],
            self.positions[start:],
            self.target_lengths,
        )


def share_prompt(targets: Sequence[TokenisedExample]) -> SharedRow:
    """Lay out targets of one prompt.

    Raises:
        ConfigError: There is none, or the prompts differ.
    """
    prompts = {target.input_ids[: target.prompt_length] for target in targets}
    if len(prompts) != 1:
        raise ConfigError(f"expected targets of one prompt, got {len(prompts)} prompts: group them by prompt")
    prompt = prompts.pop()
    ids, before = list(prompt[:-1]), len(prompt) - 1
    labels, blocks, positions = [-100] * before, [0] * before, list(range(before))
    for number, target in enumerate(targets, start=1):
        block = target.input_ids[before:]
        ids += block
        labels += (-100, *block[1:])
        blocks += [number] * len(block)
        positions += range(before, before + len(block))
    lengths = tuple(target.target_length for target in targets)
    return SharedRow(tuple(ids), tuple(labels), tuple(blocks), tuple(positions), lengths)


def shared_nll(model: nn.Module, rows: Sequence[SharedRow], pad_id: int) -> list[list[np.ndarray]]:
    """Return the NLL of every target token, in nats, from one forward pass.

    Args:
        model: A causal language model for which `shares_prompts` holds.
        rows: In the order they have in the batch.
        pad_id: Any token.

    Returns:
        For each row and each of its targets a float64 array of the target's length.
    """
    device = next(model.parameters()).device
    blocks_BT = padded_left([row.blocks for row in rows], PADDING, device)
    batch = Batch(
        input_ids=padded_left([row.input_ids for row in rows], pad_id, device),
        attention_mask=blocks_BT != PADDING,
        labels=padded_left([row.labels for row in rows], -100, device),
    )
    with logits_at(model.get_output_embeddings(), batch.predicts_label):  # type: ignore[operator]
        output = model(
            input_ids=batch.input_ids,
            attention_mask=added_mask(sees_block(blocks_BT), model),
            position_ids=padded_left([row.positions for row in rows], 0, device),
            use_cache=False,
        )
    nll_L = nll_of(output.logits[0], batch.targets_L)
    return cut(nll_L, [row.target_lengths for row in rows])


def separate_nll(
    model: nn.Module, groups: Sequence[Sequence[TokenisedExample]], pad_id: int
) -> list[list[np.ndarray]]:
    """Return what `shared_nll` returns, from one ordinary row a target, for any causal language model."""
    batch = pad_left(
        [target for group in groups for target in group], pad_id, next(model.parameters()).device
    )
    nll_L = nll_of(label_logits(model, batch), batch.targets_L)
    return cut(nll_L, [[target.target_length for target in group] for group in groups])


def nll_of(logits_LV: Tensor, targets_L: Tensor) -> np.ndarray:
    """Return the NLL of each target, float64, in nats."""
    starts = range(0, len(targets_L), LOGITS_AT_ONCE)
    parts = [slice(start, start + LOGITS_AT_ONCE) for start in starts]
    nll = [cross_entropy(logits_LV[part].float(), targets_L[part], reduction="none") for part in parts]
    found: np.ndarray = torch.cat(nll).double().cpu().numpy()
    return found


@torch.inference_mode()
def shares_prompts(model: nn.Module, longest: int) -> bool:
    """Whether a model computes targets that share a prompt as it does targets that stand alone.

    It does not where attention takes no mask of (tokens, tokens), where positions come from elsewhere
    (ALiBi), or with layers that are no attention. Tried out on a short row; a sliding window is looked up.

    Args:
        model: A causal language model.
        longest: Tokens of the longest prompt with a target.
    """
    config = model.config.get_text_config()  # type: ignore[union-attr, operator]
    window = getattr(config, "sliding_window", None)
    if window is not None and longest > window:
        return False
    some_id = config.vocab_size // 3  # the first ids are often special
    prompt = tuple(range(some_id, some_id + PROBE_LENGTH))
    targets = [TokenisedExample(prompt + prompt[::step], PROBE_LENGTH) for step in (-1, 2)]
    apart = separate_nll(model, [targets], pad_id=0)
    try:
        together = shared_nll(model, [share_prompt(targets)], pad_id=0)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, AttributeError):
        return False  # whatever a foreign model says to a mask that it does not know
    difference = np.abs(np.concatenate(together[0]) - np.concatenate(apart[0])).mean()
    return bool(difference < PROBE_TOLERANCE.get(_dtype(model), PROBE_TOLERANCE_HALF))


def _dtype(model: nn.Module) -> torch.dtype:
    return next(weight.dtype for weight in model.parameters() if weight.dtype.is_floating_point)


def padded_left(sequences: Sequence[Sequence[int]], fill: int, device: torch.device) -> Tensor:
    """Return sequences as one tensor, (B, T)."""
    length = max(len(one) for one in sequences)
    return torch.tensor([[fill] * (length - len(one)) + list(one) for one in sequences], device=device)


def sees_block(blocks_BT: Tensor) -> Tensor:
    """Return which tokens see which, (B, T, T): what is before them in the prompt and in their own block."""
    length = blocks_BT.shape[1]
    seen_B1T, seeing_BT1 = blocks_BT[:, None, :], blocks_BT[:, :, None]
    same_BTT = (seen_B1T == 0) | (seen_B1T == seeing_BT1)  # padding sees padding: no row may be empty
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=blocks_BT.device).tril()
    return same_BTT & causal_TT


def added_mask(sees_BTS: Tensor, model: nn.Module) -> Tensor:
    """Return what is added to attention scores, (B, 1, T, S): 0 where a token is seen, or the least float."""
    dtype = _dtype(model)
    mask_BTS = torch.zeros(sees_BTS.shape, dtype=dtype, device=sees_BTS.device)
    return mask_BTS.masked_fill_(~sees_BTS, torch.finfo(dtype).min).unsqueeze(1)


def cut(nll_L: np.ndarray, lengths: Sequence[Sequence[int]]) -> list[list[np.ndarray]]:
    """Return the values of each target, by row."""
    ends = list(accumulate(length for group in lengths for length in group))
    pieces = iter(np.split(nll_L, ends[:-1]))
    return [[next(pieces) for _ in group] for group in lengths]
