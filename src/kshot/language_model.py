"""A base model with its tokenizer: batched greedy generation; token NLL, logits at label positions only.

Shapes: B rows of a batch, T tokens of a row, D hidden size, L label tokens of a batch, V vocabulary.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedTokenizerBase

from kshot.batching import label_logits, length_batches, pad_left
from kshot.decoding import Choose, OnRows, greedy_decode
from kshot.errors import ConfigError, SourceError, reason_of
from kshot.model_source import resolve_model
from kshot.progress import Advance
from kshot.prompts import PromptTemplate, TokenisedExample
from kshot.quantization import keep_trainable, quantization_settings

TOKENS_PER_BATCH = 4096  # padded, of a scoring batch: 2 GB of activations at 7B in bf16
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
GENERATION_BATCH = 64  # rows decoded at once: 170 tokens/s against 13 at one row (SmolLM2-135M, 2 cores)


class LanguageModel:
    """A causal language model and its tokenizer.

    Attributes:
        model: A transformers model, or a PeftModel around it.
        tokenizer: As loaded.
        template: How prompts are written.
        loaded_as: Arguments of `load` that give this model again; None if it was not loaded.
    """

    def __init__(
        self, model: nn.Module, tokenizer: PreTrainedTokenizerBase, *, name: str = "", system_prompt: str = ""
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.template = PromptTemplate(tokenizer, system_prompt)
        self.name = name
        self.pad_id = _pad_id(tokenizer)
        self.loaded_as: dict[str, str] | None = None

    @classmethod
    def load(
        cls,
        reference: str,
        *,
        dtype: str = "float32",
        quantization: str = "none",
        device: str | None = None,
        relative_to: Path | None = None,
    ) -> "LanguageModel":
        """Load a model from a folder, a Hub id or a wheel; safetensors only, no remote code.

        Args:
            reference: See `kshot.model_source.resolve_model`.
            dtype: float32, bfloat16 or float16; float32 is the fastest on CPUs without bf16 units.
            quantization: none, 8bit or 4bit; see `kshot.quantization`.
            device: Such as `cuda`; the accelerator if there is one, else the CPU.
            relative_to: Folder that a relative path starts from.

        Raises:
            SourceError: It cannot be fetched, or is no causal language model with safetensors weights.
            ConfigError: `dtype` or `quantization` is unknown, or there is no such device.
            MissingExtraError: A quantised model needs a package that is not installed.
        """
        if dtype not in DTYPES:
            raise ConfigError(f"expected dtype {', '.join(DTYPES)}, got {dtype!r}")
        settings = quantization_settings(quantization, DTYPES[dtype])
        place = _usable_device(device)
        folder = resolve_model(reference, relative_to=relative_to)
        if settings:  # bitsandbytes quantises where the weights end up
            settings["device_map"] = {"": place}
        try:
            model: nn.Module = AutoModelForCausalLM.from_pretrained(
                folder, dtype=DTYPES[dtype], use_safetensors=True, trust_remote_code=False, **settings
            )
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # OSError, ValueError, KeyError, safetensors' own and others
            raise SourceError(
                f"expected a causal language model with safetensors in {folder}, got: {reason_of(error)}"
            ) from error
        if settings:
            keep_trainable(model)
        else:
            model = model.to(place)
        lm = cls(model.eval(), tokenizer, name=reference)
        lm.loaded_as = {"reference": reference, "dtype": dtype, "quantization": quantization}
        return lm

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def max_length(self) -> int:
        """Longest row the model reads, in tokens."""
        config: Any = self.model.config
        return int(getattr(config, "max_position_embeddings", self.tokenizer.model_max_length))

    @torch.inference_mode()
    def token_nll(
        self,
        rows: Sequence[TokenisedExample],
        *,
        tokens_per_batch: int = TOKENS_PER_BATCH,
        progress: Advance | None = None,
        on_rows: OnRows | None = None,
    ) -> list[np.ndarray]:
        """Return the negative log-likelihood of each target token, in nats.

        Args:
            rows: Tokenised examples; grouped by length, so that little is padded.
            tokens_per_batch: Padded tokens of one forward pass.
            progress: Called with the number of rows just scored.
            on_rows: Called before each forward pass with the indices of the rows in it, in order.

        Returns:
            For each row, in the order given, a float64 array of its target length.
        """
        self.model.eval()
        found: list[np.ndarray] = [np.empty(0)] * len(rows)
        for indices in length_batches([len(row) for row in rows], tokens_per_batch):
            batch = pad_left([rows[index] for index in indices], self.pad_id, self.device)
            if on_rows:
                on_rows(indices)
            logits_LV = label_logits(self.model, batch)
            nll_L = cross_entropy(logits_LV.float(), batch.targets_L, reduction="none").double().cpu().numpy()
            ends = np.cumsum([rows[index].target_length for index in indices])
            for index, values in zip(indices, np.split(nll_L, ends[:-1]), strict=True):
                found[index] = values
            if progress:
                progress(len(indices))
        return found

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int = 128,
        batch_size: int = GENERATION_BATCH,
        progress: Advance | None = None,
        on_rows: OnRows | None = None,
        choose: Choose | None = None,
    ) -> list[str]:
        """Answer each prompt greedily, batched by length with a KV cache, until the end token.

        Greedy means the likeliest token each time; penalties that the model's own settings ask for are off.

        Args:
            prompts: What the user says.
            max_new_tokens: Longest answer, in tokens.
            batch_size: Rows decoded at once.
            progress: Called with the number of rows just answered.
            on_rows: Called before each forward pass with the indices of the prompts in it, in order.
            choose: Takes the next tokens in place of the likeliest ones, from logits and indices of prompts.

        Raises:
            ConfigError: `max_new_tokens` or `batch_size` is below 1.
        """
        for setting, value in {"max_new_tokens": max_new_tokens, "batch_size": batch_size}.items():
            if value < 1:
                raise ConfigError(f"{setting} must be at least 1, got {value}: raise it")
        self.model.eval()
        ids = [self.template.encode_prompt(prompt) for prompt in prompts]
        answers = [""] * len(prompts)
        order = sorted(range(len(ids)), key=lambda index: (len(ids[index]), index))
        for start in range(0, len(order), batch_size):
            indices = sorted(order[start : start + batch_size])  # as given, which is by adapter in scoring
            texts = self.answer_batch(
                [ids[index] for index in indices],
                max_new_tokens=max_new_tokens,
                on_rows=_renamed(on_rows, indices),
                choose=_renamed_choice(choose, indices),
            )
            for index, text in zip(indices, texts, strict=True):
                answers[index] = text
            if progress:
                progress(len(indices))
        return answers

    @torch.inference_mode()
    def answer_batch(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        on_rows: OnRows | None = None,
        choose: Choose | None = None,
        cache: DynamicCache | None = None,
    ) -> list[str]:
        """Answer prompts in one batch, as `generate` does.

        Args:
            prompts: Token ids of each.
            max_new_tokens: Longest answer, in tokens.
            on_rows: As for `greedy_decode`.
            choose: Likewise.
            cache: Likewise; of the prompts padded on the left.
        """
        rows = [TokenisedExample(tuple(ids), len(ids)) for ids in prompts]
        batch = pad_left(rows, self.pad_id, self.device)
        new_ids = greedy_decode(
            self.model,
            batch,
            end_ids=self.template.end_ids(getattr(self.model.generation_config, "eos_token_id", None)),
            max_new_tokens=max_new_tokens,
            on_rows=on_rows,
            choose=choose,
            cache=cache,
        )
        texts = self.tokenizer.batch_decode(new_ids, skip_special_tokens=True)
        return [self.template.until_end(text) for text in texts]


def _pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    if not isinstance(pad, int):
        raise SourceError(
            "expected a tokenizer with a padding or end token, got neither: set eos_token in its config"
        )
    return pad


def _usable_device(name: str | None) -> torch.device:
    """Return the device of that name; the accelerator, or the CPU, by default."""
    try:
        best = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = torch.device(name) if name else best or torch.device("cpu")
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # which of them depends on how torch was built
        raise ConfigError(
            f"expected a device that torch can use, got {name!r}: {reason_of(error)}; leave it out"
        ) from error
    return device


def _renamed(on_rows: OnRows | None, indices: Sequence[int]) -> OnRows | None:
    """Let a callback hear of the rows of a batch by their index outside of it."""
    return on_rows and (lambda rows: on_rows([indices[row] for row in rows]))


def _renamed_choice(choose: Choose | None, indices: Sequence[int]) -> Choose | None:
    """Let a choice of tokens hear of the rows of a batch by their index outside of it."""
    return choose and (lambda logits_BV, rows: choose(logits_BV, [indices[row] for row in rows]))
