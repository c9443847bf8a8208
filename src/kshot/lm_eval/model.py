"""An expert as a model of lm-eval: prompts and ends of answers are those that kshot measures by."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from peft import PeftModel
from torch import nn

from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.mixture.config import PEFT_TYPE, MixtureConfig
from kshot.mixture.folder import read_config
from kshot.serving.served_models import find_expert

_UNSAID = "cuda:0"  # lm-eval's --device by default


@register_model("kshot")
class KshotLM(HFLM):  # type: ignore[misc]
    """What a run hands over, or any adapter folder, on its base model.

    With `--apply_chat_template` chats are rendered as kshot does (no default system text), and the
    log-likelihood of a continuation holds the end of the turn, which tells a choice from one that begins with
    it. So `acc` and `acc_norm` (per character) are those of `kshot eval`. Without it all is as in lm-eval's
    own `hf`, with raw texts that no expert was trained on.

    Args:
        expert: `--model_args expert=...`: a run or adapter folder; None for the base alone.
        base_model: In place of the one that the expert names: a folder, Hub id or wheel.
        dtype: Of the base; `quantization` likewise.
        quantization: none, 8bit or 4bit.
        device: Such as `cpu`; where nothing is said lm-eval says `cuda:0`, which without CUDA is any other
            accelerator or the CPU.
        batch_size: Rows of a forward pass.
        settings: As lm-eval's `HFLM` takes them.

    Raises:
        ConfigError: Neither an expert nor a base is named, or rows would be padded that a router decides for.
        KshotError: The expert or the base cannot be loaded, or the run has chosen the base model.
    """

    def __init__(
        self,
        expert: str | None = None,
        base_model: str | None = None,
        *,
        dtype: str = "float32",
        quantization: str = "none",
        device: str | None = None,
        batch_size: int | str = 1,
        **settings: Any,
    ) -> None:
        source = find_expert(expert) if expert else None
        reference = base_model or (source.base_model if source else None)
        if reference is None:
            raise ConfigError(
                "expected --model_args expert=FOLDER, or base_model=... where that names none, got neither"
            )
        place = None if device == _UNSAID and not torch.cuda.is_available() else device
        lm = LanguageModel.load(reference, dtype=dtype, quantization=quantization, device=place)
        if source is not None:
            lm.model = _with_adapter(lm.model, source.folder, source.name)
            _check_padding(lm.model, batch_size)
        self._kshot_template = lm.template
        self._written: set[str] = set()  # contexts that are chats
        super().__init__(
            pretrained=lm.model, tokenizer=lm.tokenizer, batch_size=batch_size, backend="causal", **settings
        )
        self.pretrained = reference
        self.peft = expert

    def apply_chat_template(
        self, chat_history: Sequence[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a chat; one that ends in a begun answer goes on where that stops."""
        messages, begun = list(chat_history), ""
        if not add_generation_prompt and messages and messages[-1]["role"] == "assistant":
            begun = messages.pop()["content"]
        text = self._kshot_template.messages_text(messages) + begun
        self._written.add(text)
        return text

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context not in self._written:
            pair: tuple[list[int], list[int]] = super()._encode_pair(context, continuation)
            return pair
        row = self._kshot_template.encode_after(context, continuation)
        ids = list(row.input_ids)
        return ids[: row.prompt_length], ids[row.prompt_length :]


def _with_adapter(base: nn.Module, folder: Path, name: str) -> PeftModel:
    """Load a mixture, or any adapter that kshot reads as one expert."""
    if read_config(folder).get("peft_type") == PEFT_TYPE.value:
        return PeftModel.from_pretrained(base, str(folder)).eval()
    return build_mixture(base, {name: folder}, fixed_gates=[1.0]).eval()


def _check_padding(model: PeftModel, batch_size: int | str) -> None:
    """Refuse batches where a router decides once for a row: lm-eval pads rows without telling the model."""
    config = model.peft_config["default"]
    by_row = isinstance(config, MixtureConfig) and config.router_granularity == "sequence"
    if by_row and str(batch_size) != "1":
        raise ConfigError(
            f"expected --batch_size 1 for a router that decides once for a prompt, got {batch_size}: its "
            "choice would depend on the padding that lm-eval adds"
        )
