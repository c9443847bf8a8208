"""The generated pages are in step with what they are generated from."""

import runpy
from typing import Any

import pytest

from kshot.cli import app
from kshot.config import TaskConfig

from .blocks import ROOT

REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def generator() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.mark.parametrize(
    ("page", "maker"), [("task-file.md", "task_file_page"), ("commands.md", "commands_page")]
)
def test_golden_made_by_docs_generate(generator: dict[str, Any], page: str, maker: str) -> None:
    assert (REFERENCE / page).read_text(encoding="utf-8") == generator[maker](), (
        "run: python docs/generate.py"
    )


def test_every_key_and_every_command_is_there(generator: dict[str, Any]) -> None:
    keys, commands = generator["task_file_page"](), generator["commands_page"]()
    for name in (*TaskConfig.model_fields, *TaskConfig.model_fields["experts"].annotation.model_fields):
        assert f"| `{name}` |" in keys
    for command in app.registered_commands:
        assert command.name is None or f"# kshot {command.name}\n" in commands
    for name in ("run", "export", "serve", "doctor", "bank add", "pool search"):
        assert f"# kshot {name}\n" in commands
