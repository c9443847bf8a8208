"""Models come whole from a folder, the Hub or a wheel, or not at all."""

import base64
import hashlib
import json
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
import torch

from kshot.errors import SourceError
from kshot.language_model import LanguageModel
from kshot.model_source import cache_folder, resolve_model

MakeWheel = Callable[..., str]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a package index that is a folder."""
    (tmp_path / "wheels").mkdir()
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    return tmp_path / "home"


@pytest.fixture
def wheel(tmp_path: Path) -> MakeWheel:
    """Puts a wheel with the given files into the package index; returns `pypi:NAME==VERSION#sha256=HEX`."""

    def make(files: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> str:
        name = "tiny_model"
        info = f"{name}-1.0.dist-info"
        files = {
            **files,
            f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
            f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }
        record = [f"{path},sha256={_digest(data)},{len(data)}" for path, data in files.items()]
        path = tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", compression) as archive:
            for file, data in files.items():
                archive.writestr(file, data)
            archive.writestr(f"{info}/RECORD", "\n".join([*record, f"{info}/RECORD,,"]))
        return f"pypi:{name.replace('_', '-')}==1.0#sha256={hashlib.sha256(path.read_bytes()).hexdigest()}"

    return make


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


@pytest.fixture
def model_files(tiny_model_folder: Path) -> dict[str, bytes]:
    return {f"tiny_model/model/{path.name}": path.read_bytes() for path in tiny_model_folder.iterdir()}


def left_in(home: Path) -> list[str]:
    return [path.name for path in home.rglob("*") if path.name != "models"]


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "home"
    monkeypatch.setenv("KSHOT_HOME", "")
    assert cache_folder() == Path("~/.cache/kshot").expanduser()


def test_folder(tmp_path: Path, tiny_model_folder: Path) -> None:
    assert resolve_model(str(tiny_model_folder)) == tiny_model_folder
    assert resolve_model("wheels", relative_to=tmp_path) == tmp_path / "wheels"


@pytest.mark.parametrize("reference", ["no such folder", "a/b/c", "/none", "name"])
def test_neither_folder_nor_hub_id(reference: str) -> None:
    with pytest.raises(SourceError, match="expected a model folder, a Hub id or pypi:NAME==VERSION, got '"):
        resolve_model(reference)


def test_hub_out_of_reach() -> None:
    with pytest.raises(
        SourceError, match="expected the model 'kshot-tests/none@v1' as a folder, in the Hub cache"
    ):
        resolve_model("kshot-tests/none@v1")


def test_roundtrip_of_a_model_folder(
    wheel: MakeWheel, model_files: dict[str, bytes], home: Path, tiny_model_folder: Path
) -> None:
    unsafe = {
        "tiny_model/model/pytorch_model.bin": b"x",
        "tiny_model/model/modeling.py": b"",
        "tiny_model/x.json": b"{}",
    }
    nested = {"tiny_model/model/1_Pooling/config.json": b"{}"}
    folder = resolve_model(wheel(model_files | unsafe | nested))
    assert folder.parent == home / "models"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert found == {path.name for path in tiny_model_folder.iterdir()} | {"1_Pooling/config.json"}
    assert LanguageModel.load(str(folder)).max_length == 512


def test_a_wheel_is_fetched_once(wheel: MakeWheel, model_files: dict[str, bytes], tmp_path: Path) -> None:
    reference = wheel(model_files)
    folder = resolve_model(reference)
    for path in (tmp_path / "wheels").iterdir():
        path.unlink()
    assert resolve_model(reference) == folder


def test_a_wheel_of_another_kind(wheel: MakeWheel, home: Path) -> None:
    with pytest.raises(
        SourceError, match=r"expected a GGUF file or a config.json in the wheel pypi:tiny-model==1.0"
    ):
        resolve_model(wheel({"tiny_model/__init__.py": b""}))
    assert left_in(home) == []


def test_wrong_checksum(wheel: MakeWheel, model_files: dict[str, bytes], home: Path) -> None:
    reference = wheel(model_files)
    wrong = reference.partition("=")[0] + "==1.0#sha256=" + 64 * "0"
    with pytest.raises(
        SourceError, match=r"expected sha256 0{64} for pypi:tiny-model==1.0, got [0-9a-f]{64}"
    ):
        resolve_model(wrong)
    assert left_in(home) == []


def test_missing_wheel(home: Path) -> None:
    with pytest.raises(
        SourceError, match=r"cannot fetch the wheel pypi:tiny-model==1.0: ERROR: No matching distribution"
    ):
        resolve_model("pypi:tiny-model==1.0#sha256=00")
    assert left_in(home) == []


@pytest.mark.parametrize(
    "reference", ["pypi:tiny-model", "pypi:tiny-model>=1.0", "pypi:tiny-model==1.0 --index-url=x"]
)
def test_unpinned(reference: str) -> None:
    with pytest.raises(
        SourceError, match=r"expected pypi:NAME==VERSION, got pypi:tiny-model.*: pin the version"
    ):
        resolve_model(reference)


def test_unknown_checksum() -> None:
    with pytest.raises(SourceError, match=r"expected a checksum for pypi:tiny-model==1.0, got none: write"):
        resolve_model("pypi:tiny-model==1.0")


def test_home_that_cannot_be_written(
    wheel: MakeWheel, model_files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(
        SourceError, match=r"cannot store pypi:tiny-model==1.0: cannot write .*: Not a directory"
    ):
        resolve_model(wheel(model_files))


@pytest.mark.parametrize(
    ("compression", "message"),
    [
        (zipfile.ZIP_STORED, "cannot fetch the wheel pypi:tiny-model==1.0: .*File too large"),
        (zipfile.ZIP_DEFLATED, "cannot store pypi:tiny-model==1.0: .*File too large; free space"),
    ],
)
def test_full_disk(
    wheel: MakeWheel, model_files: dict[str, bytes], home: Path, compression: int, message: str
) -> None:
    reference = wheel({**model_files, "tiny_model/model/vocab.txt": bytes(2_000_000)}, compression)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))  # no file may grow larger
    try:
        with pytest.raises(SourceError, match=message):
            resolve_model(reference)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left_in(home) == []


def write_gguf(path: Path, lm: LanguageModel) -> None:
    """Write the tiny model as llama.cpp does, whose rotary halves are interleaved."""
    config, tokenizer = lm.model.config, lm.tokenizer
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(config.vocab_size)))
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (config.vocab_size - 3))
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, value in lm.model.state_dict().items():
        heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}.get(
            name.split(".")[-2]
        )
        if heads:
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight",)), value.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_roundtrip_of_a_gguf(wheel: MakeWheel, tiny_lm: LanguageModel, tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", tiny_lm)
    folder = resolve_model(wheel({"tiny_model/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes()}))
    found = LanguageModel.load(str(folder), device="cpu")
    for (name, value), other in zip(
        found.model.state_dict().items(), tiny_lm.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other.to(torch.bfloat16).float()), name
    prompt = "What is the sum?"
    assert found.template.encode(prompt, "five") == tiny_lm.template.encode(prompt, "five")
    assert found.template.end_of_turn == "<|im_end|>"


def test_damaged_gguf(wheel: MakeWheel, home: Path) -> None:
    with pytest.raises(SourceError, match=r"expected a GGUF file that transformers reads, got tiny.gguf: "):
        resolve_model(wheel({"tiny_model/tiny.gguf": b"GGUF no more"}))
    assert left_in(home) == []
