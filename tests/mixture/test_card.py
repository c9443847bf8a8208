"""The model card of a saved mixture, in folders and on the Hub."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from huggingface_hub.errors import RemoteEntryNotFoundError
from peft import PeftModel
from torch import nn
from transformers import LlamaForCausalLM

from kshot.mixture import LoraExpert, MixtureConfig, build_mixture, push_to_hub
from kshot.mixture.card import card_text, write_card
from kshot.mixture.expert import ExpertOrigin

MakeModel = Callable[..., nn.Module]
MakeExpert = Callable[..., LoraExpert]
MODULES = {"model.layers.0.self_attn.q_proj": (32, 32, 2, 1.0)}
PEFT_TEMPLATE = "[More Information Needed]"
ORIGINS = {
    "maths": ("org/maths-lora@0a1b2c3", "apache-2.0", None, None),
    "code|b": ("code-lora", None, "DORA", 0.0312),
}


@pytest.fixture
def experts(random_expert: MakeExpert) -> dict[str, LoraExpert]:
    found = {}
    for seed, (name, (source, licence, kind, error)) in enumerate(ORIGINS.items()):
        origin = ExpertOrigin(
            name=name,
            source=source,
            base_model=None,
            licence=licence,
            converted_from=kind,
            conversion_error=error,
        )
        factors = random_expert(name, MODULES, seed).factors
        found[name] = LoraExpert(name, None, factors, origin)
    return found


@pytest.fixture
def base_folder(make_llama: MakeModel, tmp_path: Path) -> Path:
    make_llama().save_pretrained(tmp_path / "base-model")
    return tmp_path / "base-model"


@pytest.fixture
def mixture(base_folder: Path, experts: dict[str, LoraExpert]) -> PeftModel:
    """On a base that knows which folder it came from."""
    return build_mixture(LlamaForCausalLM.from_pretrained(base_folder), experts)


def make_config(**settings: Any) -> MixtureConfig:
    group = {"modules": ["a"], "ranks": [2, 3], "scalings": [1.0, 0.5]}
    return MixtureConfig(**{"expert_names": ["x", "y"], "module_groups": [group]} | settings)


def test_names_experts_origins_and_licences(mixture: PeftModel, tmp_path: Path) -> None:
    mixture.save_pretrained(tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert "| maths | org/maths-lora@0a1b2c3 | apache-2.0 |  |" in card.text
    row = r"| code\|b | code-lora | unknown | converted from DORA, relative error 0.031 |"
    assert row in card.text
    assert (
        "2 LoRA experts behind a router in every module that gives each token the best 2 of 2." in card.text
    )
    assert card.data.library_name == "peft"
    assert card.data.pipeline_tag == "text-generation"  # PEFT's front matter stays
    assert {"kshot", "mixture-of-loras", "transformers"} <= set(card.data.tags)


def test_replaces_the_template_and_names_no_path(mixture: PeftModel, tmp_path: Path) -> None:
    mixture.save_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert PEFT_TEMPLATE not in text
    assert str(tmp_path) not in text
    assert "base_model:" not in text
    mixture.save_pretrained(tmp_path / "out")  # PEFT writes its path into the card that is there
    again = (tmp_path / "out" / "README.md").read_text()
    assert again == text


def test_keeps_the_hub_id_of_the_base(mixture: PeftModel, tmp_path: Path) -> None:
    base = mixture.get_base_model()
    base.name_or_path = base.config._name_or_path = "org/base-1.5B"
    mixture.peft_config["default"].base_model_name_or_path = "org/base-1.5B"
    mixture.save_pretrained(tmp_path / "out", save_embedding_layers=False)  # else PEFT asks the Hub
    data = ModelCard.load(tmp_path / "out" / "README.md").data
    assert data.base_model == "org/base-1.5B"
    assert "base_model:adapter:org/base-1.5B" in data.tags


@pytest.mark.parametrize(
    "base_model", ["/home/me/base", "C:\\models\\base", "./base", "~/base", "a/b/c", "", None]
)
def test_a_path_is_no_hub_id(base_model: str | None, tmp_path: Path) -> None:
    write_card(make_config(base_model_name_or_path=base_model), tmp_path)
    assert "base_model" not in (tmp_path / "README.md").read_text().partition("# A mixture")[0]
    write_card(make_config(base_model_name_or_path="org/base"), tmp_path)
    assert ModelCard.load(tmp_path / "README.md").data.base_model == "org/base"


def test_goes_into_a_named_adapters_folder(
    mixture: PeftModel, experts: dict[str, LoraExpert], tmp_path: Path
) -> None:
    build_mixture(mixture, experts, fixed_gates=[0.25, 0.75], shared_r=4, adapter_name="uniform")
    mixture.save_pretrained(tmp_path / "out")
    own = (tmp_path / "out" / "uniform" / "README.md").read_text()
    assert "behind constant gates 0.25, 0.75, with a LoRA of rank 4 that is always on." in own
    assert "| maths | org/maths-lora@0a1b2c3 | apache-2.0 |  |" in own
    assert str(tmp_path) not in own
    assert "behind a router" in (tmp_path / "out" / "README.md").read_text()


OWN = """---
license: mit
tags: [poems]
base_model: org/base
---
# My own words

about this mixture.
"""


def test_keeps_a_card_of_ones_own(mixture: PeftModel, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text(OWN)
    mixture.save_pretrained(tmp_path / "out")
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert card.text.startswith("# My own words\n\nabout this mixture.\n")
    assert "maths" not in card.text
    assert card.data.license == "mit"
    assert str(tmp_path) not in str(card)  # PEFT put the base's folder there


def test_without_peft_a_card_of_ones_own_is_not_touched(tmp_path: Path) -> None:
    for text in (OWN, "no front matter", "---\n: [broken\n---\ntext", "---\njust text\n---\n"):
        (tmp_path / "README.md").write_text(text)
        make_config(base_model_name_or_path="org/base").save_pretrained(str(tmp_path))
        kept = (tmp_path / "README.md").read_text()
        assert kept == text or (text == "no front matter" and kept.endswith(f"---\n{text}"))
    (tmp_path / "README.md").write_bytes(b"\xff\xfe\x00")
    make_config().save_pretrained(str(tmp_path))
    assert (tmp_path / "README.md").read_bytes() == b"\xff\xfe\x00"


def test_an_own_card_is_made_of_ours_by_removing_a_line(mixture: PeftModel, tmp_path: Path) -> None:
    mixture.save_pretrained(tmp_path / "out")
    path = tmp_path / "out" / "README.md"
    path.write_text(path.read_text().replace("LoRA experts", "fine experts"))
    mixture.save_pretrained(tmp_path / "out")
    assert "fine experts" not in path.read_text()
    lines = [line for line in path.read_text().splitlines() if "remove this line" not in line]
    path.write_text("\n".join(lines).replace("LoRA experts", "fine experts"))
    mixture.save_pretrained(tmp_path / "out")
    assert "A mixture of fine experts" in path.read_text()


def test_text_without_origins() -> None:
    config = make_config(top_k=1, router_scope="layer", router_granularity="sequence", null_expert=True)
    text = card_text(config)
    assert (
        "a router in every layer that gives each sequence the best 1 of 3, with the choice of no exp" in text
    )
    assert "| x | unknown | unknown |  |\n| y | unknown | unknown |  |\n" in text


def test_a_cell_stays_in_its_row() -> None:
    text = card_text(make_config(expert_names=["a|b\nc", "y"]))
    assert "\n| a\\|b c | unknown | unknown |  |\n" in text


class Hub:
    """What a repository holds, in place of the Hub's address."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files: dict[str, bytes] = {}
        self.calls: list[tuple[str, dict[str, Any]]] = []
        for name in ("create_repo", "create_branch", "hf_hub_download", "upload_folder"):
            monkeypatch.setattr(HfApi, name, self._made(name))

    def _made(self, name: str) -> Callable[..., Any]:
        def call(api: HfApi, *args: Any, **options: Any) -> Any:
            self.calls.append((name, options))
            return getattr(self, name)(*args, **options)

        return call

    def create_repo(self, repo_id: str, **_: Any) -> Any:
        return SimpleNamespace(repo_id=f"me/{repo_id}")

    def create_branch(self, repo_id: str, **_: Any) -> None: ...

    def hf_hub_download(self, repo_id: str, filename: str, *, local_dir: str, **_: Any) -> str:
        if filename not in self.files:
            response: Any = SimpleNamespace(headers={}, request=None)
            raise RemoteEntryNotFoundError("not there", response=response)
        path = Path(local_dir) / filename
        path.write_bytes(self.files[filename])
        return str(path)

    def upload_folder(self, *, repo_id: str, folder_path: str, **_: Any) -> Any:
        root = Path(folder_path)
        found = {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        self.files |= found
        return SimpleNamespace(commit_url=f"https://hub/{repo_id}/commit/1")


def test_pushes_the_card_to_the_hub(
    mixture: PeftModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(monkeypatch)
    assert push_to_hub(mixture, "mix", private=True) == "https://hub/me/mix/commit/1"
    assert sorted(hub.files) == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    text = hub.files["README.md"].decode()
    assert "| maths | org/maths-lora@0a1b2c3 | apache-2.0 |  |" in text
    assert PEFT_TEMPLATE not in text
    assert str(tmp_path) not in text
    assert [name for name, _ in hub.calls] == ["create_repo", "hf_hub_download", "upload_folder"]
    assert hub.calls[0][1]["private"] is True


def test_pushing_keeps_the_repositorys_own_card(mixture: PeftModel, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    hub.files["README.md"] = OWN.encode()
    push_to_hub(mixture, "mix", revision="v2", commit_message="Second")
    assert "# My own words\n\nabout this mixture." in hub.files["README.md"].decode()
    assert "adapter_model.safetensors" in hub.files
    options = dict(hub.calls)
    assert options["create_branch"] == {"branch": "v2", "exist_ok": True}
    assert options["upload_folder"]["revision"] == options["hf_hub_download"]["revision"] == "v2"
    assert options["upload_folder"]["commit_message"] == "Second"


def test_what_was_pushed_loads(
    mixture: PeftModel,
    base_folder: Path,
    token_ids: torch.Tensor,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub = Hub(monkeypatch)
    push_to_hub(mixture, "mix")
    for name, content in hub.files.items():
        (tmp_path / "fetched").mkdir(exist_ok=True)
        (tmp_path / "fetched" / name).write_bytes(content)
    base = LlamaForCausalLM.from_pretrained(base_folder)
    loaded = PeftModel.from_pretrained(base, tmp_path / "fetched").eval()
    with torch.no_grad():
        want = mixture.eval()(input_ids=token_ids).logits
        assert torch.equal(loaded(input_ids=token_ids).logits, want)
