"""A transformers model as a GGUF base in float32, as llama.cpp's converter writes it but for token texts."""

from pathlib import Path
from typing import Any

import gguf
from gguf.constants import MODEL_ARCH, MODEL_ARCH_NAMES
from torch import Tensor
from transformers import PreTrainedModel

from kshot.pipeline.export_gguf import architecture_of


def write_gguf_base(model: PreTrainedModel, file: Path) -> None:
    """Write a model of any architecture that `kshot export --form gguf` knows.

    Args:
        model: With full attention: the window of a sliding one is written as the longest context.
        file: Written to.
    """
    config: Any = model.config
    architecture = architecture_of(config)
    writer = gguf.GGUFWriter(file, MODEL_ARCH_NAMES[architecture])
    _add_shape(writer, config, architecture)
    _add_vocabulary(writer, config)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored, name
        writer.add_tensor(stored, _as_stored(name, value.float(), config, architecture).contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: Any, architecture: MODEL_ARCH) -> None:
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    if architecture in (MODEL_ARCH.GEMMA2, MODEL_ARCH.PHI3):
        writer.add_sliding_window(config.max_position_embeddings)
    if architecture == MODEL_ARCH.GEMMA2:
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_vocabulary(writer: gguf.GGUFWriter, config: Any) -> None:
    """Call each token by its number: prompts are ids, and of a letter in two tokens llama.cpp tells one."""
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([str(one) for one in range(config.vocab_size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * config.vocab_size)
    writer.add_token_merges(["1 1"])  # there must be one
    writer.add_eos_token_id(config.eos_token_id)


def _as_stored(name: str, value: Tensor, config: Any, architecture: MODEL_ARCH) -> Tensor:
    """Return a tensor as llama.cpp keeps it: rotary halves interleaved for Llama, Gemma's norms around 1."""
    module = name.split(".")[-2]
    if architecture == MODEL_ARCH.LLAMA and module in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
        return value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
    return value + 1 if architecture == MODEL_ARCH.GEMMA2 and module.endswith("norm") else value
