"""A bank: a folder of PEFT adapter folders and `bank.json`, its index."""

import json
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from kshot.atomic import new_folder, write_json
from kshot.bank.adapter import NAME_PATTERN, Adapter, AdapterEntry, describe
from kshot.errors import AdapterError, ConfigError, SourceError
from kshot.model_source import resolve_model

INDEX = "bank.json"
FORMAT = 1
_KEPT_FILES = ("adapter_config.json", "adapter_model.safetensors", "README.md", "LICENSE")


class Bank:
    """Adapters by name, in the order of their names.

    Attributes:
        folder: Where new adapters go; None for a part of a bank and for several read as one.
        names: Of all adapters, sorted.
    """

    def __init__(self, adapters: Sequence[Adapter], folder: Path | None = None) -> None:
        self.folder = folder
        self._adapters = {
            adapter.name: adapter for adapter in sorted(adapters, key=lambda adapter: adapter.name)
        }

    @classmethod
    def open(cls, folder: str | Path) -> "Bank":
        """Open a bank; a folder of adapter folders without an index is read as one.

        Raises:
            SourceError: There is no such folder, or no adapter in it.
            AdapterError: The index is damaged, or names a folder that is not there.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise SourceError(
                f"expected a bank folder at {folder}, found none; paths are relative to the task file"
            )
        adapters = list(_indexed(folder) if (folder / INDEX).is_file() else _unindexed(folder))
        if not adapters:
            raise SourceError(
                f"expected adapter folders in {folder}, found none; add some with 'kshot bank add'"
            )
        return cls(adapters, folder)

    @classmethod
    def open_all(cls, folders: Sequence[str | Path]) -> "Bank":
        """Open several banks as one.

        Raises:
            ConfigError: Two adapters share a name.
        """
        banks = [cls.open(folder) for folder in folders]
        adapters = [adapter for bank in banks for adapter in bank]
        names = [adapter.name for adapter in adapters]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"expected distinct adapter names over all banks, got {', '.join(twice)} more than once"
            )
        return cls(adapters, banks[0].folder if len(banks) == 1 else None)

    @classmethod
    def create(cls, folder: Path) -> "Bank":
        """Open a bank for adding to, making an empty one where there is none yet."""
        if not (folder / INDEX).is_file():
            write_json(folder / INDEX, {"format": FORMAT, "adapters": []})
        return cls(list(_indexed(folder)), folder)

    @property
    def names(self) -> list[str]:
        """Names of all adapters, sorted."""
        return list(self._adapters)

    def __len__(self) -> int:
        return len(self._adapters)

    def __iter__(self) -> Iterator[Adapter]:
        return iter(self._adapters.values())

    def __getitem__(self, name: str) -> Adapter:
        if name not in self._adapters:
            raise ConfigError(
                f"expected an adapter of the bank, got {name!r}; known: {', '.join(self._adapters)}"
            )
        return self._adapters[name]

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def subset(self, names: Sequence[str]) -> "Bank":
        """Return a bank of the named adapters alone."""
        return Bank([self[name] for name in names])

    def add(self, source: str | Path, *, name: str | None = None, **known: Any) -> Adapter:
        """Copy an adapter from a folder or the Hub into the bank and its index.

        Args:
            source: A PEFT LoRA folder, or a Hub id.
            name: Its name here; the last part of `source` by default.
            known: Fields of its entry, such as `licence` and `trained_on`.

        Raises:
            AdapterError: It cannot be used, or the name is taken.
            SourceError: It cannot be found or fetched.
        """
        folder = self._own_folder()
        found = resolve_model(str(source))
        name = name or _default_name(str(source))
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(
                f"expected a name of letters, digits, '.', '_' and '-' with a letter in it, got {name!r}"
            )
        if name in self:
            raise AdapterError(
                f"expected a new name, got {name!r}, which the bank holds; choose another with --name"
            )
        entry = describe(found, name, **{"origin": str(source), **known})
        with new_folder(folder / name) as draft:
            for file in _KEPT_FILES:
                if (found / file).is_file():
                    shutil.copyfile(found / file, draft / file)
        return self.record(entry)

    def record(self, entry: AdapterEntry) -> Adapter:
        """Put an entry into the index, replacing one of the same name; its folder is in place already.

        Raises:
            ConfigError: The bank is a part of one, or several read as one.
        """
        folder = self._own_folder()
        adapter = Adapter(folder / entry.name, entry)
        others = [other for other in self if other.name != entry.name]
        self._adapters = {one.name: one for one in sorted([*others, adapter], key=lambda one: one.name)}
        entries = [one.entry.model_dump(mode="json") for one in self]
        write_json(folder / INDEX, {"format": FORMAT, "adapters": entries})
        return adapter

    def _own_folder(self) -> Path:
        if self.folder is None:
            raise ConfigError(
                "expected one whole bank to add to, got a part of one or several as one: open its folder"
            )
        return self.folder

    def verify(self) -> dict[str, str | None]:
        """Check every adapter; return for each name what is wrong with it, or None."""
        found: dict[str, str | None] = {}
        for adapter in self:
            try:
                adapter.verify()
                found[adapter.name] = None
            except AdapterError as error:
                found[adapter.name] = str(error)
        return found


def _indexed(folder: Path) -> Iterator[Adapter]:
    try:
        index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        version = index["format"]
        entries = [AdapterEntry.model_validate(entry) for entry in index["adapters"] if version == FORMAT]
    except (OSError, ValueError, KeyError, TypeError) as error:  # pydantic's error is a ValueError
        raise AdapterError(
            f"cannot read {folder / INDEX}: {' '.join(str(error).split())[:200]}; restore it"
        ) from error
    if version != FORMAT:
        raise AdapterError(f"expected format {FORMAT} in {folder / INDEX}, got {version}: update kshot")
    for entry in entries:
        if not (folder / entry.name).is_dir():
            raise AdapterError(
                f"expected the adapter folder {folder / entry.name} that {INDEX} names, found none"
            )
        yield Adapter(folder / entry.name, entry)


def _unindexed(folder: Path) -> Iterator[Adapter]:
    for config in sorted(folder.glob("*/adapter_config.json")):
        if not config.parent.name.startswith("."):  # the draft of a killed process
            yield Adapter(config.parent, describe(config.parent, config.parent.name))


def _default_name(source: str) -> str:
    """Return the last part of a path or Hub id, its revision left out."""
    name = source.rstrip("/").rpartition("/")[2]
    return name if Path(source).expanduser().is_dir() else name.partition("@")[0]
