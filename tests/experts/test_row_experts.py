"""Row experts: each row runs as if its adapter alone were loaded, and nothing of it stays behind."""

from itertools import pairwise

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from kshot.errors import AdapterError, ConfigError
from kshot.experts.row_experts import row_experts
from kshot.mixture import LoraExpert, LoraFactors, read_lora

IDS = torch.tensor([[5, 9, 3, 7], [1, 2, 3, 4], [8, 8, 6, 2], [4, 4, 1, 9]])


@pytest.fixture
def folders(lora_folder):
    """Ranks, scalings and modules that differ."""
    return [
        lora_folder("a", seed=1, r=4),
        lora_folder("b", seed=2, r=2, target_modules=["q_proj", "down_proj"], use_rslora=True),
        lora_folder("c", seed=3, r=3, target_modules=["v_proj"], lora_alpha=1),
    ]


@torch.no_grad()
def _logits_alone(base_folder, adapter_folder, ids) -> torch.Tensor:
    base = AutoModelForCausalLM.from_pretrained(base_folder)
    return PeftModel.from_pretrained(base, str(adapter_folder)).eval()(input_ids=ids).logits


@pytest.mark.parametrize(
    "owners", [[0, 0, 1, 1], [2, 0, 1, 0], [1, 1, 1, 1], [0, 0, 2, 2], [1, 2, 1, 2]], ids=str
)
def test_against_peft_with_each_adapter_alone(tiny_lm, tiny_model_folder, folders, owners) -> None:
    with (
        row_experts(tiny_lm.model, [read_lora(folder) for folder in folders]) as rows,
        torch.inference_mode(),
    ):
        rows.use(owners)
        together = tiny_lm.model(input_ids=IDS).logits
    for row, owner in enumerate(owners):
        alone = _logits_alone(tiny_model_folder, folders[owner], IDS[row : row + 1])[0]
        torch.testing.assert_close(together[row], alone, rtol=1e-4, atol=1e-4)


def test_invariant_nan_in_one_adapter_reaches_no_other_row(tiny_lm, folders) -> None:
    experts = [read_lora(folder) for folder in folders]
    overflowing = {
        name: LoraFactors(factors.A_rI * 1e30, factors.B_Or * 1e30, factors.scaling)
        for name, factors in experts[1].factors.items()
    }
    with row_experts(tiny_lm.model, experts) as rows, torch.inference_mode():
        rows.use([0, 1, 2, 1])
        sound = tiny_lm.model(input_ids=IDS).logits
    with row_experts(tiny_lm.model, [experts[0], LoraExpert("b", None, overflowing), experts[2]]) as rows:
        rows.use([0, 1, 2, 1])
        with torch.inference_mode():
            broken = tiny_lm.model(input_ids=IDS).logits
    assert broken[1].isnan().any()
    assert torch.equal(broken[[0, 2]], sound[[0, 2]])


def test_invariant_the_model_is_left_as_it_was(tiny_lm, folders) -> None:
    model = tiny_lm.model
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    kinds = [type(module) for module in model.modules()]
    with torch.inference_mode():
        logits = model(input_ids=IDS).logits

    def fail_inside() -> None:
        with row_experts(model, [read_lora(folders[0])]) as rows, torch.inference_mode():
            rows.use([0] * 4)
            assert not torch.equal(model(input_ids=IDS).logits, logits)
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert [type(module) for module in model.modules()] == kinds
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
    with torch.inference_mode():
        assert torch.equal(model(input_ids=IDS).logits, logits)


def test_a_half_precision_base_keeps_its_dtype_and_float32_factors(tiny_lm, folders) -> None:
    model = tiny_lm.model.to(torch.bfloat16)
    with row_experts(model, [read_lora(folder) for folder in folders]) as rows, torch.inference_mode():
        outputs = []
        for owners in ([0, 0, 1, 1], [1, 0, 1, 0]):
            rows.use(owners)
            outputs.append(model(input_ids=IDS[owners]).logits)
    assert {output.dtype for output in outputs} == {torch.bfloat16}
    torch.testing.assert_close(outputs[0][0], outputs[1][1], rtol=0.05, atol=0.05)


def test_conv1d_of_gpt2_is_a_linear_layer_too() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)).eval()
    draw = torch.Generator().manual_seed(0)
    experts = [
        LoraExpert(
            name,
            None,
            {"transformer.h.0.attn.c_attn": LoraFactors(torch.randn(2, 16, generator=draw), B_Or, 1.0)},
        )
        for name, B_Or in (("a", torch.randn(48, 2, generator=draw)), ("zero", torch.zeros(48, 2)))
    ]
    with torch.inference_mode():
        plain = model(input_ids=IDS).logits
        with row_experts(model, experts) as rows:
            rows.use([0, 0, 1, 1])
            given = model(input_ids=IDS).logits
    torch.testing.assert_close(given[2:], plain[2:])
    assert (given[:2] - plain[:2]).abs().max() > 0.01


def test_rows_that_cannot_be_told_apart_are_refused_and_one_adapter_is_not() -> None:
    class Flattening(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
            return self.inner(x_BTD.flatten(0, 1)).view(x_BTD.shape)

    model = Flattening()
    experts = [
        LoraExpert(name, None, {"inner": LoraFactors(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
        for name in ("a", "b")
    ]
    with row_experts(model, experts) as rows, torch.inference_mode():
        x_BTD = torch.ones(2, 3, 4)
        rows.use([1, 1])
        assert model(x_BTD).shape == (2, 3, 4)
        rows.use([0, 1])
        with pytest.raises(
            AdapterError, match=r"inner: expected an input of shape \(2 rows.*one adapter at a"
        ):
            model(x_BTD)


def test_bad_use_is_refused(tiny_lm, folders) -> None:
    with row_experts(tiny_lm.model, [read_lora(folder) for folder in folders]) as rows:
        with pytest.raises(ConfigError, match=r"call use\(\) before the model"):
            tiny_lm.model(input_ids=IDS)
        for owners in ([], [0, 3], [-1]):
            with pytest.raises(ConfigError, match=r"expected an adapter in \[0, 3\) for each row"):
                rows.use(owners)


def test_a_model_with_adapters_is_refused(tiny_model_folder, folders) -> None:
    base = AutoModelForCausalLM.from_pretrained(tiny_model_folder)
    model = PeftModel.from_pretrained(base, str(folders[0]))
    with (
        pytest.raises(AdapterError, match="base model without adapters"),
        row_experts(model, [read_lora(folders[0])]),
    ):
        pass


def test_an_adapter_of_another_base_is_refused_before_a_hook_is_there(tiny_lm, folders) -> None:
    stranger = LoraExpert("stranger", None, {"nowhere": LoraFactors(torch.ones(1, 4), torch.ones(4, 1), 1.0)})
    with (
        pytest.raises(AdapterError, match="stranger"),
        row_experts(tiny_lm.model, [read_lora(folders[0]), stranger]),
    ):
        pass
    assert not any(module._forward_hooks for module in tiny_lm.model.modules())


def test_invariant_the_order_of_rows_changes_nothing(tiny_lm, folders) -> None:
    found = []
    with (
        row_experts(tiny_lm.model, [read_lora(folder) for folder in folders]) as rows,
        torch.inference_mode(),
    ):
        for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
            owners = [0, 0, 2, 2]
            rows.use([owners[row] for row in order])
            logits = tiny_lm.model(input_ids=IDS[order]).logits
            found.append(logits[torch.tensor(order).argsort()])
    for one, other in pairwise(found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
