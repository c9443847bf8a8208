"""Fill a bank with all adapters of a list that can be used; say of the others why they cannot."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from kshot.atomic import new_folder, remove_drafts, write_json
from kshot.bank.adapter import AdapterEntry
from kshot.bank.bank import Bank
from kshot.bank.candidates import Candidate
from kshot.bank.hub import HubAdapter, HubReference
from kshot.bank.hub_errors import HubUnreachableError
from kshot.bank.intake import default_name, look, source_of, take
from kshot.bank.limits import Limits
from kshot.errors import AdapterError, ConfigError, RunFolderError, SourceError
from kshot.progress import Advance, Progress, Silent
from kshot.rows import HUB_SCHEME

RECORD = "sync.json"
MAX_UNREACHABLE = 3  # in a row: then it is the network, and all the others would fail as well
WRITING_SHARE = 0.05  # of the time at most goes into writing the index, which grows with the bank


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one candidate.

    Attributes:
        reference: As it was listed.
        status: `added`; `kept`, being there already; `refused` for what it is; or `failed` on its way here.
        reason: Why it was refused or failed.
        commit: The commit at which its files were refused, after they were fetched.
        kshot: The version that refused them.
    """

    reference: str
    status: Literal["added", "kept", "refused", "failed"]
    reason: str | None = None
    commit: str | None = None
    kshot: str | None = None


def sync_bank(
    bank: Bank,
    candidates: Sequence[Candidate],
    *,
    limits: Limits | None = None,
    limit: int | None = None,
    hub: HfApi | None = None,
    progress: Progress | None = None,
) -> list[Outcome]:
    """Add every candidate that is not in the bank yet; one that cannot be used never stops the others.

    A killed sync goes on where it stood. What was refused or failed is listed, with the reason, in the bank's
    `sync.json`; files that were refused are fetched again only from another commit or by another kshot.

    Args:
        bank: A whole bank.
        candidates: In this order; an adapter on the Hub is called `owner--name`.
        limits: What an adapter may be; up to 1 GB, under any licence, by default.
        limit: Stop when so many of the candidates are in the bank, those that were there before among them.
        hub: Where references of the Hub lead to; the Hub of `HF_ENDPOINT` by default.
        progress: Shows a bar.

    Returns:
        One outcome for each candidate that was reached.

    Raises:
        ConfigError: `limit` is below 1.
        HubUnreachableError: The Hub does not answer any more.
        RunFolderError: The bank cannot be written.
    """
    if limit is not None and limit < 1:
        raise ConfigError(f"limit must be at least 1, got {limit}: leave it out to take all")
    sync = _Sync(bank, limits or Limits(), hub or HfApi())
    unreachable = 0
    try:
        with _one_bar(progress or Silent(), len(candidates)) as advance:
            for candidate in candidates:
                outcome = sync.take(candidate)
                advance(1)
                unreachable = unreachable + 1 if outcome.status == "failed" else 0
                if unreachable == MAX_UNREACHABLE:
                    raise HubUnreachableError(
                        f"{outcome.reason}; {sync.num_held} adapters are in the bank, "
                        f"{len(candidates) - len(sync.outcomes)} were not asked for"
                    )
                if sync.num_held == limit:
                    break
    finally:
        sync.write()
    return sync.outcomes


class _Sync:
    """The state of a sync: what the bank holds by origin, and what is not written down yet."""

    def __init__(self, bank: Bank, limits: Limits, hub: HfApi) -> None:
        self.bank, self.limits, self.hub = bank, limits, hub
        self.folder = bank.own_folder()
        self.outcomes: list[Outcome] = []
        self.num_held = 0
        self._past = _read_record(self.folder)
        self._origins = {_key(adapter.entry.origin): adapter.entry for adapter in bank}
        self._pending: list[AdapterEntry] = []
        self._write_after = 0.0

    def take(self, candidate: Candidate) -> Outcome:
        """Take in one candidate and say what became of it."""
        try:
            outcome = self._take(candidate)
        except HubUnreachableError as error:
            outcome = Outcome(candidate.reference, "failed", str(error))
        except (AdapterError, SourceError, ConfigError) as error:
            outcome = Outcome(candidate.reference, "refused", str(error))
        self.outcomes.append(outcome)
        self.num_held += outcome.status in ("added", "kept")
        if time.monotonic() >= self._write_after:
            self.write()
        return outcome

    def _take(self, candidate: Candidate) -> Outcome:
        source = source_of(candidate.reference)
        name = default_name(source)
        held = self._origins.get(_key(str(source)))
        if held is not None:
            _check_revision(source, held)
            return Outcome(candidate.reference, "kept")
        if name in self.bank or any(entry.name == name for entry in self._pending):
            raise AdapterError(
                f"{source}: expected a new name, got {name!r}, which the bank holds from elsewhere: add it "
                "with 'kshot bank add --name'"
            )
        if candidate.licence is not None:
            self.limits.check_licence(candidate.reference, candidate.licence)
        remove_drafts(self.folder, of=name)
        return self._fetch(candidate.reference, source, name)

    def _fetch(self, listed: str, source: Path | HubReference, name: str) -> Outcome:
        looked_at = look(source, self.limits, self.hub)
        commit = looked_at.commit if isinstance(looked_at, HubAdapter) else None
        past = self._past.get(listed)
        if past and commit and (past.commit, past.kshot) == (commit, version("kshot")):
            return past
        try:
            with new_folder(self.folder / name) as draft:
                entry = take(looked_at, draft, name, limits=self.limits, hub=self.hub)
        except AdapterError as error:
            return Outcome(listed, "refused", str(error), commit, version("kshot"))
        self._pending.append(entry)
        self._origins[_key(entry.origin)] = entry
        return Outcome(listed, "added")

    def write(self) -> None:
        """Write the index and what was refused; the next time is due when it has become cheap again."""
        started = time.monotonic()
        if self._pending:
            self.bank.record(*self._pending)
            self._pending = []
        self._past.update((outcome.reference, outcome) for outcome in self.outcomes)
        unused = [one for one in self._past.values() if one.reason]
        write_json(
            self.folder / RECORD, [asdict(one) for one in sorted(unused, key=lambda one: one.reference)]
        )
        ended = time.monotonic()
        self._write_after = ended + (ended - started) / WRITING_SHARE


def _key(origin: str) -> str:
    """Return an origin without its revision."""
    return origin.partition("@")[0] if origin.startswith(HUB_SCHEME) else origin


def _check_revision(source: Path | HubReference, held: AdapterEntry) -> None:
    """Refuse a revision other than the one that the bank holds; what a branch or tag names is not asked."""
    revision = source.revision if isinstance(source, HubReference) else None
    if revision and len(revision) == 40 and not held.origin.endswith(f"@{revision}"):
        raise AdapterError(
            f"{source}: the bank holds it as {held.name}, from {held.origin}: add this revision under "
            "another name, or take that one out"
        )


def _read_record(folder: Path) -> dict[str, Outcome]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        outcomes = [Outcome(**one) for one in json.loads(path.read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError) as error:
        raise RunFolderError(f"cannot read {path}: {error}; delete it, it is made again") from error
    return {outcome.reference: outcome for outcome in outcomes}


@contextmanager
def _one_bar(progress: Progress, total: int) -> Iterator[Advance]:
    """Show one bar for the whole, and none of the Hub client's for each file."""
    were_shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with progress.bar("adapters", total) as advance:
            yield advance
    finally:
        if were_shown:
            enable_progress_bars()
