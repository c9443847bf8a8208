"""Other kinds of adapter as LoRA experts: what PEFT computes with them, and a base that is left alone."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import BdLoraConfig, MontecloraConfig, VeloraConfig
from peft.tuners.lora.conversion import convert_to_lora
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import nn

from kshot.errors import AdapterError, ConfigError
from kshot.mixture import LoraExpert, build_mixture, load_expert
from kshot.mixture.convert import nearest_lora, weight_change
from kshot.mixture.kinds import CONVERTIBLE_TYPES

MakeModel = Callable[..., nn.Module]
MakeAdapter = Callable[..., Path]
MakeLora = Callable[..., Path]
Q0 = "model.layers.0.self_attn.q_proj"
ALL = 48  # no layer of the tiny models has a larger rank
TARGETS = ["q_proj", "v_proj", "down_proj"]

BD = BdLoraConfig(
    nblocks=2, target_modules_bd_a=["q_proj"], target_modules_bd_b=["down_proj"], match_strict=False
)
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": ("AdaLora", {"total_step": 9, "init_r": 6, "target_r": 4}),
    "boft": ("BOFT", {"boft_block_size": 4, "boft_n_butterfly_factor": 2}),
    "c3a": ("C3A", {"block_size": 16}),
    "deft": ("Deft", {"r": 4}),
    "delora": ("Delora", {"r": 4}),
    "fourierft": ("FourierFT", {"n_frequency": 50}),
    "glora": ("Glora", {"r": 4}),
    "gralora": ("Gralora", {"r": 4, "gralora_k": 2}),
    "hira": ("Hira", {"r": 4}),
    "hra": ("HRA", {"r": 4, "apply_GS": True}),
    "ia3": ("IA3", {"feedforward_modules": ["down_proj"]}),
    "loha": ("LoHa", {"r": 2, "alpha": 4, "rank_pattern": {"v_proj": 3}}),
    "lokr": ("LoKr", {"r": 2, "alpha": 4}),
    "lokr_both": ("LoKr", {"r": 2, "alpha": 4, "decompose_both": True, "decompose_factor": 4}),
    "miss": ("Miss", {"r": 4}),
    "miss_bat": ("Miss", {"r": 4, "init_weights": "bat"}),
    "oft": ("OFT", {"oft_block_size": 8}),
    "oft_shared": ("OFT", {"oft_block_size": 8, "block_share": True, "use_cayley_neumann": False}),
    "oft_bound": ("OFT", {"oft_block_size": 8, "coft": True, "eps": 1e-2}),
    "psoft": ("Psoft", {"r": 8}),
    "randlora": ("RandLora", {"r": 8}),
    "road": ("Road", {"group_size": 16, "variant": "road_4"}),
    "shira": ("Shira", {"r": 4}),
    "tinylora": ("TinyLora", {"r": 2}),
    "unilora": ("UniLora", {"r": 4, "theta_d_length": 64}),
    "vblora": ("VBLoRA", {"r": 4, "num_vectors": 10, "vector_length": 4}),
    "vera": ("Vera", {"r": 8}),
    "vera_unsaved": ("Vera", {"r": 8, "save_projection": False}),
    "waveft": ("WaveFT", {"n_frequency": 50}),
    "dora": ("Lora", {"r": 4, "use_dora": True}),
    "dora_patterns": ("Lora", {"r": 4, "use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2}}),
    "bdlora": ("Lora", {"r": 4, "use_bdlora": BD}),
    "monteclora": ("Lora", {"r": 4, "monteclora_config": MontecloraConfig()}),
    "velora": ("Lora", {"r": 4, "velora_config": VeloraConfig(num_groups=4)}),
    "parameters": ("Lora", {"r": 4, "target_parameters": ["o_proj.weight"]}),
}  # fmt: skip
CONVERTED_FROM = {
    "bdlora": "BDLORA", "dora": "DORA", "dora_patterns": "DORA", "monteclora": "MONTECLORA",
    "parameters": "LORA on parameters", "velora": "VELORA",
}  # fmt: skip
ON_CONV1D = {
    "dora",
    "adalora",
    "fourierft",
    "gralora",
    "hira",
    "randlora",
    "unilora",
    "vblora",
    "vera",
    "waveft",
}


@pytest.fixture
def make_adapter(make_llama: MakeModel, tmp_path: Path) -> MakeAdapter:
    """A PEFT folder of one of KINDS on the tiny Llama (or on `base`), with random trained weights."""

    def make(kind: str, base: nn.Module | None = None, **settings: Any) -> Path:
        name, own = KINDS[kind]
        config_class: type[PeftConfig] = getattr(peft, f"{name}Config")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # kinds have much to say of tiny models
            config = config_class(**{"target_modules": TARGETS, **own, **settings})
            model = get_peft_model(make_llama() if base is None else base, config)
            draw = torch.Generator().manual_seed(5)
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.data += 0.1 * torch.randn(parameter.shape, generator=draw)
            model.save_pretrained(tmp_path / kind, save_embedding_layers=False)
        return tmp_path / kind

    return make


def logits_of(model: nn.Module, token_ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=token_ids).logits


def peft_logits(base: nn.Module, folder: Path, token_ids: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return logits_of(PeftModel.from_pretrained(base, folder).eval(), token_ids)


def mixture_logits(base: nn.Module, expert: LoraExpert, token_ids: torch.Tensor) -> torch.Tensor:
    return logits_of(build_mixture(base, {expert.name: expert}, fixed_gates=[1.0]), token_ids)


def product(expert: LoraExpert, module: str) -> torch.Tensor:
    return expert.factors[module].scaling * expert.factors[module].B_Or @ expert.factors[module].A_rI


def state_of(model: nn.Module) -> dict[str, Any]:
    """All that an adapter could leave behind."""
    parts: dict[str, Any] = {"attributes": sorted(vars(model)), "random": torch.get_rng_state().tolist()}
    for name, module in model.named_modules():
        hooks = [len(value) for key, value in sorted(vars(module).items()) if "hooks" in key]
        parts[name] = (id(module), type(module), module.training, hooks)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        parts[f"{name}()"] = (id(tensor), tensor.data_ptr(), tensor.requires_grad, tensor.tolist())
    return parts


@pytest.mark.parametrize("kind", KINDS)
def test_against_peft_forward(
    kind: str, make_adapter: MakeAdapter, make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    folder = make_adapter(kind)
    base = make_llama()
    before = state_of(base)
    expert = load_expert(folder, "e", base, convert_rank=ALL)
    assert state_of(base) == before
    want = peft_logits(make_llama(), folder, token_ids)
    torch.testing.assert_close(mixture_logits(base, expert, token_ids), want, rtol=0, atol=1e-6)
    assert not torch.allclose(want, logits_of(make_llama(), token_ids), atol=1e-3)
    assert expert.origin is not None
    assert expert.origin["converted_from"] == CONVERTED_FROM.get(kind, KINDS[kind][0].upper())
    assert expert.origin["conversion_error"] is not None
    assert expert.origin["conversion_error"] < 1e-6
    assert expert.conversion_errors.keys() == expert.factors.keys()
    assert max(expert.conversion_errors.values()) < 1e-6


def test_every_kind_is_tested() -> None:
    assert {name.upper() for name, _ in KINDS.values()} - {"LORA"} == CONVERTIBLE_TYPES


@pytest.mark.parametrize("kind", sorted(ON_CONV1D))
def test_against_peft_on_conv1d(
    kind: str, make_adapter: MakeAdapter, make_gpt2: MakeModel, token_ids: torch.Tensor
) -> None:
    transposes = {"fan_in_fan_out": True} if kind not in {"gralora"} else {}
    folder = make_adapter(kind, make_gpt2(), target_modules=["c_attn", "c_proj"], **transposes)
    base = make_gpt2()
    expert = load_expert(folder, "e", base, convert_rank=ALL)
    want = peft_logits(make_gpt2(), folder, token_ids)
    torch.testing.assert_close(
        mixture_logits(base, expert, token_ids), want, rtol=0, atol=1e-5
    )  # the changes are large


@pytest.mark.parametrize(
    ("kind", "ranks"),
    [("loha", {"q_proj": 4, "v_proj": 9}), ("lokr", {"q_proj": 8}), ("vera", {"q_proj": 8})],
)
def test_exact_at_the_rank_of_the_change(
    kind: str, ranks: dict[str, int], make_adapter: MakeAdapter, make_llama: MakeModel
) -> None:
    folder = make_adapter(kind)
    expert = load_expert(folder, "e", make_llama(), convert_rank=max(ranks.values()))
    got = {module: factors.r for module, factors in expert.factors.items()}
    assert {module: r for module, r in got.items() if module.split(".")[-1] in ranks} == {
        module: ranks[module.split(".")[-1]] for module in got if module.split(".")[-1] in ranks
    }
    assert max(expert.conversion_errors.values()) < 1e-6
    if kind == "loha":
        wide = load_expert(
            folder, "e", make_llama(), convert_rank=ALL
        )  # ranks that are not needed are not used
        assert {module: factors.r for module, factors in wide.factors.items()} == got


@pytest.mark.parametrize("kind", ["dora", "loha", "oft", "ia3"])
def test_errors_are_the_tails_of_the_svd(kind: str, make_adapter: MakeAdapter, make_llama: MakeModel) -> None:
    rank = 3
    folder = make_adapter(kind)
    expert = load_expert(folder, "e", make_llama(), convert_rank=rank)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        merged = PeftModel.from_pretrained(make_llama().double(), folder).merge_and_unload()
    base = make_llama().double()
    lost = total = 0.0
    for module in expert.factors:
        sizes = torch.linalg.svdvals(merged.get_submodule(module).weight - base.get_submodule(module).weight)
        want = (sizes[rank:].norm() / sizes.norm()).item()
        assert expert.conversion_errors[module] == pytest.approx(want, rel=1e-4)
        lost, total = lost + sizes[rank:].square().sum().item(), total + sizes.square().sum().item()
    assert expert.origin is not None
    assert expert.origin["conversion_error"] == pytest.approx((lost / total) ** 0.5, rel=1e-4)
    assert json.loads(json.dumps(expert.origin)) == expert.origin


def test_against_peft_conversion(make_adapter: MakeAdapter, make_llama: MakeModel) -> None:
    folder = make_adapter("loha")
    expert = load_expert(folder, "e", make_llama(), convert_rank=2)
    _, want = convert_to_lora(PeftModel.from_pretrained(make_llama(), folder), rank=2)
    for module in expert.factors:
        B, A = (want[f"base_model.model.{module}.lora_{side}.weight"] for side in "BA")
        torch.testing.assert_close(product(expert, module), B @ A, rtol=0, atol=1e-5)


def test_a_module_that_learnt_nothing_stays(make_adapter: MakeAdapter, make_llama: MakeModel) -> None:
    folder = make_adapter("loha")
    tensors = load_file(folder / "adapter_model.safetensors")
    for key in tensors:
        if Q0 in key:
            tensors[key].zero_()
    save_file(tensors, folder / "adapter_model.safetensors")
    expert = load_expert(folder, "e", make_llama(), convert_rank=2)
    assert not product(expert, Q0).any()
    assert expert.conversion_errors[Q0] == 0.0
    assert expert.factors[Q0].r == 1


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 6)])
@pytest.mark.parametrize("rank", [1, 3, 20])
def test_nearest_lora_against_svd(shape: tuple[int, int], rank: int) -> None:
    change = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    factors = nearest_lora(change, rank)
    U, S, Vh = torch.linalg.svd(change, full_matrices=False)
    want = U[:, :rank] * S[:rank] @ Vh[:rank]
    torch.testing.assert_close(factors.B_Or @ factors.A_rI, want.float())
    assert factors.r == min(rank, *shape)
    torch.testing.assert_close(factors.B_Or.norm(dim=0), factors.A_rI.norm(dim=1))  # alike in size


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_bases(dtype: torch.dtype, make_adapter: MakeAdapter, make_llama: MakeModel) -> None:
    folder = make_adapter("dora")
    half = load_expert(folder, "e", make_llama().to(dtype), convert_rank=ALL)
    full = load_expert(folder, "e", make_llama().to(dtype).float(), convert_rank=ALL)
    for module in full.factors:
        torch.testing.assert_close(product(half, module), product(full, module), rtol=0, atol=1e-6)


class Rounded(nn.Module):
    """A linear layer whose weight is kept as 8-bit numbers, as quantised layers do."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.register_buffer("step", linear.weight.detach().abs().max() / 127)
        self.register_buffer("weight", (linear.weight.detach() / self.step).round().to(torch.int8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (self.weight * self.step).T.to(x)


def rounded(model: nn.Module) -> nn.Module:
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear):
            model.set_submodule(name, Rounded(module))
    return model


@pytest.mark.parametrize("kind", ["dora", "loha", "oft", "vera", "ia3"])
def test_quantised_bases(
    kind: str, make_adapter: MakeAdapter, make_llama: MakeModel, token_ids: torch.Tensor
) -> None:
    folder = make_adapter(kind)
    base = rounded(make_llama())
    before = state_of(base)
    expert = load_expert(folder, "e", base, convert_rank=ALL)
    assert state_of(base) == before
    plain = make_llama()
    for name, module in base.named_modules():
        if isinstance(module, Rounded):
            plain.get_submodule(name).weight.data = module.weight * module.step
    want = peft_logits(plain, folder, token_ids)
    torch.testing.assert_close(mixture_logits(base, expert, token_ids), want, rtol=0, atol=1e-6)


def test_a_base_with_mixtures_is_read_as_the_base(
    make_adapter: MakeAdapter, make_lora: MakeLora, make_llama: MakeModel
) -> None:
    folder = make_adapter("dora")
    mixed = build_mixture(make_llama(), {"other": make_lora("lora")}, fixed_gates=[1.0])
    before = state_of(mixed)
    got = load_expert(folder, "e", mixed.get_base_model(), convert_rank=ALL)
    assert state_of(mixed) == before
    want = load_expert(folder, "e", make_llama(), convert_rank=ALL)
    for module in want.factors:
        assert torch.equal(product(got, module), product(want, module))


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "adapter_model.safetensors")
    change(tensors)
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "adapter_model.safetensors")


KEY = f"base_model.model.{Q0}."
BAD: dict[str, tuple[str, dict[str, Any], Callable[[dict[str, torch.Tensor]], object], str]] = {
    "shape": (
        "loha", {}, lambda t: t.update({KEY + "hada_w1_a": torch.ones(40, 2)}),
        r"expected a LOHA adapter of this base model, got: .*size mismatch .*: choose adapters of this base",
    ),
    "no_module": (
        "loha", {}, lambda t: t.update({KEY.replace("q_proj", "w_q") + "hada_w1_a": torch.ones(32, 2)}),
        r"w_q.hada_w1_a, but no linear layer of the base is there",
    ),
    "missing": ("loha", {}, lambda t: t.pop(KEY + "hada_w2_b"), r"q_proj.hada_w2_b.default, got none: save"),
    "no_magnitude": (
        "dora", {}, lambda t: t.pop(KEY + "lora_magnitude_vector"), r"q_proj.lora_magnitude_vector.* got none"
    ),
    "nan": ("loha", {}, lambda t: t[KEY + "hada_w1_a"].fill_(float("nan")), r"q_proj: expected finite"),
    "saved": (
        "loha", {}, lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(64, 32)}),
        r"got base_model.model.lm_head.weight, but it is a whole weight \(modules_to_save",
    ),
    "bias": ("loha", {}, lambda t: t.update({KEY + "bias": torch.ones(32)}), r"bias, but it is a bias"),
    "lora_bias": (
        "dora", {"lora_bias": True}, lambda t: t.update({KEY + "lora_B.bias": torch.ones(32)}),
        r"lora_B.bias, but ",
    ),
    "settings": ("loha", {"new_trick": 3}, dict, r"knows, got \['new_trick'\]: upgrade peft"),
    "targets": ("loha", {"target_modules": ["w_q"]}, dict, r"got: Target modules .* not found in the base"),
    "rank": ("loha", {"r": -1}, dict, r"expected a LOHA adapter of this base model, got: .*positive integer"),
    "regex": ("loha", {"target_modules": "("}, dict, r"expected a LOHA adapter of this base model, got: "),
    "pissa": ("dora", {"init_lora_weights": "pissa"}, dict, r"which also changes the base"),
    "qalora": ("dora", {"use_qalora": True}, dict, r"use_qalora=True, which belongs to the groups of"),
    "config": ("ia3", {"feedforward_modules": ["up_proj"]}, dict, r"expected settings of a IA3 adapter"),
    "experts": (
        "parameters", {"target_parameters": ["mlp.experts"]}, dict, r"expected a LORA adapter|no linear layer"
    ),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "settings", "change", "message"), BAD.values(), ids=BAD)
def test_refuses_and_leaves_the_base_alone(
    kind: str,
    settings: dict[str, Any],
    change: Callable[[dict[str, torch.Tensor]], object],
    message: str,
    make_adapter: MakeAdapter,
    make_llama: MakeModel,
) -> None:
    folder = make_adapter(kind)
    change_weights(folder, change)
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | settings))
    base = make_llama()
    before = state_of(base)
    with pytest.raises(AdapterError, match=message):
        load_expert(folder, "e", base, convert_rank=4)
    assert state_of(base) == before


def test_refuses_changed_biases(make_adapter: MakeAdapter, make_gpt2: MakeModel) -> None:
    base = make_gpt2()
    nn.init.normal_(base.get_parameter("transformer.h.0.attn.c_attn.bias"))
    settings = {"target_modules": ["c_attn"], "feedforward_modules": [], "fan_in_fan_out": True}
    folder = make_adapter("ia3", make_gpt2(), **settings)
    with pytest.raises(
        AdapterError, match=r"c_attn: expected an adapter of weights alone, got one that changes"
    ):
        load_expert(folder, "e", base, convert_rank=4)


def test_refuses_what_is_not_linear() -> None:
    class Bent(nn.Module, BaseTunerLayer):
        def __init__(self) -> None:
            super().__init__()
            self.base_layer = nn.Linear(3, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base_layer(x) + 0.01 * x[..., :1].relu()

    layer = Bent()
    base = layer.base_layer
    with pytest.raises(AdapterError, match=r"here: expected an adapter whose output is linear in its input"):
        weight_change(layer, "here")  # type: ignore[arg-type]
    assert layer.base_layer is base


def test_needs_a_rank_and_a_base(make_adapter: MakeAdapter, make_llama: MakeModel) -> None:
    folder = make_adapter("dora")
    with pytest.raises(AdapterError, match=r"expected a plain LoRA, got DORA, .* pass convert_rank= to"):
        load_expert(folder, "e", make_llama())
    with pytest.raises(ConfigError, match=r"convert_rank=4 needs the base model, got none: pass base_model"):
        load_expert(folder, "e", convert_rank=4)
    with pytest.raises(ConfigError, match=r"convert_rank must be at least 1, got 0"):
        load_expert(folder, "e", make_llama(), convert_rank=0)


def test_plain_loras_are_not_converted(make_lora: MakeLora, make_llama: MakeModel) -> None:
    folder = make_lora("lora", r=6)
    expert = load_expert(folder, "e", make_llama(), convert_rank=2)
    assert expert.origin is not None
    assert expert.origin["converted_from"] is None
    assert expert.conversion_errors == {}
    assert {factors.r for factors in expert.factors.values()} == {6}
    saved = load_file(folder / "adapter_model.safetensors")
    assert torch.equal(expert.factors[Q0].A_rI, saved[KEY + "lora_A.weight"])
