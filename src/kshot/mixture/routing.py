"""What the layers of one model know of the pass that is running: which tokens are real, which are the prompt.

B batch   T tokens of the pass   S tokens of the sequence so far, cached ones included   D inputs of a module
E choices of a router
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import pad
from torch.utils.hooks import RemovableHandle

from kshot.errors import ConfigError

KEPT_WITH_CACHE = "kshot_decisions"


@dataclass(slots=True)
class Decision:
    """What a sequence-level router decided on a prompt.

    Attributes:
        gates_B1E: The gates of each row it decided for.
        rows_B: Places of these rows in the batch; None: they are the batch.
    """

    gates_B1E: torch.Tensor  # noqa: N815 - the suffix is its shape
    rows_B: torch.Tensor | None  # noqa: N815

    def is_of(self, num_rows: int, rows_B: torch.Tensor | None) -> bool:
        """Whether these are the rows it was decided for."""
        if self.rows_B is None or rows_B is None:
            return self.rows_B is rows_B and len(self.gates_B1E) == num_rows
        return torch.equal(self.rows_B, rows_B)

    def select(self, kept_B: torch.Tensor) -> None:
        """Follow a batch of which some rows are left, by their places so far."""
        if self.rows_B is None:
            self.gates_B1E = self.gates_B1E[kept_B]
            return
        place_B, own_B = (kept_B.unsqueeze(1) == self.rows_B).nonzero(as_tuple=True)
        self.gates_B1E, self.rows_B = self.gates_B1E[own_B], place_B


class Routing:
    """Seen by hooks on the model's forward, which are there only as long as a layer needs them.

    Attributes:
        prompt_BS: True at the tokens that a sequence-level router reads; None: all that are not padding.
        continues: Whether the pass goes on from a KV cache.
        decisions: By router, of the sequences in this pass. They are kept with the KV cache, and found there
            by a pass that goes on from it.
    """

    def __init__(self) -> None:
        self.prompt_BS: torch.Tensor | None = None
        self.continues = False
        self.decisions: dict[str, Decision] = {}
        self._mask: Any = None  # as the pass came with it; looked at where a layer needs it
        self._given_prompt_BS: torch.Tensor | None = None
        self._inside_model = False
        self._inside_backbone = False
        self._in_call = False
        self._first_prompt_BS: torch.Tensor | None = None  # of the call's first pass
        self._num_checkpointed = 0  # passes that a backward may run again, since one last did
        self._ran_again = False

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Put hooks on a model, and on its backbone, which may be called alone.

        Raises:
            ConfigError: The model is an encoder-decoder.
        """
        check_one_stream(model)
        handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._see_model, with_kwargs=True),
            model.register_forward_hook(self._leave_model, always_call=True),
        ]
        backbone = getattr(model, "base_model", model)
        if isinstance(backbone, nn.Module) and backbone is not model:
            handles.append(backbone.register_forward_pre_hook(self._see_backbone, with_kwargs=True))
            handles.append(backbone.register_forward_hook(self._leave_backbone, always_call=True))
        else:
            backbone = model
        handles.append(backbone.register_forward_hook(self._keep_decisions, with_kwargs=True))
        return handles

    @contextmanager
    def given_prompt(self, prompt_BS: torch.Tensor) -> Iterator[None]:
        """Say which tokens are the prompt, where labels do not reach the model's forward."""
        before = self._given_prompt_BS
        self._given_prompt_BS = prompt_BS.bool()
        try:
            yield
        finally:
            self._given_prompt_BS = before

    @contextmanager
    def one_call(self) -> Iterator[None]:
        """Hold a call's passes together: generation without a cache has its prompt in the first of them."""
        self._in_call, self._first_prompt_BS = True, None
        try:
            yield
        finally:
            self._in_call, self._first_prompt_BS = False, None

    def select_rows(self, kept_B: torch.Tensor) -> None:
        """Follow a batch of which some rows are left, by their places in the last pass."""
        for decision in self.decisions.values():
            decision.select(kept_B)

    @property
    def attention_BS(self) -> torch.Tensor | None:  # noqa: N802 - the suffix is its shape
        """0 at padding; None if the pass came without a mask.

        Raises:
            ConfigError: The mask does not say which tokens are padding.
        """
        mask = self._mask
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise ConfigError(
                "expected attention_mask of shape (rows, tokens), which says where padding is, got "
                f"{tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__}: "
                "pass the tokenizer's mask, and no static cache to generate"
            )
        return mask

    def mask(self, x_BTD: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return (B, T), True at the pass's real tokens, for some rows or all; None if all are real."""
        attention_BS = self.attention_BS
        if attention_BS is None:
            return None
        mask_BT = attention_BS if rows is None else attention_BS[rows]
        if x_BTD.ndim != 3 or len(x_BTD) != len(mask_BT) or x_BTD.shape[1] > mask_BT.shape[1]:
            raise ConfigError(
                "expected inputs of shape (rows, tokens, features) beside an attention_mask of "
                f"{tuple(mask_BT.shape)}, got {tuple(x_BTD.shape)}: leave this module out of the mixture, "
                "or pass unpadded rows without a mask"
            )
        return mask_BT[:, -x_BTD.shape[1] :].bool()

    def mean_of_prompt(self, x_BTD: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean of x over the prompt, (B, 1, D), float32 at least; 0 where there is no prompt."""
        if not (self._inside_model or self._inside_backbone):
            self._run_again()
        x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        attention_BS = self.attention_BS
        prompt_BS = attention_BS if self.prompt_BS is None else self.prompt_BS
        if x_BTD.ndim == 3 and prompt_BS is None:
            return x_BTD.mean(dim=1, keepdim=True)
        prompt_BT = prompt_BS if prompt_BS is None or rows is None else prompt_BS[rows]
        if prompt_BT is None or prompt_BT.shape != x_BTD.shape[:-1]:
            raise ConfigError(
                "expected inputs of shape (rows, tokens, features) and a prompt of (rows, tokens), got "
                f"{tuple(x_BTD.shape)} and {None if prompt_BT is None else tuple(prompt_BT.shape)}: pass the "
                "attention_mask, labels or prompt of this batch, and leave lm_head out of such a mixture"
            )
        prompt_BT1 = prompt_BT.bool().unsqueeze(-1)
        num_B11 = prompt_BT1.sum(dim=1, keepdim=True).clamp(min=1)
        return x_BTD.masked_fill(~prompt_BT1, 0).sum(dim=1, keepdim=True) / num_B11

    def _see_model(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._inside_model:
            return  # watched twice
        self._inside_model = True
        self._see(model, args, kwargs)
        labels_BT = _labels_of_tokens(args, kwargs)
        if self._given_prompt_BS is None and labels_BT is not None:
            self.prompt_BS = prompt_before(labels_BT, self.attention_BS)
        if self._in_call and self.prompt_BS is None and isinstance(self._mask, torch.Tensor):
            self._keep_to_first_prompt(self._mask)

    def _keep_to_first_prompt(self, mask: torch.Tensor) -> None:
        if self._first_prompt_BS is None:
            self._first_prompt_BS = mask
        elif mask.ndim == self._first_prompt_BS.ndim == 2:
            self.prompt_BS = pad(self._first_prompt_BS, (0, mask.shape[1] - self._first_prompt_BS.shape[1]))

    def _leave_model(self, *_: Any) -> None:
        self._inside_model = False

    def _see_backbone(self, backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not (self._inside_model or self._inside_backbone):
            self._see(backbone, args, kwargs)
        self._inside_backbone = True

    def _leave_backbone(self, *_: Any) -> None:
        self._inside_backbone = False

    def _keep_decisions(self, _: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if cache is None else cache
        if cache is not None:
            setattr(cache, KEPT_WITH_CACHE, self.decisions)

    def _see(self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training and torch.is_grad_enabled() and _checkpoints(model):
            self._num_checkpointed = 1 if self._ran_again else self._num_checkpointed + 1
            self._ran_again = False
        cache = kwargs.get("past_key_values")
        self.continues = cache is not None and int(cache.get_seq_length()) > 0
        self.decisions = getattr(cache, KEPT_WITH_CACHE, {}) if self.continues else {}
        self.prompt_BS = self._given_prompt_BS
        self._mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)

    def _run_again(self) -> None:
        """Note that a backward runs a layer again, which reads what was seen of the last pass.

        Raises:
            ConfigError: It may be running an earlier pass.
        """
        self._ran_again = True
        if self._num_checkpointed > 1:
            raise ConfigError(
                f"expected a backward after each pass, got {self._num_checkpointed} passes before one: with "
                "gradient checkpointing a sequence-level router knows the prompt of the last pass alone; "
                "join the batches, use torch.no_grad() for passes without a loss, or turn checkpointing off"
            )


def _checkpoints(model: nn.Module) -> bool:
    return any(getattr(module, "gradient_checkpointing", False) for module in model.modules())


def prompt_before(labels_BT: torch.Tensor, attention_BT: torch.Tensor | None) -> torch.Tensor:
    """Return (B, T), True at the real tokens before a row's first label; -100 is no label."""
    prompt_BT = (labels_BT != -100).cumsum(dim=1) == 0
    return prompt_BT if attention_BT is None else prompt_BT & attention_BT.bool()


def check_one_stream(model: nn.Module) -> None:
    """Refuse models with more than one sequence of tokens, whose masks could be taken for one another.

    Raises:
        ConfigError: The model is an encoder-decoder.
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ConfigError(
            "expected one sequence of tokens to follow, got an encoder-decoder: use router_granularity="
            '"token" with this base, and no routing statistics'
        )


def _labels_of_tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.Tensor | None:
    """Return the labels if they are one a token, and not, say, the classes of whole rows."""
    named = (kwargs.get(name) for name in ("input_ids", "inputs_embeds"))
    inputs = args[0] if args else next((one for one in named if one is not None), None)
    labels = kwargs.get("labels")
    if not isinstance(labels, torch.Tensor) or not isinstance(inputs, torch.Tensor):
        return None
    return labels if labels.shape == inputs.shape[:2] else None
