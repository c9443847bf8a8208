"""PEFT's merging: exact where gates are fixed, refused before anything is changed where it cannot be done."""

import warnings

import pytest
import torch
from peft import PeftModel, convert_to_lora, get_peft_model, set_peft_model_state_dict
from safetensors.torch import save_file
from torch import nn

from kshot.errors import AdapterError
from kshot.mixture import MixtureLinear

from .architectures import (
    ARCHITECTURES,
    KINDS,
    left_padded,
    logits_of,
    make_base,
    make_experts,
    make_mixture,
    train,
)

pytestmark = pytest.mark.slow

ROUTED = tuple(kind for kind in KINDS if kind != "fixed")


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor], atol: float = 0.0) -> None:
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=atol)


@pytest.mark.parametrize("safe_merge", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_merged_is_the_same_model(architecture: str, safe_merge: bool, tmp_path) -> None:
    model = train(make_mixture("fixed", make_base(architecture)))
    want, before = logits_of(model), state_of(model)
    model.merge_adapter(safe_merge=safe_merge)
    assert model.get_model_status().merged_adapters == ["default"]
    torch.testing.assert_close(logits_of(model), want, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    assert model.get_model_status().merged_adapters == []
    assert_same(state_of(model), before, atol=1e-6)
    torch.testing.assert_close(logits_of(model), want, rtol=0, atol=1e-4)
    merged = model.merge_and_unload(safe_merge=safe_merge)
    assert merged.state_dict().keys() == make_base(architecture).state_dict().keys()
    torch.testing.assert_close(logits_of(merged), want, rtol=0, atol=1e-4)
    save_file(merged.state_dict(), tmp_path / "merged.safetensors")  # refuses weights that are not contiguous


def test_merging_twice_changes_nothing_more() -> None:
    model = make_mixture("fixed")
    model.merge_adapter()
    once = state_of(model)
    with pytest.warns(UserWarning, match="All adapters are already merged, nothing to do"):
        model.merge_adapter()
    assert_same(state_of(model), once)


def test_several_are_merged_as_named() -> None:
    model = make_mixture("fixed", make_mixture("fixed"), adapter_name="other", seed=2)
    model.base_model.set_adapter(["default", "other"])
    both = logits_of(model)
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), both, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    model.set_adapter("default")
    first = logits_of(model)
    merged = model.merge_and_unload(adapter_names=["default"])
    torch.testing.assert_close(logits_of(merged), first, rtol=0, atol=1e-4)


def test_disabling_while_merged_is_the_base() -> None:
    model = make_mixture("fixed")
    want = logits_of(model)
    model.merge_adapter()
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model), logits_of(make_base()), rtol=0, atol=1e-4)
    torch.testing.assert_close(logits_of(model), want, rtol=0, atol=1e-4)


def test_switching_while_merged_unmerges() -> None:
    model = make_mixture("module_token", make_mixture("fixed"), adapter_name="routed", seed=2)
    model.merge_adapter()
    with pytest.warns(UserWarning, match="Unmerging the model first"):
        model.set_adapter("routed")
    torch.testing.assert_close(logits_of(model), logits_of(make_mixture(seed=2)), rtol=0, atol=1e-4)
    assert model.get_model_status().merged_adapters == []


def test_deleting_while_merged_is_refused() -> None:
    model = make_mixture("fixed")
    model.merge_adapter()
    with pytest.raises(ValueError, match="while they are merged"):
        model.delete_adapter("default")


@pytest.mark.parametrize("kind", ROUTED)
def test_a_router_cannot_be_merged(kind: str) -> None:
    model = make_mixture(kind, make_mixture("fixed"), adapter_name="routed", seed=2)
    model.base_model.set_adapter(["default", "routed"])
    before = state_of(model)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(AdapterError, match=r"expected fixed_gates, got the routed mixture 'routed'"):
            merge()
        assert_same(state_of(model), before)
        assert model.get_model_status().merged_adapters == []
    merged = model.merge_and_unload(adapter_names=["default"])
    torch.testing.assert_close(logits_of(merged), logits_of(make_mixture("fixed")), rtol=0, atol=1e-4)


def test_a_layer_that_refuses_keeps_the_others_as_they_were() -> None:
    """The last layer is at fault: what cannot be merged as a whole is not merged in part."""
    for broken, safe_merge in ((torch.nan, True), (None, False)):
        model = make_mixture("fixed")
        last = [module for module in model.modules() if isinstance(module, MixtureLinear)][-1]
        if broken is not None:
            last.mixture_B["default"].data[0, 0] = broken
        else:
            last.base_layer.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
        before = state_of(model)
        for merge in (model.merge_adapter, model.merge_and_unload):
            with pytest.raises(AdapterError, match=r"finite weights after merging|floating-point base"):
                merge(safe_merge=safe_merge)
            after = state_of(model)
            assert after.keys() == before.keys()
            assert all(torch.equal(after[name].nan_to_num(), before[name].nan_to_num()) for name in before)
            assert model.get_model_status().merged_adapters == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merging_into_half_precision(dtype: torch.dtype) -> None:
    model = make_mixture("fixed", make_base(dtype=dtype))
    want = logits_of(model)
    merged = model.merge_and_unload(safe_merge=True)
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    torch.testing.assert_close(logits_of(merged), want, rtol=0, atol=0.5)
    assert (logits_of(merged) - want).abs().mean() < 0.2 * (
        logits_of(make_base(dtype=dtype)) - want
    ).abs().mean()


def test_a_head_tied_to_the_embedding_is_merged_apart_from_it() -> None:
    """The mixture is the head's alone: the embedding of the merged model must stay what it was."""
    base = make_base(tie_word_embeddings=True)
    model = make_mixture("fixed", base, experts=make_experts(base, head=True))
    want, embedding = logits_of(model), base.get_input_embeddings().weight.clone()
    model.merge_adapter()
    torch.testing.assert_close(logits_of(model), want, rtol=0, atol=1e-4)
    model.unmerge_adapter()
    torch.testing.assert_close(logits_of(model), want, rtol=0, atol=1e-4)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input and output embeddings are no longer tied", UserWarning)
        merged = model.merge_and_unload()
    torch.testing.assert_close(logits_of(merged), want, rtol=0, atol=1e-4)
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    assert merged.config.tie_word_embeddings is False


def test_unloading_keeps_tied_weights_tied() -> None:
    base = make_base(tie_word_embeddings=True)
    unloaded = make_mixture("layer_token", base, experts=make_experts(base, head=True)).unload()
    assert unloaded.lm_head.weight is unloaded.model.embed_tokens.weight
    assert torch.equal(logits_of(unloaded), logits_of(make_base(tie_word_embeddings=True)))


def test_against_pefts_conversion_to_lora() -> None:
    model = make_mixture("fixed")
    assert model.supports_lora_conversion()
    assert not make_mixture("module_token").supports_lora_conversion()
    config, tensors = convert_to_lora(model, rank=8)  # that of the experts together: exact
    lora = get_peft_model(make_base(), config).eval()
    assert not set_peft_model_state_dict(lora, tensors).unexpected_keys
    torch.testing.assert_close(
        logits_of(lora, **left_padded()), logits_of(model, **left_padded()), rtol=0, atol=1e-3
    )


def test_a_merged_model_can_get_another_mixture() -> None:
    merged = make_mixture("fixed").merge_and_unload()
    again = make_mixture("layer_sequence", merged, seed=2)
    assert isinstance(again, PeftModel)
    with again.disable_adapter():
        torch.testing.assert_close(logits_of(again), logits_of(make_mixture("fixed")), rtol=0, atol=1e-4)
