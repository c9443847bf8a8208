"""Put experts on a language model for a while, and take them off again."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert, build_mixture


@contextmanager
def attached(
    lm: LanguageModel,
    experts: Mapping[str, LoraExpert],
    *,
    gates: Sequence[float] | None = None,
    **options: Any,
) -> Iterator[LanguageModel]:
    """Build a mixture on `lm` for the length of the block.

    Args:
        lm: A base model without adapters.
        experts: By name.
        gates: Constant gates, one an expert, instead of a router: `[1.0]` is one adapter as it is.
        options: As `kshot.mixture.build_mixture`.

    Raises:
        AdapterError: An expert does not fit the base model.
    """
    base = lm.model
    lm.model = build_mixture(base, experts, fixed_gates=gates, **options).eval()
    try:
        yield lm
    finally:
        lm.model = lm.model.unload()
