"""The expert of a finished run as a GGUF LoRA, which llama.cpp applies to a GGUF of the same base.

R ranks   D inputs of a module   O outputs   H heads
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGUFType, GGUFWriter, get_tensor_name_map
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES, Keys

from kshot.atomic import new_folder, write_text
from kshot.errors import AdapterError
from kshot.mixture import LoraExpert, read_lora
from kshot.mixture.folder import CARD_NAME
from kshot.pipeline.export import Exported, open_expert, write_lora
from kshot.pipeline.export_card import export_card
from kshot.progress import Progress

GGUF_NAME = "adapter.gguf"
ARCHITECTURES: Mapping[str, MODEL_ARCH] = MappingProxyType(
    {
        "llama": MODEL_ARCH.LLAMA,
        "mistral": MODEL_ARCH.LLAMA,
        "qwen2": MODEL_ARCH.QWEN2,
        "qwen3": MODEL_ARCH.QWEN3,
        "gemma2": MODEL_ARCH.GEMMA2,
        "phi3": MODEL_ARCH.PHI3,
    }
)
"""llama.cpp's name of a transformers `model_type`; whose layout was compared with transformers' reader."""


def export_gguf(run: str | Path, out: str | Path, *, progress: Progress | None = None) -> Exported:
    """Export the expert of a run as `adapter.gguf`, by its mean routing where it is routed.

    Args:
        run: A run folder whose training is finished.
        out: A folder, made new.
        progress: Where to say what takes long.

    Raises:
        RunFolderError: There is no finished expert.
        ConfigError: `out` exists.
        AdapterError: llama.cpp has no such architecture or module, as far as is known here.
    """
    opened = open_expert(run, out, progress=progress)
    config: Any = opened.inputs.lm.model.config
    architecture_of(config)
    names = opened.expert_names
    with new_folder(Path(out)) as draft:
        with TemporaryDirectory(dir=draft) as plain:
            loss = write_lora(opened, Path(plain))
            write_gguf_lora(read_lora(plain), config, draft / GGUF_NAME, name=opened.inputs.task.name)
        write_text(draft / CARD_NAME, export_card(opened.inputs, names, "gguf", loss))
    return Exported(Path(out), loss)


def write_gguf_lora(lora: LoraExpert, config: Any, file: Path, *, name: str = "") -> None:
    """Write a LoRA in llama.cpp's form: float32 `lora_a` (R, D) and `lora_b` (O, R) of each module.

    llama.cpp multiplies each with `adapter.lora.alpha / R`; scalings that this does not give are put into B.
    Where its base has the rows of queries and keys in another order (rotary halves interleaved), so has B.

    Args:
        lora: Any LoRA of linear layers.
        config: transformers' configuration of its base.
        file: Written to.
        name: `general.name`.

    Raises:
        AdapterError: The architecture or a module is unknown to llama.cpp, as far as is known here.
    """
    architecture = architecture_of(config)
    named = get_tensor_name_map(architecture, config.num_hidden_layers)
    alpha = float(max(factors.r for factors in lora.factors.values()))
    writer = GGUFWriter(file, MODEL_ARCH_NAMES[architecture])
    writer.add_type(GGUFType.ADAPTER)
    if name:
        writer.add_name(name)
    writer.add_string(Keys.Adapter.TYPE, "lora")
    writer.add_float32(Keys.Adapter.LORA_ALPHA, alpha)
    for module, factors in lora.factors.items():
        tensor = named.get_name(module)
        if tensor is None or (module == "lm_head" and config.tie_word_embeddings):
            raise AdapterError(
                f"expected modules that llama.cpp has in {MODEL_ARCH_NAMES[architecture]}, got {module}: "
                "export another form, such as merged"
            )
        B_OR = factors.B_Or.float().numpy() * np.float32(factors.scaling * factors.r / alpha)
        writer.add_tensor(f"{tensor}.weight.lora_a", np.ascontiguousarray(factors.A_rI.float().numpy()))
        writer.add_tensor(f"{tensor}.weight.lora_b", _as_stored(B_OR, module, config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def architecture_of(config: Any) -> MODEL_ARCH:
    """Return llama.cpp's architecture.

    Raises:
        AdapterError: It is not among `ARCHITECTURES`.
    """
    if config.model_type not in ARCHITECTURES:
        raise AdapterError(
            f"expected a base of {', '.join(ARCHITECTURES)} for GGUF, got {config.model_type}: export the "
            "plain LoRA and convert it with llama.cpp's convert_lora_to_gguf.py"
        )
    return ARCHITECTURES[config.model_type]


def _as_stored(B_OR: np.ndarray, module: str, config: Any) -> np.ndarray:
    """Return B with its rows in the order that llama.cpp keeps outputs in."""
    projection = module.rpartition(".")[2]
    if ARCHITECTURES[config.model_type] != MODEL_ARCH.LLAMA or projection not in ("q_proj", "k_proj"):
        return np.ascontiguousarray(B_OR)
    num_heads = config.num_attention_heads if projection == "q_proj" else config.num_key_value_heads
    halves_H2dR = B_OR.reshape(num_heads, 2, -1, B_OR.shape[1])
    return np.ascontiguousarray(halves_H2dR.swapaxes(1, 2).reshape(B_OR.shape))
