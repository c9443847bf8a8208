"""The expert of a run as a plain LoRA."""

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from kshot.errors import ConfigError, RunFolderError
from kshot.pipeline import export_expert, run


def test_exports_the_expert_as_a_plain_lora(task: Path, tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(RunFolderError, match="expected a run folder at"):
        export_expert(out, tmp_path / "lora")
    run(task, out, until="experts")
    with pytest.raises(RunFolderError, match="expected a trained expert"):
        export_expert(out, tmp_path / "lora")
    run(task, out, until="training")
    exported = export_expert(out, tmp_path / "lora")
    assert exported.loss is not None
    assert exported.loss["num_tokens"] > 0
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    before = base(torch.tensor([[3, 4, 5]])).logits
    lora = PeftModel.from_pretrained(base, tmp_path / "lora")
    assert not torch.allclose(lora(torch.tensor([[3, 4, 5]])).logits, before)
    with pytest.raises(ConfigError, match="expected a new folder"):
        export_expert(out, tmp_path / "lora")
