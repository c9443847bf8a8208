"""Where files go and come from: disks, caches, the Hub; and the sandbox that runs code."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants, get_session

from kshot.doctor.finding import Finding, State
from kshot.errors import reason_of
from kshot.model_source import cache_folder

TIMEOUT_S = 3.0  # an answer of the Hub takes a few tenths of a second
LEAST_FREE_GB = 2.0  # base model and encoder of the demo with their wheels, and its run folder, take 1.3
SANDBOX = "bwrap"


def check_places() -> list[Finding]:
    """Look at disks, caches, the Hub and the sandbox."""
    home = cache_folder()
    return [
        _disk("disk of KSHOT_HOME", home),
        _disk("disk of this folder", Path.cwd()),
        _cache("kshot's cache", home),
        _cache("Hub cache", Path(constants.HF_HUB_CACHE)),
        _hub(),
        _sandbox(),
    ]


def _disk(name: str, folder: Path) -> Finding:
    there = next(one for one in [folder, *folder.parents] if os.access(one, os.F_OK))
    free = shutil.disk_usage(there).free / 1e9
    details = {"folder": str(folder), "free_gb": round(free, 1)}
    if not os.access(there, os.W_OK):
        how = "set KSHOT_HOME to a folder you can write to" if "HOME" in name else "start from another folder"
        state: State = "problem" if "HOME" in name else "warning"
        return Finding(name, state, f"{folder} cannot be written", how, details)
    few = free < LEAST_FREE_GB
    return Finding(
        name,
        "warning" if few else "ok",
        f"{free:.1f} GB free for {folder}",
        f"the demo takes about {LEAST_FREE_GB:g} GB" if few else "",
        details,
    )


def _cache(name: str, folder: Path) -> Finding:
    size = sum(_sizes(folder)) / 1e9
    return Finding(
        name, "ok", f"{size:.2f} GB in {folder}", details={"folder": str(folder), "gb": round(size, 3)}
    )


def _sizes(folder: Path) -> Iterator[int]:
    """Yield the size of each file; links, which the Hub cache is full of, do not count."""
    for place, _, names in os.walk(folder):  # which passes over folders that may not be read
        for name in names:
            try:
                status = (Path(place) / name).lstat()
            except OSError:  # it was removed meanwhile
                continue
            if stat.S_ISREG(status.st_mode):
                yield status.st_size


def _hub() -> Finding:
    address = constants.ENDPOINT
    advice = "models and adapters from folders, caches and pypi: wheels work without it"
    try:
        answer = get_session().head(address, timeout=TIMEOUT_S)
    except Exception as error:  # the Hub client's offline mode, and all that a network can do
        return Finding("Hub", "warning", f"{address} does not answer: {reason_of(error)}", advice)
    if answer.status_code >= 500:
        return Finding("Hub", "warning", f"{address} answers {answer.status_code}", advice)
    return Finding("Hub", "ok", f"{address} answers", details={"status": answer.status_code})


def _sandbox() -> Finding:
    path = shutil.which(SANDBOX)
    if path is None:
        advice = "install bubblewrap to run the programs of a code task shut off from this machine"
        return Finding("sandbox", "absent", f"no {SANDBOX}", advice)
    return Finding("sandbox", "ok", path)
