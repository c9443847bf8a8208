"""The completion script, sourced by a real bash."""

import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from kshot.cli import app
from kshot.cli.completion import completion_script

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


def _completed(tmp_path: Path, *words: str) -> list[str]:
    script = tmp_path / "kshot.bash"
    script.write_text(completion_script(get_command(app), "bash"))
    quoted = " ".join(f"'{word}'" for word in words)
    code = f"source {script}; COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _kshot; "
    code += 'printf "%s\\n" "${COMPREPLY[@]}"'
    done = subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_bash_completes_commands_and_options(tmp_path: Path) -> None:
    assert _completed(tmp_path, "kshot", "ru") == ["run"]
    assert "bank" in _completed(tmp_path, "kshot", "")
    assert _completed(tmp_path, "kshot", "bank", "ver") == ["verify"]
    assert _completed(tmp_path, "kshot", "run", "task.yaml", "--dry") == ["--dry-run"]
    assert "--json" in _completed(tmp_path, "kshot", "bank", "list", "--")
    assert _completed(tmp_path, "kshot", "run", "") == []  # bash then offers files


def test_other_shells(tmp_path: Path) -> None:
    fish = CliRunner().invoke(app, ["completion", "fish"]).stdout
    assert "complete -c kshot -f -n '__fish_use_subcommand' -a 'init run" in fish
    assert "__fish_seen_subcommand_from run' -l dry-run" in fish
    assert CliRunner().invoke(app, ["completion", "zsh"]).stdout.startswith("autoload -U +X bashcompinit")
