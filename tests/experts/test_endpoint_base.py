"""The tokenizer side of a base model, against the whole model, and from a folder without weights."""

import shutil
from pathlib import Path

import pytest

from kshot.errors import SourceError
from kshot.experts import ServedBase


def test_against_the_whole_model(tiny_lm, tiny_model_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "no-weights"
    shutil.copytree(tiny_model_folder, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    base = ServedBase.load(str(folder))
    assert base.max_length == tiny_lm.max_length == 512
    assert list(base.end_ids) == tiny_lm.template.end_ids(tiny_lm.model.generation_config.eos_token_id)
    assert base.template.encode("say cat", "the cat") == tiny_lm.template.encode("say cat", "the cat")
    (folder / "generation_config.json").unlink()
    assert ServedBase.load(str(folder)).end_ids == base.end_ids


def test_a_folder_without_a_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=rf"expected a tokenizer and config\.json in {tmp_path}, got: "):
        ServedBase.load(str(tmp_path))
