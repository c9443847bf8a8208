"""One adapter of a bank: what is known of it, and its factors when they are needed."""

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from kshot.bank.fingerprint_file import read_fingerprint
from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, read_lora
from kshot.mixture.expert import ExpertOrigin
from kshot.rows import HUB_SCHEME

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
UNKNOWN = "unknown"  # a licence
_MEANING = {CONFIG: "the settings", WEIGHTS: "the weights"}
# Starts with no dot and holds a letter, so that it is a folder of the bank's own and no number.
NAME_PATTERN = r"^([\w-][\w.-]*)?[A-Za-z_][\w.-]*$"


class AdapterEntry(BaseModel):
    """What `bank.json` says of an adapter; nothing but the weights is needed by the method.

    Attributes:
        name: Unique in the bank; also its folder.
        base_model: As recorded when it was trained, if known.
        r: Largest rank.
        target_modules: Last parts of the adapted modules' names.
        sha256: Of the weights file.
        config_sha256: Of `adapter_config.json`, which holds the scaling; None in an index of format 1.
        origin: Where it came from; `hf://owner/name@commit` if that was the Hub.
        licence: Of the weights.
        trained_on: Name of the training data, if known.
        num_rows: Training rows, if known.
        data_sha256: Of the training data's files, if known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    base_model: str | None = None
    r: int
    target_modules: tuple[str, ...]
    sha256: str
    config_sha256: str | None = None
    origin: str = ""
    licence: str = UNKNOWN
    trained_on: str | None = None
    num_rows: int | None = None
    data_sha256: str | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder and its entry."""

    folder: Path
    entry: AdapterEntry

    @property
    def name(self) -> str:
        """Its name in the bank."""
        return self.entry.name

    @property
    def digest(self) -> str:
        """Hash of the recorded checksums: of all that decides what the adapter does.

        Raises:
            AdapterError: The index has no checksum of the settings, and they cannot be read.
        """
        return digest_of(self.entry.sha256, self.entry.config_sha256 or sha256_of(self.folder / CONFIG))

    @property
    def fingerprint(self) -> np.ndarray | None:
        """The stored fingerprint, float32 (F,); None if there is none of this version and these weights."""
        return read_fingerprint(self.folder, self.digest)

    def load(self) -> LoraExpert:
        """Read the factors, from the very files that joined the bank.

        Raises:
            AdapterError: A checksum differs, or the folder is damaged, unsafe or no LoRA.
        """
        self._check(WEIGHTS, self.entry.sha256)
        if self.entry.config_sha256 is not None:
            self._check(CONFIG, self.entry.config_sha256)
        expert = read_lora(self.folder, self.name)
        return expert if expert.origin is None else replace(expert, origin=self._origin(expert.origin))

    def verify(self) -> None:
        """Check both files against the recorded checksums, then read them.

        Raises:
            AdapterError: As `load`; or there is no checksum of the settings.
        """
        if self.entry.config_sha256 is None:
            raise AdapterError(
                f"{self.name}: expected a recorded sha256 of {CONFIG}, got none: record it with "
                "'kshot bank index'"
            )
        self.load()

    def _origin(self, found: ExpertOrigin) -> ExpertOrigin:
        """Put what the bank knows in place of what the folder says."""
        entry = self.entry
        source = (
            entry.origin.removeprefix(HUB_SCHEME) if entry.origin.startswith(HUB_SCHEME) else found["source"]
        )
        licence = found["licence"] if entry.licence == UNKNOWN else entry.licence
        return {**found, "source": source, "licence": licence}

    def _check(self, file: str, recorded: str) -> None:
        found = sha256_of(self.folder / file)
        if found != recorded:
            raise AdapterError(
                f"{self.name}: expected sha256 {recorded[:12]}... of {file}, got {found[:12]}...: "
                f"{_MEANING[file]} changed since they joined the bank; restore {self.folder / file}, or add "
                "the adapter again"
            )


def describe(folder: Path, name: str, **known: Any) -> AdapterEntry:
    """Read an adapter folder and return its entry.

    Args:
        folder: A PEFT LoRA folder.
        name: Its name in the bank.
        known: Fields of the entry that the weights do not tell, such as `licence`.

    Raises:
        AdapterError: The folder is damaged, unsafe or no LoRA.
        ConfigError: The name cannot be that of a folder in a bank.
    """
    check_name(name)
    return entry_of(read_lora(folder, name), folder, **known)


def entry_of(expert: LoraExpert, folder: Path, **known: Any) -> AdapterEntry:
    """Return the entry of an adapter whose factors were read from `folder`; the rest as in `describe`."""
    return AdapterEntry(
        name=expert.name,
        base_model=known.pop("base_model", expert.base_model),
        r=max(factors.r for factors in expert.factors.values()),
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in expert.factors})),
        sha256=sha256_of(folder / WEIGHTS),
        config_sha256=sha256_of(folder / CONFIG),
        **known,
    )


def check_name(name: str) -> None:
    """Refuse a name that no adapter can have.

    Raises:
        ConfigError: As said.
    """
    if not re.fullmatch(NAME_PATTERN, name):
        raise ConfigError(
            f"expected a name of letters, digits, '.', '_' and '-' with a letter in it, got {name!r}: "
            "choose another with --name, or rename the folder"
        )


def digest_of(sha256: str, config_sha256: str) -> str:
    """Return the hash of an adapter as a whole."""
    return hashlib.sha256(f"{sha256} {config_sha256}".encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """Return the checksum of a file.

    Raises:
        AdapterError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise AdapterError(
            f"cannot read {path}: {error.strerror}; expected a PEFT folder with {CONFIG} and {WEIGHTS}"
        ) from error
