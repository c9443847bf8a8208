"""One adapter of a bank: what is known of it, and its factors when they are needed."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from kshot.errors import AdapterError
from kshot.mixture import LoraExpert, read_lora

WEIGHTS = "adapter_model.safetensors"
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
        origin: Where it came from.
        licence: Of the weights.
        trained_on: Name of the training data, if known.
        num_rows: Training rows, if known.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = Field(pattern=NAME_PATTERN)
    base_model: str | None = None
    r: int
    target_modules: tuple[str, ...]
    sha256: str
    origin: str = ""
    licence: str = "unknown"
    trained_on: str | None = None
    num_rows: int | None = None


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter folder and its entry."""

    folder: Path
    entry: AdapterEntry

    @property
    def name(self) -> str:
        """Its name in the bank."""
        return self.entry.name

    def load(self) -> LoraExpert:
        """Read the factors.

        Raises:
            AdapterError: The folder is damaged, unsafe or no LoRA.
        """
        return read_lora(self.folder, self.name)

    def verify(self) -> None:
        """Check the weights against the recorded checksum, then read them.

        Raises:
            AdapterError: The checksum differs, or the folder cannot be read.
        """
        found = sha256_of(self.folder / WEIGHTS)
        if found != self.entry.sha256:
            raise AdapterError(
                f"{self.name}: expected sha256 {self.entry.sha256[:12]}..., got {found[:12]}...: "
                f"the weights changed since they joined the bank; restore {self.folder} or add it again"
            )
        self.load()


def describe(folder: Path, name: str, **known: Any) -> AdapterEntry:
    """Read an adapter folder and return its entry.

    Args:
        folder: A PEFT LoRA folder.
        name: Its name in the bank.
        known: Fields of the entry that the weights do not tell, such as `licence`.

    Raises:
        AdapterError: The folder is damaged, unsafe or no LoRA.
    """
    expert = read_lora(folder, name)
    return AdapterEntry(
        name=name,
        base_model=known.pop("base_model", expert.base_model),
        r=max(factors.r for factors in expert.factors.values()),
        target_modules=tuple(sorted({module.rpartition(".")[2] for module in expert.factors})),
        sha256=sha256_of(folder / WEIGHTS),
        **known,
    )


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
            f"cannot read {path}: {error.strerror}; expected the adapter's safetensors file"
        ) from error
