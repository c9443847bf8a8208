"""What folders are served as, and which are refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from kshot.errors import AdapterError, ConfigError, RunFolderError
from kshot.language_model import LanguageModel
from kshot.mixture.row_adapters import BASE_ROWS
from kshot.serving.served_models import ExpertSource, find_expert, load_served, one_base

from .conftest import Served

TASK = """
name: my-task
base_model: some/model
shots: shots.jsonl
scorer: exact_match
bank: [bank]
pool: [pool.jsonl]
"""


def test_every_expert_and_the_base_have_a_name(served: Served) -> None:
    assert [model.name for model in served.models] == [
        "tokens", "prompts", "nulls", "plain", served.base.name,
    ]  # fmt: skip
    assert [model.experts for model in served.models] == [
        ("a", "b", "c"), ("a", "b", "c"), ("a", "b", "c", "(none)"), ("plain",), (),
    ]  # fmt: skip
    assert served.models[-1].adapter == BASE_ROWS
    assert not any(parameter.requires_grad for parameter in served.lm.model.parameters())


@pytest.mark.parametrize("name", ["tokens", "prompts", "nulls", "plain"])
def test_invariant_beside_others_an_expert_is_as_alone(served: Served, name: str) -> None:
    adapter = next(model.adapter for model in served.models if model.name == name)
    ids = torch.tensor([served.lm.template.encode_prompt("What is two?")])
    with torch.inference_mode():
        got = served.lm.model(input_ids=ids, adapter_names=[adapter]).logits
        want = served.alone(name).model(input_ids=ids).logits
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


def test_a_run_folder_is_called_as_its_task(served: Served, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(served.folders["tokens"], run / "expert" / "adapter")
    (run / "config.yaml").write_text(TASK)
    for given in (run, run / "expert"):
        source = find_expert(str(given))
        assert (source.name, source.folder) == ("my-task", run / "expert" / "adapter")
        assert source.base_model == str(served.base)
    assert find_expert(f"other={run}").name == "other"


def test_folders_that_cannot_be_served(served: Served, tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="got nowhere: no such folder"):
        find_expert("nowhere")
    with pytest.raises(AdapterError, match="got neither"):
        find_expert(str(tmp_path))
    (tmp_path / "config.yaml").write_text(TASK)
    with pytest.raises(RunFolderError, match="finish it with 'kshot run'"):
        find_expert(str(tmp_path))
    pickled = tmp_path / "pickled"
    shutil.copytree(served.folders["plain"], pickled)
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    with pytest.raises(AdapterError, match="pickled weights are never read"):
        find_expert(str(pickled))


def test_a_damaged_mixture_is_named(served: Served, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged"
    shutil.copytree(served.folders["tokens"], damaged)
    (damaged / "adapter_model.safetensors").write_bytes(b"no")
    with pytest.raises(AdapterError, match="damaged: expected a mixture of this base model"):
        load_served([find_expert(str(damaged))], device="cpu")


def test_bases_that_differ_are_refused(served: Served, tmp_path: Path) -> None:
    first = ExpertSource("a", tmp_path, "some/model")
    with pytest.raises(ConfigError, match=r"got some/model \(a\) and other/model \(b\)"):
        one_base([first, ExpertSource("b", tmp_path, "other/model")])
    with pytest.raises(ConfigError, match="give it with --base-model"):
        one_base([first, ExpertSource("b", tmp_path, None)])
    here = ExpertSource("a", tmp_path, str(served.base))
    there = ExpertSource("b", tmp_path, f"{served.base}/.")
    assert one_base([here, there]) == str(served.base)


def test_names_that_repeat_are_refused(served: Served) -> None:
    source = find_expert(str(served.folders["tokens"]))
    with pytest.raises(ConfigError, match="got tokens twice"):
        load_served([source, source], device="cpu")


def test_an_expert_of_another_base_is_refused(served: Served, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(served.folders["tokens"], other)
    config = json.loads((other / "adapter_config.json").read_text())
    for group in config["module_groups"]:
        group["modules"] = [module.replace("layers.1", "layers.7") for module in group["modules"]]
    (other / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(AdapterError, match="belongs to another base"):
        load_served([find_expert(str(other))], base_model=str(served.base), device="cpu")
    assert isinstance(served.lm, LanguageModel)
