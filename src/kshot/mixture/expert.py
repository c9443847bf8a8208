"""A LoRA expert: a PEFT adapter folder read into its factors, module by module.

D inputs of a module   O outputs   r rank
"""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from peft.utils.other import get_pattern_key
from safetensors.torch import load_file
from torch import nn

from kshot.errors import AdapterError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapter_model.safetensors"
PICKLE_NAME = "adapter_model.bin"
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
DEFAULT_ALPHA = 8  # PEFT's default, for configs that do not say

# Older PEFT kept the adapter's name in the key: `...q_proj.lora_A.default.weight`.
_FACTOR_KEY = re.compile(r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight$")
# LoRA variants whose output is not `s B A x`.
_VARIANTS = (
    "use_dora", "use_qalora", "use_bdlora", "alora_invocation_tokens", "arrow_config", "kasa_config",
    "monteclora_config", "velora_config", "layer_replication", "target_parameters", "trainable_token_indices",
)  # fmt: skip
# Starts that also change the base weights, so that the factors alone are not the adapter.
_BASE_CHANGING_STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")


@dataclass(frozen=True, slots=True, eq=False)
class LoraFactors:
    """One module's weight change, `scaling * B_Or @ A_rI`, with the tensors as stored.

    Attributes:
        A_rI: (r, inputs), floating point.
        B_Or: (outputs, r), same kind.
        scaling: `lora_alpha / r`, or `lora_alpha / sqrt(r)` under rsLoRA; patterns applied.
    """

    A_rI: torch.Tensor
    B_Or: torch.Tensor
    scaling: float

    @property
    def r(self) -> int:
        """Rank."""
        return self.A_rI.shape[0]


class ExpertOrigin(TypedDict):
    """Where an expert came from, as it is kept with a mixture; JSON can hold it.

    Attributes:
        name: What the mixture calls the expert.
        source: A Hub id with its revision, or a folder's name; never a path of the machine.
        base_model: `base_model_name_or_path` of the adapter, which may be wrong.
        licence: `license` of the adapter's model card.
        converted_from: The kind of adapter it was, such as DORA or LOHA; None for a plain LoRA.
        conversion_error: `||dW - s B A|| / ||dW||` (Frobenius) over all modules; None for a plain LoRA.
    """

    name: str
    source: str
    base_model: str | None
    licence: str | None
    converted_from: str | None
    conversion_error: float | None


@dataclass(frozen=True, slots=True, eq=False)
class LoraExpert:
    """A LoRA adapter as factors; its shapes agree within each module and its numbers are finite.

    Attributes:
        name: What the mixture calls it; never part of a state-dict key.
        base_model: `base_model_name_or_path` of the folder, which may be missing or wrong: shapes decide.
        factors: Keyed by the module's name in the base model, sorted.
        origin: Where it came from, if known.

    Raises:
        AdapterError: No factors, factors that do not multiply, or numbers that are not finite.
    """

    name: str
    base_model: str | None
    factors: dict[str, LoraFactors]
    origin: ExpertOrigin | None = None

    def __post_init__(self) -> None:
        if not self.factors:
            raise AdapterError(
                f"expert {self.name!r}: expected LoRA weights, got none: train it, or leave it out"
            )
        for module, factors in self.factors.items():
            _check_factors(f"expert {self.name!r}, module {module}", factors)
        object.__setattr__(self, "factors", dict(sorted(self.factors.items())))


def read_lora(folder: str | Path, name: str | None = None) -> LoraExpert:
    """Read a PEFT LoRA folder: any ranks, alphas, patterns, rsLoRA and target modules.

    Args:
        folder: Holds `adapter_config.json` and `adapter_model.safetensors`.
        name: The expert's name; the folder's if omitted.

    Raises:
        AdapterError: The folder is damaged, pickled, no LoRA, or a LoRA with more than `s B A x` in it
            (DoRA, biases, trained embeddings, `modules_to_save`, a changed base). Nothing is dropped.
    """
    folder = Path(folder)
    name = folder.resolve().name if name is None else name
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    _check_plain_lora(folder, config)
    base_model = config.get("base_model_name_or_path")
    sides = _pair_tensors(folder, tensors)
    factors = {
        module: LoraFactors(A_rI, B_Or, _scaling(folder, config, module, A_rI.shape[0]))
        for module, (A_rI, B_Or) in sides.items()
    }
    return LoraExpert(name, base_model if isinstance(base_model, str) else None, factors)


def check_fits(expert: LoraExpert, base_model: nn.Module) -> None:
    """Check that every module of `expert` exists in `base_model` with the same inputs and outputs.

    Raises:
        AdapterError: Names the first module that does not fit, both shapes, and how many others there are.
    """
    modules = dict(base_model.named_modules())
    faults = []
    for module, factors in expert.factors.items():
        want = linear_shape(modules[module]) if module in modules else None
        got = (factors.B_Or.shape[0], factors.A_rI.shape[1])
        if want != got:
            found = f"{want[0]}x{want[1]}" if want else "no such linear layer"
            faults.append(f"{module}: expert {got[0]}x{got[1]}, base model {found}")
    if faults:
        others = f" and {len(faults) - 1} more" if len(faults) > 1 else ""
        raise AdapterError(
            f"expert {expert.name!r} was trained on another base: expected the base model's shapes "
            f"(outputs x inputs), got {faults[0]}{others}: choose experts of this base model"
        )


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Outputs and inputs of a linear layer, quantised or not, or of GPT-2's Conv1D; else None."""
    if is_transposed(module):
        inputs, outputs = module.weight.shape  # type: ignore[misc]
        return int(outputs), int(inputs)
    outputs, inputs = getattr(module, "out_features", None), getattr(module, "in_features", None)
    return (outputs, inputs) if isinstance(outputs, int) and isinstance(inputs, int) else None


def is_transposed(module: nn.Module) -> bool:
    """Whether the weight is stored (inputs, outputs), as in transformers' Conv1D."""
    return type(module).__name__ == "Conv1D"


def _check_factors(where: str, factors: LoraFactors) -> None:
    A_rI, B_Or = factors.A_rI, factors.B_Or
    shapes = f"A {tuple(A_rI.shape)} and B {tuple(B_Or.shape)}"
    if A_rI.ndim != 2 or B_Or.ndim != 2 or A_rI.shape[0] != B_Or.shape[1] or 0 in (*A_rI.shape, *B_Or.shape):
        raise AdapterError(
            f"{where}: expected A (r, inputs) and B (outputs, r) of a linear layer, got {shapes}: "
            "save the adapter again, or leave it out"
        )
    for side, tensor in (("lora_A", A_rI), ("lora_B", B_Or)):
        if tensor.dtype not in WEIGHT_DTYPES:
            raise AdapterError(
                f"{where}: expected {side} in float64, float32, float16 or bfloat16, got {tensor.dtype}: "
                "convert the adapter"
            )
        if not torch.isfinite(tensor).all():
            raise AdapterError(f"{where}: expected finite weights, got NaN or inf in {side}: train it again")
    if not math.isfinite(factors.scaling):
        raise AdapterError(f"{where}: expected a finite scaling, got {factors.scaling}: mend {CONFIG_NAME}")


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG_NAME
    if not path.is_file():
        raise AdapterError(
            f"{folder}: expected a PEFT adapter folder with {CONFIG_NAME}, got none: "
            "give the folder that `save_pretrained` wrote; download a Hub adapter first"
        )
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{path}: expected JSON, got {error}: fetch or save the adapter again") from error
    if not isinstance(config, dict):
        raise AdapterError(
            f"{path}: expected a JSON object, got a {type(config).__name__}: save the adapter again"
        )
    return config


def _read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        got = f"only {PICKLE_NAME}, which is never unpickled" if (folder / PICKLE_NAME).exists() else "none"
        raise AdapterError(
            f"{folder}: expected {WEIGHTS_NAME}, got {got}: convert it to safetensors with `save_pretrained` "
            "in a sandbox you trust"
        )
    try:
        return load_file(path)
    except Exception as error:  # a stranger's file: whatever the reader trips over, the file is at fault
        raise AdapterError(
            f"{path}: expected whole safetensors, got {type(error).__name__}: {error}: fetch the file again"
        ) from error


def _check_plain_lora(folder: Path, config: dict[str, Any]) -> None:
    if config.get("peft_type") != "LORA":
        raise AdapterError(
            f"{folder}: expected peft_type LORA, got {config.get('peft_type')!r}: "
            "only LoRA adapters can be experts; convert it with PEFT's `convert_to_lora` or leave it out"
        )
    for setting in _VARIANTS:
        if config.get(setting):
            raise AdapterError(
                f"{folder}: expected a plain LoRA, got {setting}={config[setting]!r}, which is more "
                "than s*B*A*x: convert it with PEFT's `convert_to_lora` or leave it out"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_STARTS):
        raise AdapterError(
            f"{folder}: expected a LoRA on the untouched base, got init_lora_weights={start!r}, which also "
            "changes the base: save it again with `path_initial_model_for_weight_conversion`"
        )


def _pair_tensors(
    folder: Path, tensors: dict[str, torch.Tensor]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    sides: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        match = _FACTOR_KEY.match(key)
        if match is None or match["side"] in sides.get(match["module"], {}):
            raise AdapterError(
                f"{folder}: expected lora_A and lora_B alone, once each, got {_kind_of(key)} in {key}: "
                "train the adapter without it, or leave the adapter out"
            )
        sides.setdefault(match["module"], {})[match["side"]] = tensor
    for module, pair in sides.items():
        if len(pair) != 2:
            lone, lacking = ("lora_A", "lora_B") if "A" in pair else ("lora_B", "lora_A")
            raise AdapterError(
                f"{folder}: expected both factors of {module}, got {lone} without {lacking}: save it again"
            )
    return {module: (pair["A"], pair["B"]) for module, pair in sides.items()}


def _kind_of(key: str) -> str:
    if "lora_embedding_" in key:
        return "a trained embedding"
    if "lora_magnitude_vector" in key:
        return "a DoRA magnitude"
    if key.endswith(".bias"):
        return "a bias"
    if ".lora_" in key:
        return "a second or unknown LoRA tensor"
    return "a whole weight (modules_to_save, or saved embeddings: save_embedding_layers=False omits those)"


def _scaling(folder: Path, config: dict[str, Any], module: str, r: int) -> float:
    stated_r = _number(folder, config, "r", "rank_pattern", module, default=r)
    if stated_r != r:
        raise AdapterError(
            f"{folder}: expected r={stated_r:g} in {module} as {CONFIG_NAME} says, got weights of rank {r}: "
            f"mend r or rank_pattern in {CONFIG_NAME}"
        )
    alpha = _number(folder, config, "lora_alpha", "alpha_pattern", module, default=DEFAULT_ALPHA)
    return alpha / (math.sqrt(r) if config.get("use_rslora") else r)


def _number(
    folder: Path, config: dict[str, Any], key: str, pattern_key: str, module: str, *, default: float
) -> float:
    """Return `config[key]` for `module`, with the pattern that PEFT itself would apply."""
    patterns = config.get(pattern_key) or {}
    if not isinstance(patterns, dict):
        raise AdapterError(
            f"{folder}: expected {pattern_key} as an object, got {patterns!r}: mend {CONFIG_NAME}"
        )
    try:
        value = patterns.get(get_pattern_key(list(patterns), module), config.get(key, default))
    except re.error as error:
        raise AdapterError(
            f"{folder}: expected regular expressions in {pattern_key}, got {error}: mend {CONFIG_NAME}"
        ) from error
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise AdapterError(f"{folder}: expected {key} as a number, got {value!r}: mend {CONFIG_NAME}")
    return float(value)
