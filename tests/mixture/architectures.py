"""Tiny bases of six architectures, experts that fit them, and the kinds of mixture made of them."""

from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from kshot.mixture import LoraExpert, LoraFactors, build_mixture
from kshot.mixture.expert import linear_shape

VOCAB = 64
_SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
_SHARED = {
    "vocab_size": VOCAB,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
    "initializer_range": 0.2,  # large, so that greedy tokens differ by row and by adapter
    "tie_word_embeddings": False,
}
_GPT2_SIZES = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
CONFIGS: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, _SIZES),
    "qwen2": (Qwen2Config, _SIZES),
    "qwen3": (Qwen3Config, _SIZES | {"head_dim": 8}),
    "mistral": (MistralConfig, _SIZES | {"sliding_window": 6}),
    "gpt2": (GPT2Config, _GPT2_SIZES | {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}),
    "phi": (PhiConfig, _SIZES | {"num_key_value_heads": 4}),
}
ARCHITECTURES = tuple(CONFIGS)
EXPERTS = ("first", "second", "third")
KINDS: dict[str, dict[str, Any]] = {
    "module_token": {},
    "layer_token": {"router_scope": "layer"},
    "module_sequence": {"router_granularity": "sequence"},
    "layer_sequence": {"router_scope": "layer", "router_granularity": "sequence"},
    "directions_top1": {"router_start": "directions", "top_k": 1},
    "null_shared_prior": {
        "null_expert": True, "shared_r": 3, "shared_alpha": 1.0,
        "expert_scores": dict(zip(EXPERTS, (0.3, 0.0, -0.2), strict=True)),
    },
    "fixed": {"fixed_gates": [0.3, 0.9, -0.4], "shared_r": 2},
}  # fmt: skip
SEQUENCE_KINDS = ("module_sequence", "layer_sequence")
CASES = [("llama", kind) for kind in KINDS] + [(name, "layer_token") for name in ARCHITECTURES[1:]]
HALF_CASES = [(kind, torch.bfloat16) for kind in KINDS] + [
    (kind, torch.float16) for kind in ("layer_token", "module_sequence", "fixed")
]
TOKEN_KINDS = tuple(kind for kind in KINDS if kind not in SEQUENCE_KINDS)


def make_base(architecture: str = "llama", dtype: torch.dtype = torch.float32, **changes: Any) -> nn.Module:
    """The same base each time, in evaluation mode; `changes` are of its config."""
    config_class, sizes = CONFIGS[architecture]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        model = AutoModelForCausalLM.from_config(config_class(**_SHARED | sizes | changes))
    return model.to(dtype).eval()


def make_experts(
    base: nn.Module, seed: int = 1, *, head: bool = False, endings: tuple[str, ...] = ("",)
) -> dict[str, LoraExpert]:
    """Three experts that differ in rank, scaling and modules, on all linears but the head, or on it too."""
    draw = torch.Generator().manual_seed(seed)
    shapes = {name: linear_shape(module) for name, module in base.named_modules()}
    modules = [
        name
        for name, shape in shapes.items()
        if shape and name.endswith(endings) and (head or name != "lm_head")
    ]
    experts = {}
    for place, name in enumerate(EXPERTS):
        r, scaling = place + 1, (2.0, 1 / 3, 0.7)[place]
        factors = {}
        for module in modules[
            place == 1 :
        ]:  # the second lacks the first module, which holds the first router
            outputs, inputs = shapes[module]
            A_rI, B_Or = (torch.randn(shape, generator=draw) * 0.2 for shape in ((r, inputs), (outputs, r)))
            factors[module] = LoraFactors(A_rI, B_Or, scaling)
        experts[name] = LoraExpert(name, None, factors)
    return experts


def make_mixture(
    kind: str = "module_token", base: nn.Module | None = None, *, seed: int = 1, **options: Any
) -> PeftModel:
    """A mixture whose router tells tokens apart; a `base` that is a PeftModel gets one more."""
    base = make_base() if base is None else base
    experts = options.pop("experts", None) or make_experts(make_base(base.config.model_type), seed)
    model = build_mixture(base, experts, seed=seed, **KINDS[kind] | options).eval()
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if f".mixture_router.{options.get('adapter_name', 'default')}." in name and name.endswith("weight"):
            noise = torch.randn(parameter.shape, generator=draw) * 0.5
            parameter.data += noise.to(parameter)
    return model


def token_ids(rows: int = 3, tokens: int = 9) -> torch.Tensor:
    """Random tokens, none of them padding."""
    return torch.randint(2, VOCAB, (rows, tokens), generator=torch.Generator().manual_seed(3))


def left_padded(rows: int = 3, tokens: int = 9) -> dict[str, torch.Tensor]:
    """Prompts of different lengths, the last one without padding."""
    ids_BT = token_ids(rows, tokens)
    mask_BT = torch.ones_like(ids_BT)
    for row in range(rows - 1):
        mask_BT[row, : rows - row] = 0
    return {"input_ids": ids_BT * mask_BT, "attention_mask": mask_BT}


def logits_of(model: nn.Module, **inputs: Any) -> torch.Tensor:
    inputs = inputs or {"input_ids": token_ids()}
    with torch.no_grad():
        logits: torch.Tensor = model(**inputs).logits
    return logits


def train(model: nn.Module, steps: int = 2, rate: float = 0.05) -> nn.Module:
    """A few plain gradient steps on everything trainable, so that no part is as it was drawn."""
    training = model.training
    model.train()
    for _ in range(steps):
        model(input_ids=token_ids(), labels=labels()).loss.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.data -= rate * parameter.grad
                parameter.grad = None
    return model.train(training)


def labels(tokens: int = 9) -> torch.Tensor:
    """The prompts are of different lengths, at least two tokens."""
    labels_BT = token_ids(tokens=tokens).clone()
    for row in range(len(labels_BT)):
        labels_BT[row, : 2 + row] = -100
    return labels_BT
