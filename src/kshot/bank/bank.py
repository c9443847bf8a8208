"""A bank: a folder of PEFT adapter folders and `bank.json`, its index."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from kshot.atomic import new_folder, remove_drafts
from kshot.bank.adapter import CONFIG, Adapter, AdapterEntry, check_name, describe, sha256_of
from kshot.bank.fingerprint_file import write_fingerprint
from kshot.bank.hub import HubReference
from kshot.bank.hub_cache import cached_bank
from kshot.bank.index import INDEX, indexed, locked, read_index, unindexed, write_index
from kshot.bank.intake import default_name, look, source_of, take
from kshot.bank.limits import Limits
from kshot.errors import AdapterError, ConfigError, SourceError
from kshot.nearest import nearest_path
from kshot.progress import Advance
from kshot.rows import HUB_SCHEME


class Bank:
    """Adapters by name, in the order of their names.

    Attributes:
        folder: Where new adapters go; None for a part of a bank, for several read as one and for one adapter.
        names: Of all adapters, sorted.
    """

    def __init__(self, adapters: Sequence[Adapter], folder: Path | None = None) -> None:
        self.folder = folder
        self._adapters = {
            adapter.name: adapter for adapter in sorted(adapters, key=lambda adapter: adapter.name)
        }

    @classmethod
    def open(cls, source: str | Path, *, hub: HfApi | None = None) -> "Bank":
        """Open a bank, or a single adapter as a bank of one. Weights are read only where there is no index.

        Args:
            source: A bank; a folder of adapter folders without an index; a PEFT adapter folder; or
                `hf://owner/name[@revision]`, an adapter on the Hub, which is fetched into the cache folder.
            hub: Where references of the Hub lead to; the Hub of `HF_ENDPOINT` by default.

        Raises:
            SourceError: There is no such folder, no adapter in it, or the Hub has none or does not answer.
            AdapterError: The index is damaged or names a folder that is not there, or an adapter that is read
                cannot be used.
        """
        if str(source).startswith(HUB_SCHEME):
            reference = source_of(str(source))
            assert isinstance(reference, HubReference)  # of this scheme there are no folders
            return cls(indexed(cached_bank(reference, hub or HfApi())))
        folder = Path(source)
        if not folder.is_dir():
            found = "a file" if folder.is_file() else "none"
            raise SourceError(
                f"expected a bank or adapter folder at {folder}, found {found}; paths are relative to the "
                f"task file, and an adapter on the Hub is {HUB_SCHEME}owner/name{nearest_path(folder)}"
            )
        if (folder / CONFIG).is_file() and not (folder / INDEX).is_file():
            return cls([Adapter(folder, describe(folder, default_name(folder)))])
        adapters = indexed(folder) if (folder / INDEX).is_file() else unindexed(folder)
        if not adapters:
            raise SourceError(
                f"expected adapter folders in {folder}, found none; add some with 'kshot bank add'"
            )
        return cls(adapters, folder)

    @classmethod
    def open_all(cls, sources: Sequence[str | Path], *, hub: HfApi | None = None) -> "Bank":
        """Open several banks and single adapters as one bank.

        Raises:
            ConfigError: Two adapters share a name.
        """
        banks = [cls.open(source, hub=hub) for source in sources]
        adapters = [adapter for bank in banks for adapter in bank]
        counts = Counter(adapter.name for adapter in adapters)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ConfigError(
                f"expected distinct adapter names over all banks, got {', '.join(twice)} more than once"
            )
        return cls(adapters, banks[0].folder if len(banks) == 1 else None)

    @classmethod
    def create(cls, folder: Path) -> "Bank":
        """Open a bank for adding to; where there is none yet, the first adapter makes it.

        Raises:
            ConfigError: The folder is an adapter's.
            AdapterError: The index is damaged, or there is none and an adapter cannot be used.
        """
        if (folder / INDEX).is_file():
            return cls(indexed(folder), folder)
        if (folder / CONFIG).is_file():
            raise ConfigError(
                f"expected the folder of a bank, got {folder}, which is an adapter: name another folder"
            )
        return cls(unindexed(folder), folder)

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
            near = get_close_matches(name, self._adapters, n=5) or self.names[:5]
            raise ConfigError(
                f"expected an adapter of the bank, got {name!r}; it holds {', '.join(near) or 'none'}"
            )
        return self._adapters[name]

    def __contains__(self, name: object) -> bool:
        return name in self._adapters

    def own_folder(self) -> Path:
        """Return where new adapters go.

        Raises:
            ConfigError: The bank is a part of one, several read as one, or a single adapter.
        """
        if self.folder is None:
            raise ConfigError(
                "expected one whole bank to add to, got a part of one, several as one or a single adapter: "
                "open its folder"
            )
        return self.folder

    def subset(self, names: Sequence[str]) -> "Bank":
        """Return a bank of the named adapters alone."""
        return Bank([self[name] for name in names])

    def add(
        self,
        source: str | Path,
        *,
        name: str | None = None,
        limits: Limits | None = None,
        hub: HfApi | None = None,
        **known: Any,
    ) -> Adapter:
        """Copy an adapter from a folder, or fetch it from the Hub, into the bank and its index.

        Args:
            source: A PEFT LoRA folder, or `hf://owner/name[@revision]`, in which `hf://` may be missing. The
                commit that was fetched is in the entry's `origin`.
            name: Its name here; the folder's, or `owner--name`, by default.
            limits: What it may be; up to 1 GB, under any licence, by default.
            hub: As in `open`.
            known: Fields of its entry, such as `licence` and `trained_on`, in place of what its card says.

        Raises:
            AdapterError: It cannot be used, or the name is taken.
            SourceError: It cannot be found or fetched.
        """
        folder = self.own_folder()
        found = source_of(str(source))
        name = name or default_name(found)
        check_name(name)
        self._refuse_taken(name)
        limits, hub = limits or Limits(), hub or HfApi()
        looked_at = look(found, limits, hub)
        remove_drafts(folder, of=name)
        with ExitStack() as held:
            with new_folder(folder / name) as draft:
                entry = take(looked_at, draft, name, limits=limits, hub=hub, **known)
                held.enter_context(locked(folder))
                self._reread()
                self._refuse_taken(name)
            self._write([entry])
        return self[name]

    def record(self, *entries: AdapterEntry) -> None:
        """Put entries into the index, replacing those of the same names; their folders are in place already.

        Raises:
            ConfigError: The bank is a part of one, or several read as one.
        """
        with locked(self.own_folder()):
            self._reread()
            self._write(entries)

    def complete(self, advance: Advance | None = None) -> list[str]:
        """Record what an index of an older format lacks, and store fingerprints that are missing or old.

        Checksums that are recorded stay; an adapter whose files changed since is refused.

        Args:
            advance: Called with 1 after each adapter.

        Returns:
            Names of the adapters whose entry or fingerprint is new.

        Raises:
            AdapterError: An adapter changed or cannot be used.
        """
        self.own_folder()
        changed = []
        for adapter in self:
            entry = adapter.entry
            if not entry.config_sha256 or adapter.fingerprint is None:
                write_fingerprint(adapter.folder, adapter.digest, adapter.load())
                settings = entry.config_sha256 or sha256_of(adapter.folder / CONFIG)
                changed.append(entry.model_copy(update={"config_sha256": settings}))
            if advance:
                advance(1)
        self.record(*changed)
        return [entry.name for entry in changed]

    def verify(self, advance: Advance | None = None) -> dict[str, str | None]:
        """Check every adapter; return for each name what is wrong with it, or None.

        Args:
            advance: Called with 1 after each adapter.
        """
        found: dict[str, str | None] = {}
        for adapter in self:
            try:
                adapter.verify()
                found[adapter.name] = None
            except AdapterError as error:
                found[adapter.name] = str(error)
            if advance:
                advance(1)
        return found

    def _refuse_taken(self, name: str) -> None:
        if name in self:
            raise AdapterError(
                f"expected a new name, got {name!r}, which the bank holds; choose another with --name"
            )

    def _reread(self) -> None:
        """Take in what other processes recorded since."""
        folder = self.own_folder()
        if (folder / INDEX).is_file():
            self._adapters = {entry.name: Adapter(folder / entry.name, entry) for entry in read_index(folder)}

    def _write(self, entries: Sequence[AdapterEntry]) -> None:
        folder = self.own_folder()
        merged = {**self._adapters, **{entry.name: Adapter(folder / entry.name, entry) for entry in entries}}
        self._adapters = dict(sorted(merged.items()))
        write_index(folder, [adapter.entry for adapter in self])
