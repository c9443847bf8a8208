"""The commands: exit codes, output for programs, and that the README tells the truth."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from kshot.cli import app, main
from kshot.config import TaskConfig

ROOT = Path(__file__).parents[1]


def _bank(tmp_path: Path, lora_folder) -> Path:
    result = CliRunner().invoke(
        app, ["bank", "add", str(tmp_path / "bank"), str(lora_folder("sql", r=2)), "--licence", "mit"]
    )
    assert result.exit_code == 0, result.output
    assert "added sql: r = 2" in result.output
    return tmp_path / "bank"


def test_bank_add_list_and_verify(tmp_path: Path, lora_folder) -> None:
    bank = _bank(tmp_path, lora_folder)
    listed = json.loads(CliRunner().invoke(app, ["bank", "list", str(bank), "--json"]).output)
    assert [(entry["name"], entry["r"], entry["licence"]) for entry in listed] == [("sql", 2, "mit")]
    assert "1 adapters are sound" in CliRunner().invoke(app, ["bank", "verify", str(bank)]).output


def test_bank_verify_fails_on_changed_weights(tmp_path: Path, lora_folder) -> None:
    bank = _bank(tmp_path, lora_folder)
    weights = bank / "sql" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    result = CliRunner().invoke(app, ["bank", "verify", str(bank)])
    assert result.exit_code == 2
    assert "the weights changed since they joined the bank" in result.output


def test_a_mistake_is_one_line_and_exit_code_2(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kshot", "report", "no-such-run"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: expected a run folder at no-such-run")
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["init", "run", "select", "augment", "train", "eval", "report"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(app, [command, "--help"])
    assert result.exit_code == 0
    assert f"Example: kshot {command}" in " ".join(result.output.split())


def test_the_task_file_of_the_readme_is_valid() -> None:
    readme = (ROOT / "README.md").read_text()
    block = re.search(r"```yaml\n(.*?)```", readme, re.DOTALL)
    assert block
    TaskConfig.model_validate(yaml.safe_load(block[1]))


def test_the_commands_of_the_readme_exist() -> None:
    readme = (ROOT / "README.md").read_text()
    blocks = "\n".join(readme.split("```")[1::2])
    commands = set(re.findall(r"^kshot (bank \w+|\w+)", blocks, re.MULTILINE))
    assert commands >= {"run", "init", "bank add"}
    for command in commands:
        assert CliRunner().invoke(app, [*command.split(), "--help"]).exit_code == 0, command
