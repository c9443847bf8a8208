"""From a reference to an encoder."""

from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from kshot.corpus.encoders import HiddenStateEncoder, SentenceEncoder, StaticEncoder, load_encoder
from kshot.errors import ConfigError, SourceError
from kshot.language_model import LanguageModel


def test_static() -> None:
    pytest.importorskip("wordllama")
    assert isinstance(load_encoder("static"), StaticEncoder)


def test_base_model(tiny_lm: LanguageModel) -> None:
    assert isinstance(load_encoder("base-model", base_model=lambda: tiny_lm), HiddenStateEncoder)
    with pytest.raises(ConfigError, match="the encoder base-model needs a task"):
        load_encoder("base-model")


def test_a_folder_with_its_prefix(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    weights = np.eye(2, dtype=np.float32)
    folder = tmp_path / "letters"
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save(str(folder))
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
