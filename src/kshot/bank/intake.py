"""How an adapter comes into a bank: copied from a folder or fetched from the Hub, then read and described."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, metadata_load

from kshot.bank.adapter import UNKNOWN, Adapter, AdapterEntry, check_name, digest_of, entry_of
from kshot.bank.fingerprint_file import write_fingerprint
from kshot.bank.hub import KEPT_FILES, HubAdapter, HubReference, fetch, look_up
from kshot.bank.limits import Limits, listed
from kshot.bank.row_hashes import training_row_hashes
from kshot.errors import AdapterError, SourceError
from kshot.mixture import read_lora
from kshot.mixture.folder import CARD_NAME, read_licence
from kshot.nearest import nearest_path
from kshot.rows import HUB_SCHEME


def source_of(text: str) -> Path | HubReference:
    """Tell a folder from an adapter on the Hub; what is a folder here is one, unless it says `hf://`.

    Raises:
        SourceError: It is neither.
    """
    folder = Path(text).expanduser()
    if not text.startswith(HUB_SCHEME) and folder.is_dir():
        return folder
    reference = HubReference.parse(text)
    if reference is None:
        raise SourceError(
            f"expected an adapter folder or hf://owner/name[@revision], got {text!r}: "
            f"no such folder{nearest_path(text)}"
        )
    return reference


def default_name(source: Path | HubReference) -> str:
    """Return what a bank calls an adapter: its folder's name, or `owner--name`."""
    return source.name if isinstance(source, HubReference) else source.absolute().name


def look(source: Path | HubReference, limits: Limits, hub: HfApi) -> Path | HubAdapter:
    """Judge an adapter as far as that goes before its files are here; return what `take` takes.

    Args:
        source: Where it is.
        limits: What it may be.
        hub: Where references of the Hub lead to.

    Raises:
        AdapterError: It is too large, or on the Hub its licence is not allowed or it has no safetensors.
        SourceError: As `look_up`.
    """
    if isinstance(source, HubReference):
        return look_up(source, limits, hub)
    limits.check_size(str(source), sum(file.stat().st_size for file in _files(source)))
    return source


def take(
    source: Path | HubAdapter, draft: Path, name: str, *, limits: Limits, hub: HfApi, **known: Any
) -> AdapterEntry:
    """Fill an empty folder with an adapter and return its entry.

    Args:
        source: Where it is, looked at before.
        draft: The folder.
        name: Its name in the bank.
        limits: What it may be.
        hub: Where it is fetched from, if that is the Hub.
        known: Fields of the entry that are known better than its own card says.

    Raises:
        AdapterError: It cannot be used, or its licence is not allowed.
        SourceError: It cannot be fetched.
        ConfigError: The name cannot be that of a folder in a bank.
    """
    check_name(name)
    if isinstance(source, HubAdapter):
        what, licence, data = source.origin, source.licence, source.trained_on
        with renamed(draft, what):
            fetch(source, draft, hub)
    else:
        what, licence, data = str(source), read_licence(source) or UNKNOWN, _data_of(source)
        for file in _files(source):
            shutil.copyfile(file, draft / file.name)
    entry = read_draft(draft, name, what, **{"origin": what, "licence": licence, "trained_on": data, **known})
    limits.check_licence(what, entry.licence)
    training_row_hashes(Adapter(draft, entry))  # readable, where there are any
    return entry


def _files(folder: Path) -> list[Path]:
    return [folder / file for file in KEPT_FILES if (folder / file).is_file()]


def read_draft(draft: Path, name: str, what: str, **facts: Any) -> AdapterEntry:
    """Describe an adapter in a draft folder and store its fingerprint there.

    Args:
        draft: Holds its files.
        name: Its name in the bank.
        what: What errors call the draft.
        facts: Fields of the entry that the weights do not tell.

    Raises:
        AdapterError: It is damaged, unsafe, no LoRA, or changes nothing.
    """
    with renamed(draft, what):
        expert = read_lora(draft, name)
        entry = entry_of(expert, draft, **facts)
        write_fingerprint(draft, digest_of(entry.sha256, str(entry.config_sha256)), expert)
    return entry


@contextmanager
def renamed(draft: Path, what: str) -> Iterator[None]:
    """Let errors about a draft folder name what it was made of."""
    try:
        yield
    except AdapterError as error:
        raise AdapterError(str(error).replace(str(draft), what)) from error


def _data_of(folder: Path) -> str | None:
    """Return the data sets on a folder's model card; None without a card, or if that is damaged."""
    try:
        card = metadata_load(folder / CARD_NAME)
    except Exception:  # a stranger's file, of which nothing depends
        return None
    return listed(card.get("datasets")) if isinstance(card, dict) else None
