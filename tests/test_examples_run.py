"""The scripts under examples/ run as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.real
def test_the_mixture_alone_learns_reloads_and_exports(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "mixture_only.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    losses = dict(re.findall(r"loss on held-out rows, ([a-zA-Z ]+): +([\d.]+)", done.stdout))
    assert float(losses["trained"]) < float(losses["before training"]) / 2
    assert losses["reloaded"] == losses["trained"]
    assert float(losses["as a plain LoRA"]) < float(losses["before training"])
    gates = [float(gate) for gate in re.findall(r"(?:chain_sum|products|math_cot) ([\d.]+)", done.stdout)]
    assert len(gates) == 3
    assert sum(gates) == pytest.approx(1, abs=0.02)
    exported = tmp_path / "mixture-only" / "lora"
    assert json.loads((exported / "adapter_config.json").read_text())["r"] == 48  # 3 experts of 16
    assert json.loads((exported / "export.json").read_text())["loss"]["num_tokens"] > 0
