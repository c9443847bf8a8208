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
    missing = next((part for part in [*reversed(path.parents), path] if not part.exists()), None)
    if missing is None:
        return ""
    try:
        names = [one.name for one in missing.parent.iterdir()]
    except OSError:
        return ""
    shown = [name for name in names if missing.name.startswith(".") or not name.startswith(".")]
    near = get_close_matches(missing.name, shown, n=1)
    if not near:
        return ""
    return f"; did you mean '{missing.parent / near[0] / path.relative_to(missing)}'?"
