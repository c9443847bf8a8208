"""Write the reference pages of task file and commands from what defines them: python docs/generate.py."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from kshot.cli import app
from kshot.config import TaskConfig

REFERENCE = Path(__file__).parent / "reference"

_TASK_FILE = """# The task file

Generated from the schema that checks it. Unknown keys are refused, and the nearest known one is named.
Relative paths
start from the folder of the task file. Where a default is the paper's, or measured, its description
says so.

`kshot.config.json_schema()` returns a JSON schema, for editors that complete and check YAML.

"""
_COMMANDS = """# Commands

Generated from the command line itself; `kshot COMMAND --help` prints the same.

Every command takes `--quiet` (results and errors only) and, where a program would read it, `--json`. Exit
codes: 0 done, 1 a fault of kshot, 2 something you can mend, 130 stopped by Ctrl-C, after which the same
command goes on.

"""


def task_file_page() -> str:
    """Return the page of the task file."""
    return _TASK_FILE + "\n".join(_section("", TaskConfig))


def commands_page() -> str:
    """Return the page of the commands."""
    return _COMMANDS + "\n".join(_command(typer.main.get_command(app), "kshot"))


def _section(key: str, model: type[BaseModel]) -> Iterator[str]:
    if key:
        yield from (f"## `{key}`", "", f"{_first_line(model)}", "")
    yield from ("| key | default | |", "|---|---|---|")
    inner = []
    for name, field in model.model_fields.items():
        section = _section_of(field)
        if section is not None:
            inner.append((f"{key}.{name}".lstrip("."), section))
        about = "; ".join(filter(None, (field.description, _allowed(field))))
        if section is not None and not field.description:
            about = f"see [{inner[-1][0]}](#{inner[-1][0].replace('.', '')})"
        yield f"| `{name}` | {_default(field, section)} | {_cell(about)} |"
    yield ""
    for where, section in inner:
        yield from _section(where, section)


def _first_line(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").strip().splitlines()[0]


def _section_of(field: FieldInfo) -> type[BaseModel] | None:
    kinds = [field.annotation, *get_args(field.annotation)]
    return next((kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)), None)


def _default(field: FieldInfo, section: type[BaseModel] | None) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    if field.default in ("", (), {}):
        return "empty"
    if section is not None:
        return ""
    value = str(field.default).lower() if isinstance(field.default, bool) else f"{field.default}"
    return f"`{value}`"


def _allowed(field: FieldInfo) -> str:
    """Say which values there are, and their bounds."""
    kinds = [field.annotation, *get_args(field.annotation)]
    literal = next((kind for kind in kinds if get_origin(kind) is Literal), None)
    if literal is not None:
        return "one of " + ", ".join(f"`{value}`" for value in get_args(literal))
    bounds = []
    for rule in field.metadata:
        for name, sign in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
            if hasattr(rule, name):
                bounds.append(f"{sign} {getattr(rule, name)}")
    return ", ".join(bounds)


def _command(command: Any, path: str) -> Iterator[str]:
    inside = getattr(command, "commands", {})
    if path != "kshot":
        yield from (f"{'#' * len(path.split())} {path}", "")
        yield from (_help(command.help or ""), "")
    if not inside:
        yield from _parameters(command.params)
    for name, one in inside.items():
        yield from _command(one, f"{path} {name}")


def _help(text: str) -> str:
    said, *examples = text.strip().split("Example: ")
    return "\n\n".join(
        [" ".join(said.split()), *(f"    {' '.join(example.split())}" for example in examples)]
    )


def _parameters(parameters: Any) -> Iterator[str]:
    yield from ("| | default | |", "|---|---|---|")
    for one in parameters:
        is_option = one.opts[0].startswith("-")
        name = ", ".join(one.opts) if is_option else one.name.upper()
        given = one.default is not None and one.default is not False and one.default != ()
        default = "required" if one.required else f"`{one.default}`" if given else ""
        yield f"| `{name}` | {default} | {_cell(getattr(one, 'help', None) or '')} |"
    yield ""


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("[", "\\[")


def main() -> None:
    """Write both pages."""
    for name, page in (("task-file.md", task_file_page()), ("commands.md", commands_page())):
        (REFERENCE / name).write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
