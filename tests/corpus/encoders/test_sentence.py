"""Sentence encoders: against the model's own pooling done by hand, on models made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import (
    Normalize,
    Pooling,
    StaticEmbedding,
    Transformer,
)
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from kshot.corpus.encoders import SentenceEncoder
from kshot.errors import SourceError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "query", ":", "on", "mat"]
TEXTS = ["the cat sat", "dog", "the dog sat on the mat on the mat", "the cat sat"]


def _write_bert(folder: Path, seed: int, pooling: str = "mean") -> Path:
    """Write a BERT of two layers as sentence-transformers saves one; pooled by `cls`, with unit norms too."""
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
    )
    BertModel(config).save_pretrained(folder / "bert")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    BertTokenizerFast(vocab=vocabulary).save_pretrained(folder / "bert")
    modules = [Transformer(str(folder / "bert"), max_seq_length=32), Pooling(32, pooling_mode=pooling)]
    modules += [Normalize()] if pooling == "cls" else []
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write_bert(tmp_path_factory.mktemp("encoder"), seed=0)


@pytest.fixture
def static_folder(tmp_path: Path) -> Path:
    """Static vectors in which `cat` is a zero vector and `dog` has a NaN."""
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    weights = np.array([[1, 1], [0, 0], [np.nan, 1]], dtype=np.float32)
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, weights)], device="cpu").save(
        str(tmp_path / "static")
    )
    return tmp_path / "static"


def test_against_mean_pooling_by_hand(bert_folder: Path) -> None:
    vectors_ND = SentenceEncoder(bert_folder, batch_size=2, device="cpu").encode(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(bert_folder.parent / "bert")
    model = AutoModel.from_pretrained(bert_folder.parent / "bert").eval()
    for text, vector_D in zip(TEXTS, vectors_ND, strict=True):
        with torch.no_grad():
            mean_D = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(vector_D, mean_D / np.linalg.norm(mean_D), atol=1e-6)


def test_invariant_unit_float32_and_same_bytes(bert_folder: Path) -> None:
    encoder = SentenceEncoder(bert_folder, device="cpu")
    vectors_ND = encoder.encode(TEXTS)
    assert vectors_ND.dtype == np.float32
    assert vectors_ND.shape == (4, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-6)
    assert vectors_ND.tobytes() == encoder.encode(TEXTS).tobytes()


def test_prefix_stands_before_each_text(bert_folder: Path) -> None:
    plain = SentenceEncoder(bert_folder, device="cpu")
    prefixed = SentenceEncoder(bert_folder, prefix="query: ", device="cpu")
    written_out = plain.encode(["query: " + text for text in TEXTS])
    np.testing.assert_array_equal(prefixed.encode(TEXTS), written_out)


@pytest.mark.parametrize("prefix", ["", "query : "])
def test_against_the_first_token_by_hand_with_a_prefix_before_each_text(tmp_path: Path, prefix: str) -> None:
    """The kind of model that BGE-M3 is: CLS pooling and unit norms, here in batches of unlike lengths."""
    encoder = SentenceEncoder(
        _write_bert(tmp_path, seed=2, pooling="cls"), prefix=prefix, batch_size=3, device="cpu"
    )
    vectors_ND = encoder.encode(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "bert")
    model = AutoModel.from_pretrained(tmp_path / "bert").eval()
    for text, vector_D in zip(TEXTS, vectors_ND, strict=True):
        with torch.no_grad():
            states_TD = model(**tokenizer(prefix + text, return_tensors="pt")).last_hidden_state[0]
        first_D = states_TD[0].numpy()
        np.testing.assert_allclose(vector_D, first_D / np.linalg.norm(first_D), atol=1e-6)
        mean_D = states_TD.mean(dim=0).numpy()
        assert abs(vector_D - mean_D / np.linalg.norm(mean_D)).max() > 1e-3


def test_half_precision_gives_nearly_the_same_vectors_under_another_name(bert_folder: Path) -> None:
    whole = SentenceEncoder(bert_folder, device="cpu")
    half = SentenceEncoder(bert_folder, dtype="bfloat16", device="cpu")
    assert half.name == f"{whole.name} bfloat16"
    vectors_ND = half.encode(TEXTS)
    assert vectors_ND.dtype == np.float32
    cosines_N = (vectors_ND * whole.encode(TEXTS)).sum(axis=1)
    assert 0.999 < cosines_N.min() < 1 - 1e-7


def test_the_name_tells_weights_and_prefix_apart(bert_folder: Path, tmp_path: Path) -> None:
    plain = SentenceEncoder(bert_folder, device="cpu").name
    assert plain.startswith("model ")
    assert SentenceEncoder(bert_folder, device="cpu").name == plain
    names = {
        plain,
        SentenceEncoder(bert_folder, prefix="query: ", device="cpu").name,
        SentenceEncoder(_write_bert(tmp_path, seed=1), device="cpu").name,
        SentenceEncoder(bert_folder, label="owner/name", device="cpu").name,
    }
    assert len(names) == 4
    assert f"{plain} prefix='query: '" in names


def test_no_text_gives_no_row(bert_folder: Path) -> None:
    assert SentenceEncoder(bert_folder, device="cpu").encode([]).shape == (0, 32)


def test_a_text_of_which_it_knows_nothing_is_a_row_of_zeros(static_folder: Path) -> None:
    vectors_ND = SentenceEncoder(static_folder, device="cpu").encode(["the", "cat"])
    np.testing.assert_allclose(vectors_ND, [[0.5**0.5, 0.5**0.5], [0, 0]], atol=1e-6)


def test_refuses_nan(static_folder: Path) -> None:
    encoder = SentenceEncoder(static_folder, device="cpu")
    with pytest.raises(SourceError, match=r"got norm nan for 'dog': its weights are damaged"):
        encoder.encode(["the", "dog"])


def test_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot load the encoder .*safetensors: check data\.encoder"):
        SentenceEncoder(tmp_path, device="cpu")


def test_refuses_weights_that_would_be_unpickled(tmp_path: Path) -> None:
    folder = _write_bert(tmp_path, seed=0)
    model = BertModel.from_pretrained(tmp_path / "bert")
    torch.save(model.state_dict(), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"cannot load the encoder .*safetensors"):
        SentenceEncoder(folder, device="cpu")
