"""Which adapters a bank is filled with: those of a list, or those that the Hub knows of a base model."""

from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import HfApi

from kshot.bank.hub import HubReference, licence_of
from kshot.bank.hub_errors import explained
from kshot.errors import ConfigError, SourceError, reason_of
from kshot.nearest import nearest_path


@dataclass(frozen=True, slots=True)
class Candidate:
    """An adapter that may join a bank.

    Attributes:
        reference: A folder or `hf://owner/name[@revision]`.
        licence: Where the search told it.
    """

    reference: str
    licence: str | None = None


def read_list(file: Path) -> list[Candidate]:
    """Read a list of adapters: one reference a line; empty lines and what follows a `#` do not count.

    Folders start from the list's own.

    Raises:
        ConfigError: It cannot be read or names nothing.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {file}: {getattr(error, 'strerror', None) or reason_of(error)}; "
            f"expected a text with one adapter a line{nearest_path(file)}"
        ) from error
    references = [bare for line in lines if (bare := line.partition("#")[0].strip())]
    if not references:
        raise ConfigError(
            f"expected adapters in {file}, one a line, got none: write hf://owner/name or a folder"
        )
    return [Candidate(_located(reference, file.parent)) for reference in references]


def _located(reference: str, folder: Path) -> str:
    path = folder / Path(reference).expanduser()
    return str(path) if path.is_dir() else reference


def search_hub(base_model: str, *, search: str | None = None, hub: HfApi | None = None) -> list[Candidate]:
    """Ask the Hub for the adapters whose card names a base model, those most downloaded first.

    Args:
        base_model: Its Hub id, such as `mistralai/Mistral-7B-v0.1`.
        search: A part of the adapters' names.
        hub: Which Hub; that of `HF_ENDPOINT` by default.

    Raises:
        ConfigError: `base_model` is no Hub id.
        HubUnreachableError: The Hub does not answer.
        SourceError: It knows none.
    """
    if HubReference.parse(base_model) is None:
        raise ConfigError(f"expected the Hub id of a base model, owner/name, got {base_model!r}")
    with explained(f"adapters of {base_model}"):
        found = [
            Candidate(str(HubReference(info.id)), licence_of(info))
            for info in (hub or HfApi()).list_models(
                filter=f"base_model:adapter:{base_model}",
                search=search,
                sort="downloads",
                expand=["cardData"],
            )
        ]
    if not found:
        named = f" with {search!r} in their names" if search else ""
        raise SourceError(
            f"expected adapters of {base_model}{named} on the Hub, got none: check the id, or give --list"
        )
    return found
