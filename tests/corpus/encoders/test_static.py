"""Static vectors: against the mean by hand, and the bundled ones against their own package."""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from kshot.corpus.encoders import StaticEncoder
from kshot.errors import MissingExtraError, SourceError

WEIGHTS = np.array([[0, 0, 0], [3, 4, 0], [0, 1, 0]], dtype=np.float16)
needs_wordllama = pytest.mark.skipif(find_spec("wordllama") is None, reason="the extra static is missing")


def _write(folder: Path, weights: np.ndarray = WEIGHTS) -> tuple[Path, Path]:
    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "cat": 1, "dog": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file({"embedding.weight": weights}, folder / "weights.safetensors")
    return folder / "weights.safetensors", folder / "tokenizer.json"


def test_against_the_mean_by_hand(tmp_path: Path) -> None:
    vectors_ND = StaticEncoder(*_write(tmp_path)).encode(["cat", "cat dog dog", "bird", ""])
    mean_D = np.array([1, 2, 0]) / 5**0.5
    np.testing.assert_allclose(vectors_ND, [[0.6, 0.8, 0], mean_D, [0, 0, 0], [0, 0, 0]], atol=1e-6)
    assert vectors_ND.dtype == np.float32


def test_invariant_a_text_does_not_depend_on_its_neighbours(tmp_path: Path) -> None:
    encoder = StaticEncoder(*_write(tmp_path))
    texts = ["cat dog", "dog", "cat cat dog bird"]
    together = encoder.encode(texts)
    assert together.tobytes() == np.concatenate([encoder.encode([text]) for text in texts]).tobytes()


def test_no_text_gives_no_row(tmp_path: Path) -> None:
    assert StaticEncoder(*_write(tmp_path)).encode([]).shape == (0, 3)


def test_the_name_tells_vectors_apart(tmp_path: Path) -> None:
    matrices = {"a": WEIGHTS, "b": WEIGHTS, "c": WEIGHTS + 1}
    names = [StaticEncoder(*_write(tmp_path / name, matrix)).name for name, matrix in matrices.items()]
    assert names[0] == names[1] != names[2]


def test_broken_files_are_named(tmp_path: Path) -> None:
    weights, tokenizer = _write(tmp_path)
    weights.write_bytes(b"no safetensors")
    with pytest.raises(SourceError, match=r"cannot load static vectors from .*weights\.safetensors"):
        StaticEncoder(weights, tokenizer)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wordllama", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kshot\[static\]'"):
        StaticEncoder.bundled()


@needs_wordllama
def test_against_wordllama() -> None:
    from wordllama import WordLlama

    folder = Path(sys.modules["wordllama"].__file__ or "").parent
    theirs = WordLlama.load(cache_dir=folder, disable_download=True)
    texts = ["How many apples are left?", "Combien de pommes ?", "def f(x): return x + 1", "今日は"]
    ours_ND = StaticEncoder.bundled().encode(texts)
    assert ours_ND.shape == (4, 256)
    np.testing.assert_allclose(ours_ND, theirs.embed(texts, norm=True), atol=1e-5)


@needs_wordllama
def test_alike_texts_are_nearer() -> None:
    sums, more_sums, capital = StaticEncoder.bundled().encode(
        ["Kim buys 3 pens at 2 dollars. What does Kim pay?", "A pen costs 4 dollars. Tom buys 5.", "Paris"]
    )
    assert sums @ more_sums > sums @ capital + 0.2
