"""Experts of the tiny model, of every kind that is served, and a server in a thread."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import peft
import pytest
import torch
import uvicorn
from openai import OpenAI
from peft import LoraConfig, get_peft_model
from torch import nn

from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.serving.engine import Engine
from kshot.serving.limits import Limits
from kshot.serving.served_models import ServedModel, find_expert, load_served
from kshot.serving.server import create_app

PROMPTS = (
    "What is two?",
    "yes",
    "no maybe 1 2 3 and a longer question, so that rows are padded",
    "Is it é?",
    "sum",
)
NEW_TOKENS = 12


@dataclass(frozen=True)
class Served:
    """What `load_served` gives, and the folders it was given."""

    lm: LanguageModel
    models: list[ServedModel]
    folders: dict[str, Path]
    base: Path

    def alone(self, name: str) -> LanguageModel:
        """The same expert without others beside it, loaded by PEFT alone."""
        lm = LanguageModel.load(str(self.base), device="cpu")
        if name in self.folders:
            lm.model = peft.PeftModel.from_pretrained(lm.model, str(self.folders[name])).eval()
        return lm


@pytest.fixture(scope="session")
def expert_folders(tiny_model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mixtures with a router a token, with one a prompt, with null and shared expert, and a plain LoRA."""
    root = tmp_path_factory.mktemp("experts")

    def lora(name: str, seed: int, **settings: object) -> Path:
        base = LanguageModel.load(str(tiny_model_folder), device="cpu").model
        config = LoraConfig(
            r=4, lora_alpha=8, task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj", "down_proj"]
        )
        model = get_peft_model(base, config)
        _fill(model, "lora_", seed, 0.3)
        model.save_pretrained(root / name, save_embedding_layers=False)
        return root / name

    loras = {name: lora(f"lora-{name}", seed) for seed, name in enumerate(("a", "b", "c"), start=1)}

    def mixture(name: str, seed: int, **settings: object) -> Path:
        base = LanguageModel.load(str(tiny_model_folder), device="cpu").model
        model = build_mixture(base, loras, seed=seed, router_init_std=1.0, **settings)  # type: ignore[arg-type]
        _fill(model, "mixture_B", seed, 0.3)
        model.peft_config["default"].base_model_name_or_path = str(tiny_model_folder)
        model.save_pretrained(root / name)
        return root / name

    return {
        "tokens": mixture("tokens", 4),
        "prompts": mixture("prompts", 5, router_granularity="sequence", router_scope="layer"),
        "nulls": mixture("nulls", 6, null_expert=True, shared_r=2, top_k=2),
        "plain": lora("plain", 7),
    }


def _fill(model: nn.Module, part: str, seed: int, std: float) -> None:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.copy_(torch.randn(parameter.shape, generator=draw) * std)


@pytest.fixture(scope="session")
def served(expert_folders: dict[str, Path], tiny_model_folder: Path) -> Served:
    sources = [find_expert(str(folder)) for folder in expert_folders.values()]
    lm, models = load_served(sources, device="cpu")
    return Served(lm, models, expert_folders, tiny_model_folder)


@pytest.fixture(scope="session")
def wanted(served: Served) -> dict[tuple[str, str], str]:
    """What `generate` answers greedily, by model and prompt, each expert alone."""
    found = {}
    for model in served.models:
        answers = served.alone(model.name).generate(PROMPTS, max_new_tokens=NEW_TOKENS)
        found |= {(model.name, prompt): answer for prompt, answer in zip(PROMPTS, answers, strict=True)}
    return found


@contextmanager
def serving(
    served: Served, limits: Limits | None = None, engine: Engine | None = None, **settings: int
) -> Iterator[str]:
    """Serve from a thread, and yield the address."""
    engine = engine or Engine(served.lm, **settings)
    app = create_app(served.lm, served.models, engine, limits or Limits(), hosts=["127.0.0.1"])
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()
        listener.close()


@pytest.fixture(scope="session")
def url(served: Served) -> Iterator[str]:
    with serving(served) as address:
        yield address


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=30) as one:
        yield one
