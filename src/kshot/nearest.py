"""What a mistyped name or path may have meant, for the end of an error message."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` with the nearest known name, or nothing where none is near."""
    near = get_close_matches(name, list(known), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def nearest_path(path: str | Path) -> str:
    """Return `; did you mean 'x'?` for a path that is not there, by the first part of it that is missing.

    Args:
        path: Without patterns; hidden files are suggested to none but who asks for one.
    """
    path = Path(path).expanduser()
    try:
        missing = next((part for part in [*reversed(path.parents), path] if not part.exists()), None)
        names = [one.name for one in missing.parent.iterdir()] if missing else []
    except OSError:  # a folder that may not be read
        return ""
    if missing is None:
        return ""
    shown = [name for name in names if missing.name.startswith(".") or not name.startswith(".")]
    near = get_close_matches(missing.name, shown, n=1)
    if not near:
        return ""
    return f"; did you mean '{missing.parent / near[0] / path.relative_to(missing)}'?"


def nearest_inside(path: Path, suffixes: Iterable[str]) -> str:
    """Return `; did you mean 'x/y.yaml'?` for a folder that was given instead of the one such file in it."""
    try:
        inside = [one for one in path.iterdir() if one.suffix in suffixes] if path.is_dir() else []
    except OSError:
        return ""
    return f"; did you mean '{inside[0]}'?" if len(inside) == 1 else ""
