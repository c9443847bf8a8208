"""From a reference to an encoder."""

from pathlib import Path

import numpy as np
import pytest

from kshot.corpus.encoders import HiddenStateEncoder, SentenceEncoder, StaticEncoder, load_encoder
from kshot.errors import ConfigError, SourceError
from kshot.language_model import LanguageModel

from ...word_encoder import write_word_encoder


def test_static() -> None:
    pytest.importorskip("wordllama")
    assert isinstance(load_encoder("static"), StaticEncoder)


def test_base_model(tiny_lm: LanguageModel) -> None:
    assert isinstance(load_encoder("base-model", base_model=lambda: tiny_lm), HiddenStateEncoder)
    with pytest.raises(ConfigError, match="the encoder base-model needs a task"):
        load_encoder("base-model")


def test_a_folder_with_its_prefix(tmp_path: Path) -> None:
    folder = write_word_encoder(tmp_path / "letters", ["a"], np.eye(2))
    encoder = load_encoder(str(folder), prefix="query: ")
    assert isinstance(encoder, SentenceEncoder)
    assert encoder.name.startswith("letters ")
    assert encoder.name.endswith(" prefix='query: '")


@pytest.mark.parametrize("reference", ["static", "base-model"])
def test_a_prefix_without_effect_is_refused(reference: str) -> None:
    with pytest.raises(ConfigError, match=f"a prefix is for sentence encoders, got one with {reference}"):
        load_encoder(reference, prefix="query: ")


def test_nothing_there() -> None:
    with pytest.raises(SourceError, match="expected a model folder, a Hub id or pypi"):
        load_encoder("no such model")
