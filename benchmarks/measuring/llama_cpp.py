"""llama.cpp as a reference: what it answers, and how far a PyTorch model is from that.

T tokens of prompt and answer   V vocabulary
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xllamacpp
from torch import nn

TOP = 10  # likeliest tokens whose log-probabilities are compared


@dataclass(frozen=True, slots=True)
class LlamaAnswer:
    """A greedy answer of llama.cpp.

    Attributes:
        prompt: Token ids.
        ids: Those of the answer, which no end of a turn ends.
        logprobs: At each of them, the log-probabilities of the likeliest tokens, by id.
    """

    prompt: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[dict[int, float], ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a model is from llama.cpp on the same tokens.

    Attributes:
        tokens: Of all answers.
        same: Share of them at which both hold the same token for the likeliest.
        mean: Mean absolute difference of the log-probabilities of llama.cpp's ten likeliest tokens, in nats.
        largest: The largest of these.
    """

    tokens: int
    same: float
    mean: float
    largest: float

    def rounded(self) -> dict[str, float]:
        """Return the fields, to be written."""
        return {
            name: value if name == "tokens" else float(f"{value:.3g}") for name, value in asdict(self).items()
        }


class LlamaCpp:
    """A GGUF model in llama.cpp, on one thread.

    Args:
        base: A GGUF file.
        lora: A GGUF LoRA that is applied to it.
        exact: Keep keys and values in float32, and attention plain, where llama.cpp would round to float16.

    Raises:
        RuntimeError: llama.cpp does not load them.
    """

    def __init__(self, base: Path, lora: Path | None = None, *, exact: bool = False) -> None:
        settings: Any = xllamacpp.CommonParams()
        settings.model.path = str(base)
        settings.n_ctx = 512  # prompts and answers here are shorter
        settings.n_parallel = 1
        settings.n_gpu_layers = 0
        settings.warmup = False
        settings.verbosity = 1  # errors
        settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
        if exact:
            settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
            settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if lora is not None:
            settings.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(lora), 1.0)]
        self._server: Any = xllamacpp.Server(settings)

    def answers(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[LlamaAnswer]:
        """Continue prompts greedily, by the likeliest token that is no end of a turn.

        Raises:
            ValueError: llama.cpp does not tell all tokens.
        """
        return [self._answer(tuple(prompt), new_tokens) for prompt in prompts]

    def _answer(self, prompt: tuple[int, ...], new_tokens: int) -> LlamaAnswer:
        asked = {
            "prompt": list(prompt),
            "n_predict": new_tokens,
            "temperature": 0.0,
            "n_probs": TOP,
            "ignore_eos": True,
            "cache_prompt": False,
        }
        content = self._server.handle_completions(asked)["choices"][0]["logprobs"]["content"]
        if len(content) != new_tokens:  # of a letter in several tokens it tells the last alone
            raise ValueError(
                f"expected {new_tokens} tokens of llama.cpp, got {len(content)}: ask for other prompts"
            )
        return LlamaAnswer(
            prompt,
            tuple(token["id"] for token in content),
            tuple({one["id"]: one["logprob"] for one in token["top_logprobs"]} for token in content),
        )


@torch.inference_mode()
def difference(model: nn.Module, answers: Sequence[LlamaAnswer]) -> Difference:
    """Return how far a causal language model is from llama.cpp, reading the answers token by token."""
    same, apart = [], []
    for answer in answers:
        ids_1T = torch.tensor([[*answer.prompt, *answer.ids]])
        logprobs_TV = model(input_ids=ids_1T).logits[0].float().log_softmax(-1)
        for place, likeliest in enumerate(answer.logprobs):
            here_V = logprobs_TV[len(answer.prompt) + place - 1]
            same.append(int(here_V.argmax()) == max(likeliest, key=likeliest.__getitem__))
            apart += [abs(float(here_V[one]) - logprob) for one, logprob in likeliest.items()]
    return Difference(len(same), float(np.mean(same)), float(np.mean(apart)), max(apart))
