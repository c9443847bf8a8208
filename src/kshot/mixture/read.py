"""PLACEHOLDER until read.py proper lands."""
from kshot.mixture.expert import CONFIG_NAME, PICKLE_NAME, WEIGHTS_NAME, LoraExpert, read_lora


def load_expert(source, name, base_model=None, *, convert_rank=None):
    return source if isinstance(source, LoraExpert) else read_lora(source, name)
