"""What the layers of one model know of the pass that is running: which tokens are real, which are the prompt.

B batch   T tokens of the pass   S tokens of the sequence so far, cached ones included   D inputs of a module
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from kshot.errors import ConfigError


class Routing:
    """Seen by hooks on the model's forward, which are there only as long as a layer needs them.

    Attributes:
        attention_BS: 0 at padding; None if the pass came without a mask.
        prompt_BS: True at the tokens that a sequence-level router reads; None: all that are not padding.
        continues: Whether the pass goes on from a KV cache.
    """

    def __init__(self) -> None:
        self.attention_BS: torch.Tensor | None = None
        self.prompt_BS: torch.Tensor | None = None
        self.continues = False
        self._given_prompt_BS: torch.Tensor | None = None

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Put hooks on a model, and on its backbone, which may be called alone."""
        handles = [model.register_forward_pre_hook(self._see_model, with_kwargs=True)]
        backbone = getattr(model, "base_model", model)
        if isinstance(backbone, nn.Module) and backbone is not model:
            handles.append(backbone.register_forward_pre_hook(self._see_backbone, with_kwargs=True))
        return handles

    @contextmanager
    def given_prompt(self, prompt_BS: torch.Tensor) -> Iterator[None]:
        """Say which tokens are the prompt, where labels do not reach the model's forward."""
        self._given_prompt_BS = prompt_BS.bool()
        try:
            yield
        finally:
            self._given_prompt_BS = None

    def mask(self, x_BTD: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor | None:
        """Return (B, T), True at the pass's real tokens, for some rows or all; None if all are real."""
        if self.attention_BS is None:
            return None
        if x_BTD.ndim != 3:
            raise ConfigError(
                f"expected inputs of shape (rows, tokens, features) beside an attention_mask, got "
                f"{tuple(x_BTD.shape)}: leave this module out of the mixture, or pass unpadded rows without a mask"
            )
        mask_BT = self.attention_BS[:, -x_BTD.shape[1] :].bool()
        return mask_BT if rows is None else mask_BT[rows]

    def mean_of_prompt(self, x_BTD: torch.Tensor, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean of x over the prompt, (B, 1, D), in float32 at least; a row without prompt gives 0."""
        x_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32))
        prompt_BS = self.attention_BS if self.prompt_BS is None else self.prompt_BS
        if prompt_BS is None:
            return x_BTD.mean(dim=1, keepdim=True)
        prompt_BT = prompt_BS if rows is None else prompt_BS[rows]
        if prompt_BT.shape != x_BTD.shape[:2]:
            raise ConfigError(
                f"expected a prompt of the batch's shape {tuple(x_BTD.shape[:2])}, got {tuple(prompt_BT.shape)}: "
                "pass attention_mask (rows, tokens) with the batch"
            )
        weight_BT1 = prompt_BT.to(x_BTD).unsqueeze(-1)
        return (x_BTD * weight_BT1).sum(dim=1, keepdim=True) / weight_BT1.sum(dim=1, keepdim=True).clamp(min=1)

    def _see_model(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._see(args, kwargs)
        labels_BS = kwargs.get("labels")
        if self._given_prompt_BS is not None:
            self.prompt_BS = self._given_prompt_BS
        elif labels_BS is None:
            self.prompt_BS = None
        else:
            prompt_BS = (labels_BS != -100).cumsum(dim=1) == 0
            self.prompt_BS = prompt_BS if self.attention_BS is None else prompt_BS & self.attention_BS.bool()

    def _see_backbone(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before = self.attention_BS
        self._see(args, kwargs)
        if self.attention_BS is not before:  # called alone: what the model's forward said is of another batch
            self.prompt_BS = self._given_prompt_BS

    def _see(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        if mask is not None and (not isinstance(mask, torch.Tensor) or mask.ndim != 2):
            raise ConfigError(
                "expected attention_mask of shape (rows, tokens), which is what says where padding is, got "
                f"{tuple(mask.shape) if isinstance(mask, torch.Tensor) else type(mask).__name__}"
            )
        cache = kwargs.get("past_key_values")
        self.attention_BS = mask
        self.continues = cache is not None and int(cache.get_seq_length()) > 0
