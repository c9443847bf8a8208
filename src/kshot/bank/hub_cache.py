"""Single adapters of the Hub as banks of one, kept in the cache folder under their commit."""

import re
from pathlib import Path
from urllib.parse import quote

from huggingface_hub import HfApi

from kshot.atomic import new_folder, write_text
from kshot.bank.hub import HubAdapter, HubReference, look_up
from kshot.bank.hub_errors import HubUnreachableError
from kshot.bank.index import INDEX, write_index
from kshot.bank.intake import take
from kshot.bank.limits import Limits
from kshot.model_source import cache_folder

NOW = "main"  # the revision that a reference without one means


def cached_bank(reference: HubReference, hub: HfApi) -> Path:
    """Return a bank folder that holds one adapter of the Hub, fetched where it is not there yet.

    A full commit is asked for once. Another revision is looked up each time, and is what it was last where
    the Hub does not answer.

    Raises:
        AdapterError, SourceError: As `look_up` and `take`.
    """
    home = cache_folder() / "adapters" / reference.name
    revision = reference.revision or NOW
    if re.fullmatch("[0-9a-f]{40}", revision) and (home / revision / INDEX).is_file():
        return home / revision
    last = home / "revisions" / quote(revision, safe="")
    try:
        adapter = look_up(reference, Limits(), hub)
        folder = _fetched(adapter, home, reference.name, hub)
    except HubUnreachableError:
        if last.is_file() and (home / last.read_text(encoding="utf-8") / INDEX).is_file():
            return home / last.read_text(encoding="utf-8")
        raise
    write_text(last, adapter.commit)
    return folder


def _fetched(adapter: HubAdapter, home: Path, name: str, hub: HfApi) -> Path:
    folder = home / adapter.commit
    if (folder / INDEX).is_file():
        return folder
    with new_folder(folder) as draft:
        (draft / name).mkdir()
        write_index(draft, [take(adapter, draft / name, name, limits=Limits(), hub=hub)])
    return folder
