"""Adapter folders: from the Hub through its own client, and what a model card says of a licence."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import kshot.mixture.folder
from kshot.errors import AdapterError
from kshot.mixture import load_expert
from kshot.mixture.folder import find_folder, read_licence

MakeLora = Callable[..., Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub client's cache, which is all it has: tests run with HF_HUB_OFFLINE."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    return cache


def put_in_cache(cache: Path, folder: Path, *, revision: str = "main") -> Path:
    repo = cache / "models--org--name"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / revision).write_text(COMMIT)
    (repo / "snapshots").mkdir()
    return folder.rename(repo / "snapshots" / COMMIT)


def test_hub_ids_come_through_the_client(hub_cache: Path, make_lora: MakeLora) -> None:
    put_in_cache(hub_cache, make_lora("lora"))
    expert = load_expert("org/name", "math")
    assert expert.origin is not None
    assert expert.origin["source"] == f"org/name@{COMMIT}"
    assert len(expert.factors) == 4


def test_revisions(hub_cache: Path, make_lora: MakeLora) -> None:
    put_in_cache(hub_cache, make_lora("lora"), revision="v2")
    assert find_folder("org/name@v2")[1] == f"org/name@{COMMIT}"
    assert find_folder(f"org/name@{COMMIT}")[1] == f"org/name@{COMMIT}"
    with pytest.raises(
        AdapterError, match=r"expected the adapter 'org/name@v3' as a folder, in the Hub cache"
    ):
        find_folder("org/name@v3")


def test_only_what_is_read_is_fetched(make_lora: MakeLora, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = make_lora("lora")
    asked: list[Any] = []

    def download(*args: Any, **kwargs: Any) -> str:
        asked.append((args, kwargs))
        return str(folder)

    monkeypatch.setattr(kshot.mixture.folder, "snapshot_download", download)
    assert find_folder("org/name@v2") == (folder, "org/name@v2")
    assert find_folder("org/name") == (folder, "org/name")
    files = ["adapter_config.json", "adapter_model.safetensors", "README.md"]
    assert asked == [
        (("org/name",), {"revision": "v2", "allow_patterns": files}),
        (("org/name",), {"revision": None, "allow_patterns": files}),
    ]


def test_refuses_what_is_nowhere(hub_cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        AdapterError, match=r"'org/gone' as a folder, .* check the name, the revision and the net"
    ):
        find_folder("org/gone")
    for source in ("gone", "./org/gone", "../gone", "a/b/c", "org/name@", "org/na me"):
        with pytest.raises(
            AdapterError, match=r"expected an adapter folder or a Hub id, got .*: no such folder"
        ):
            find_folder(source)
    for path in (tmp_path / "gone", str(tmp_path / "gone")):  # never asked of the Hub
        with pytest.raises(AdapterError, match=r"expected a PEFT adapter folder with adapter_config.json"):
            load_expert(path, "e")


CARDS = {
    "plain": ("---\nlicense: mit\n---\nText", "mit"),
    "named": ("---\nlicense: other\nlicense_name: llama3.2\n---\n", "llama3.2"),
    "other": ("---\nlicense: other\n---\n", "other"),
    "none": ("---\ntags: [lora]\n---\n", None),
    "list": ("---\nlicense: [mit]\n---\n", None),
    "no_front_matter": ("# license: mit", None),
    "empty": ("", None),
    "damaged": ("---\nlicense: [mit\n---\n", None),
    "no_object": ("---\n- mit\n---\n", None),
    "code": ("---\nlicense: !!python/object/apply:os.getcwd []\n---\n", None),
}  # fmt: skip


@pytest.mark.parametrize(("card", "licence"), CARDS.values(), ids=CARDS)
def test_licences(card: str, licence: str | None, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card)
    assert read_licence(tmp_path) == licence


def test_no_licence_of_no_card_or_no_text(tmp_path: Path) -> None:
    assert read_licence(tmp_path) is None
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\n---\n")
    assert read_licence(tmp_path) is None
