"""Adapters on the Hugging Face Hub: looked up, judged by what the Hub says of them, then fetched whole.

Nothing is fetched but safetensors, settings and texts, each checked against the checksum of a fixed commit.
"""

import hashlib
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi, ModelInfo

from kshot.bank.adapter import CONFIG, UNKNOWN, WEIGHTS, sha256_of
from kshot.bank.hub_errors import explained, patiently
from kshot.bank.limits import Limits, listed
from kshot.bank.row_hashes import ROW_HASHES
from kshot.errors import AdapterError, SourceError
from kshot.mixture.folder import read_config
from kshot.mixture.kinds import PLAIN, adapter_kind
from kshot.rows import HUB_SCHEME

# The settings first: they tell what is no LoRA.
KEPT_FILES = (CONFIG, WEIGHTS, "README.md", "LICENSE", ROW_HASHES)
PICKLE = "adapter_model.bin"
TIMEOUT_S = 30.0  # of a question to the Hub, which answers in one
_REFERENCE = re.compile(
    r"(?:hf://)?(?P<repo>[a-z0-9][\w.-]*/\w[\w.-]*)(?:@(?P<revision>[\w./-]+))?", re.ASCII | re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class HubReference:
    """A repository of the Hub, at a revision or as it is now."""

    repo: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubReference | None":
        """Read `hf://owner/name@revision`, scheme and revision may be missing; None for anything else."""
        match = _REFERENCE.fullmatch(text)
        return cls(match["repo"], match["revision"]) if match else None

    def __str__(self) -> str:
        return f"{HUB_SCHEME}{self.repo}" + (f"@{self.revision}" if self.revision else "")

    @property
    def name(self) -> str:
        """What a bank calls the adapter: `owner--name`, which no other repository can be called."""
        return self.repo.replace("/", "--")


@dataclass(frozen=True, slots=True)
class HubFile:
    """What the Hub says of a file: its size in bytes, and its checksum (sha256, or git's of a small file)."""

    size: int | None
    sha256: str | None
    git_sha1: str | None

    @property
    def is_known(self) -> bool:
        """Whether the file can be judged before it is fetched, and checked after."""
        return self.size is not None and bool(self.sha256 or self.git_sha1)


@dataclass(frozen=True, slots=True)
class HubAdapter:
    """An adapter at a fixed commit, not fetched yet.

    Attributes:
        repo: Owner and name.
        commit: The commit that all is read from.
        files: Those that are kept.
        licence: By its model card.
        trained_on: Data sets, by its model card.
    """

    repo: str
    commit: str
    files: dict[str, HubFile]
    licence: str
    trained_on: str | None

    @property
    def origin(self) -> str:
        """Where it came from, for good."""
        return f"{HUB_SCHEME}{self.repo}@{self.commit}"


def look_up(reference: HubReference, limits: Limits, hub: HfApi) -> HubAdapter:
    """Ask the Hub about an adapter, and judge it before a byte of it is downloaded.

    Raises:
        AdapterError: It has no safetensors, is too large, or its licence is not allowed.
        HubUnreachableError: The Hub does not answer.
        SourceError: There is no such repository or revision, or it is not public.
    """
    with explained(str(reference)):
        info = patiently(
            lambda: hub.model_info(
                reference.repo, revision=reference.revision, files_metadata=True, timeout=TIMEOUT_S
            )
        )
    limits.check_licence(str(reference), licence_of(info))
    names = {sibling.rfilename for sibling in info.siblings or ()}
    _check_names(reference, names)
    files = {
        sibling.rfilename: HubFile(sibling.size, sibling.lfs.sha256 if sibling.lfs else None, sibling.blob_id)
        for sibling in info.siblings or ()
        if sibling.rfilename in KEPT_FILES
    }
    commit = info.sha or ""
    if not re.fullmatch("[0-9a-f]{40}", commit) or not all(file.is_known for file in files.values()):
        raise SourceError(
            f"{reference}: expected commit, sizes and checksums from the Hub, got none: set HF_ENDPOINT to a "
            "server that tells them, or download the adapter and give its folder"
        )
    limits.check_size(str(reference), sum(file.size or 0 for file in files.values()))
    datasets = info.card_data.datasets if info.card_data else None
    return HubAdapter(reference.repo, commit, files, licence_of(info), listed(datasets))


def licence_of(info: ModelInfo) -> str:
    """Return the licence on the model card; a licence of another name by that name."""
    card = info.card_data
    if card is None:
        return UNKNOWN
    licence = listed(card.license)
    return (listed(card.license_name) if licence == "other" else None) or licence or UNKNOWN


def fetch(adapter: HubAdapter, folder: Path, hub: HfApi) -> None:
    """Download the files of an adapter into an empty folder; settings that are no LoRA's stop it.

    Raises:
        AdapterError: It is no plain LoRA.
        HubUnreachableError: The Hub stops answering, or a file comes short.
        SourceError: The Hub wants an agreement or a login first, or a file is not what the Hub said.
        RunFolderError: The folder cannot be written.
    """
    reference = HubReference(adapter.repo, adapter.commit)
    for name in KEPT_FILES:
        if name not in adapter.files:
            continue
        with explained(str(reference)):
            hub.hf_hub_download(adapter.repo, name, revision=adapter.commit, local_dir=folder)
        _check_file(f"{reference}, {name}", folder / name, adapter.files[name])
        if name == CONFIG and (kind := adapter_kind(folder, read_config(folder))) != PLAIN:
            raise AdapterError(
                f"{folder}: expected a plain LoRA, got {kind}, which is more than s*B*A*x: convert it to the "
                "nearest LoRA first (kshot.mixture.load_expert with convert_rank), or leave it out"
            )
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the Hub client's notes on the download


def _check_names(reference: HubReference, names: set[str]) -> None:
    missing = [name for name in (CONFIG, WEIGHTS) if name not in names]
    if not missing:
        return
    got = f"only {PICKLE}, which is never downloaded" if PICKLE in names else "none"
    raise AdapterError(
        f"{reference}: expected a PEFT adapter with {missing[-1]}, got {got}: ask its owner for safetensors, "
        "or leave it out"
    )


def _check_file(what: str, path: Path, file: HubFile) -> None:
    expected = file.sha256 or str(file.git_sha1)
    found = sha256_of(path) if file.sha256 else _git_sha1(path.read_bytes())
    if found != expected:
        raise SourceError(
            f"{what}: expected checksum {expected[:12]}... as the Hub says, got {found[:12]}...: fetch it "
            "again, or leave it out"
        )


def _git_sha1(data: bytes) -> str:
    """Return git's name of a file's content."""
    return hashlib.sha1(f"blob {len(data)}\0".encode() + data, usedforsecurity=False).hexdigest()
