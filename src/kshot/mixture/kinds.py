"""Kinds of adapter: the plain LoRA, those that can become one, and those that change no linear layers."""

from pathlib import Path
from typing import Any

from kshot.errors import AdapterError

PLAIN = "LORA"
# What their layers compute is linear in the input, so that a change of the weight says all of it.
CONVERTIBLE_TYPES = frozenset({
    "ADALORA", "BOFT", "C3A", "DEFT", "DELORA", "FOURIERFT", "GLORA", "GRALORA", "HIRA", "HRA", "IA3", "LOHA",
    "LOKR", "MISS", "OFT", "PSOFT", "RANDLORA", "ROAD", "SHIRA", "TINYLORA", "UNILORA", "VBLORA", "VERA",
    "WAVEFT",
})  # fmt: skip
# LoRA settings of which the same holds.
_CONVERTIBLE_SETTINGS = {
    "use_dora": "DORA",
    "use_bdlora": "BDLORA",
    "monteclora_config": "MONTECLORA",
    "velora_config": "VELORA",
    "target_parameters": "LORA on parameters",
}
_REFUSED_SETTINGS = {
    "alora_invocation_tokens": "is switched on by tokens of the prompt",
    "arrow_config": "has a router of its own",
    "kasa_config": "also changes the base",
    "layer_replication": "also changes the base",
    "trainable_token_indices": "also trains embeddings",
    "use_qalora": "belongs to the groups of one quantisation",
}
_ADDS_TOKENS = "adds tokens or states and changes no weights"
_ROUTES = "has a router of its own"
_REFUSED_TYPES = {
    "ADAPTION_PROMPT": _ADDS_TOKENS,
    "CARTRIDGE": _ADDS_TOKENS,
    "CPT": _ADDS_TOKENS,
    "MULTITASK_PROMPT_TUNING": _ADDS_TOKENS,
    "PREFIX_TUNING": _ADDS_TOKENS,
    "PROMPT_TUNING": _ADDS_TOKENS,
    "P_TUNING": _ADDS_TOKENS,
    "KSHOT_MIXTURE": "is a mixture itself: give its experts, or what export_lora makes of it",
    "LILY": _ROUTES,
    "POLY": _ROUTES,
    "XLORA": _ROUTES,
    "BEFT": "trains biases",
    "LN_TUNING": "trains norms",
    "TRAINABLE_TOKENS": "trains embeddings",
}
# Starts of `init_lora_weights` that also change the base, so that the factors alone are not the adapter.
_BASE_CHANGING_STARTS = ("pissa", "corda", "olora", "loftq", "lora_ga", "mica")


def adapter_kind(folder: Path, config: dict[str, Any]) -> str:
    """Return the kind of an adapter: `LORA` if plain, else the PEFT type or LoRA variant to convert from.

    Args:
        folder: Named in the error.
        config: Its `adapter_config.json`.

    Raises:
        AdapterError: The adapter is not a change of linear layers' weights on the untouched base.
    """
    kind = config.get("peft_type")
    if kind != PLAIN and (not isinstance(kind, str) or kind not in CONVERTIBLE_TYPES):
        reason = _REFUSED_TYPES.get(str(kind), "is not known to be a change of weights")
        raise AdapterError(
            f"{folder}: expected peft_type LORA, or one that can be converted to it, got {kind!r}, "
            f"which {reason}: leave it out"
        )
    for setting, reason in _REFUSED_SETTINGS.items():
        if config.get(setting):
            raise AdapterError(
                f"{folder}: expected a LoRA that is a change of weights, got {setting}={config[setting]!r}, "
                f"which {reason}: leave it out"
            )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_BASE_CHANGING_STARTS):
        raise AdapterError(
            f"{folder}: expected a LoRA on the untouched base, got init_lora_weights={start!r}, which also "
            "changes the base: save it again with `path_initial_model_for_weight_conversion`"
        )
    variants = [name for setting, name in _CONVERTIBLE_SETTINGS.items() if config.get(setting)]
    return variants[0] if kind == PLAIN and variants else str(kind)
