"""What runs inside the sandbox: each file is handed over as text, and needs the standard library alone."""

from importlib.resources import files


def text_of(name: str) -> str:
    """Return the text of one of these files."""
    return files(__name__).joinpath(f"{name}.py").read_text(encoding="utf-8")
