"""One layer merged into its base, and what is refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from kshot.errors import AdapterError

from .layers import INPUTS, OUTPUTS, make_layer


@pytest.mark.parametrize("safe_merge", [False, True])
def test_roundtrip_merge(safe_merge: bool) -> None:
    layer = make_layer([1, 2, 4], [0.5, 1.0, 3.0], fixed_gates=[0.2, -0.5, 1.0], shared_r=2, shared_alpha=6.0)
    x = torch.randn(2, 6, INPUTS, dtype=torch.float64)
    before, weight = layer(x), layer.base_layer.weight.clone()
    layer.merge(safe_merge=safe_merge)
    assert layer.merged
    torch.testing.assert_close(layer.base_layer(x), before, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)
    layer.unmerge()
    torch.testing.assert_close(layer.base_layer.weight, weight, rtol=0, atol=1e-12)
    torch.testing.assert_close(layer(x), before, rtol=0, atol=1e-12)
    with pytest.warns(UserWarning, match="Already unmerged"):
        layer.unmerge()


def test_disabling_a_merged_layer_unmerges_it() -> None:
    layer = make_layer([2], fixed_gates=[1.0])
    x = torch.randn(3, INPUTS, dtype=torch.float64)
    weight = layer.base_layer.weight.clone()
    layer.merge()
    layer.enable_adapters(False)
    torch.testing.assert_close(layer(x), functional.linear(x, weight, layer.base_layer.bias))


def test_merge_refuses_a_router() -> None:
    layer = make_layer([2, 3])
    with pytest.raises(AdapterError, match=r"expected fixed_gates, got the routed mixture 'default'"):
        layer.merge()
    assert not layer.supports_lora_conversion()


def test_merge_refuses_a_quantised_base() -> None:
    layer = make_layer([2], fixed_gates=[1.0])
    quantised = torch.zeros(OUTPUTS, INPUTS, dtype=torch.int8)
    layer.base_layer.weight = nn.Parameter(quantised, requires_grad=False)
    with pytest.raises(AdapterError, match=r"expected a floating-point base to merge into, got torch\.int8"):
        layer.merge()


def test_safe_merge_refuses_what_is_not_finite() -> None:
    layer = make_layer([2], fixed_gates=[1.0])
    layer.base_layer.weight.data[0, 0] = torch.inf
    with pytest.raises(
        AdapterError, match=r"expected finite weights after merging 'default', got NaN or inf"
    ):
        layer.merge(safe_merge=True)
    assert not layer.merged
