"""Embedding: against the model's own pooling done by hand, on models made here."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, StaticEmbedding, Transformer
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, BertTokenizerFast

from kshot.corpus.embedding import MAX_CHARACTERS, SentenceEncoder, text_of
from kshot.errors import ExampleError, SourceError
from kshot.examples import Example

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "dog", "sat", "query", ":", "on", "mat"]
TEXTS = ["the cat sat", "dog", "the dog sat on the mat on the mat", "the cat sat"]


@pytest.fixture(scope="module")
def bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT of two layers with mean pooling, saved as sentence-transformers saves one."""
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
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
    modules = [Transformer(str(folder / "bert"), max_seq_length=32), Pooling(32)]
    SentenceTransformer(modules=modules, device="cpu").save(str(folder / "model"))
    return folder


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
    vectors_ND = SentenceEncoder(str(bert_folder / "model"), batch_size=2, device="cpu").encode(TEXTS)
    tokenizer = AutoTokenizer.from_pretrained(bert_folder / "bert")
    model = AutoModel.from_pretrained(bert_folder / "bert").eval()
    for text, vector_D in zip(TEXTS, vectors_ND, strict=True):
        with torch.no_grad():
            mean_D = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0).numpy()
        np.testing.assert_allclose(vector_D, mean_D / np.linalg.norm(mean_D), atol=1e-6)


def test_invariant_unit_float32_and_same_bytes(bert_folder: Path) -> None:
    encoder = SentenceEncoder(str(bert_folder / "model"), device="cpu")
    vectors_ND = encoder.encode(TEXTS)
    assert vectors_ND.dtype == np.float32
    assert vectors_ND.shape == (4, 32)
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), 1, atol=1e-6)
    assert vectors_ND.tobytes() == encoder.encode(TEXTS).tobytes()


def test_prefix_stands_before_each_text_and_in_the_name(bert_folder: Path) -> None:
    folder = str(bert_folder / "model")
    plain, prefixed = (
        SentenceEncoder(folder, device="cpu"),
        SentenceEncoder(folder, prefix="query: ", device="cpu"),
    )
    written_out = plain.encode(["query: " + text for text in TEXTS])
    np.testing.assert_array_equal(prefixed.encode(TEXTS), written_out)
    assert plain.name == folder
    assert prefixed.name == f"{folder} prefix='query: '"


def test_no_text_gives_no_row(bert_folder: Path) -> None:
    assert SentenceEncoder(str(bert_folder / "model"), device="cpu").encode([]).shape == (0, 32)


def test_text_of_has_request_and_output() -> None:
    assert text_of(Example("add", "3", input="1 2")) == "add\n\n1 2\n3"


def test_text_of_cuts_both_parts() -> None:
    text = text_of(Example("a" * 10_000_000, "b" * 10_000_000))
    assert text == "a" * MAX_CHARACTERS + "\n" + "b" * MAX_CHARACTERS


def test_half_a_surrogate_pair_can_be_embedded(bert_folder: Path) -> None:
    encoder = SentenceEncoder(str(bert_folder / "model"), device="cpu")
    assert encoder.encode([text_of(Example("the cat \ud83d", "dog"))]).shape == (1, 32)


def test_refuses_a_zero_vector(static_folder: Path) -> None:
    encoder = SentenceEncoder(str(static_folder), device="cpu")
    with pytest.raises(
        ExampleError, match=r"got zeros from the encoder .* for text 1, 'cat': leave the row out"
    ):
        encoder.encode(["the", "cat"])


def test_refuses_nan(static_folder: Path) -> None:
    encoder = SentenceEncoder(str(static_folder), device="cpu")
    with pytest.raises(SourceError, match=r"got norm nan for 'dog': its weights are damaged"):
        encoder.encode(["the", "dog"])


def test_refuses_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"cannot load the encoder .*check data\.encoder"):
        SentenceEncoder(str(tmp_path), device="cpu")
