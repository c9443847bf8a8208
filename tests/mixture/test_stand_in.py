"""The stand-in for a base model: the same weights, but nothing of the base's own."""

from collections.abc import Callable

import torch
from torch import nn

from kshot.mixture.stand_in import ReadOnDemand, dense_linear, dense_weight, stand_in_for

MakeModel = Callable[..., nn.Module]


def linears(model: nn.Module) -> dict[str, nn.Module]:
    return {name: m for name, m in model.named_modules() if type(m).__name__ in {"Linear", "Conv1D"}}


def test_shares_memory_and_nothing_else(make_llama: MakeModel, make_gpt2: MakeModel) -> None:
    for base in (make_llama(), make_gpt2()):
        stand_in = stand_in_for(base)
        ours, theirs = linears(stand_in), linears(base)
        assert list(ours) == list(theirs)
        for name, layer in ours.items():
            assert type(layer) is type(theirs[name])
            assert layer.weight.data_ptr() == theirs[name].weight.data_ptr()
            x = torch.randn(2, 3, dense_weight(layer).shape[1])
            assert torch.equal(layer(x), theirs[name](x))
        assert not {id(m) for m in stand_in.modules()} & {id(m) for m in base.modules()}
        assert not {id(p) for p in stand_in.parameters()} & {id(p) for p in base.parameters()}
        assert not any(parameter.requires_grad for parameter in stand_in.parameters())


def test_dense_linear_is_of_the_same_class(make_gpt2: MakeModel) -> None:
    for like, kind in (
        (nn.Linear(3, 2), "Linear"),
        (linears(make_gpt2())["transformer.h.0.mlp.c_fc"], "Conv1D"),
    ):
        weight, bias = torch.randn(4, 5), torch.randn(4)
        layer = dense_linear(weight, bias, like=like)
        assert type(layer).__name__ == kind
        x = torch.randn(2, 5)
        torch.testing.assert_close(layer(x), x @ weight.T + bias)
        torch.testing.assert_close(dense_linear(weight, None, like=nn.Linear(3, 2))(x), x @ weight.T)


class Doubled(nn.Module):
    """A linear layer with a bias, whose `weight` is not what it computes with."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 3, 2
        self.weight = nn.Parameter(torch.arange(6, dtype=torch.int8).reshape(2, 3), requires_grad=False)
        self.bias = nn.Parameter(torch.tensor([5.0, 7.0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ (2 * self.weight).T.to(x) + self.bias


def test_other_weights_are_read_on_demand() -> None:
    base = nn.ModuleDict({"a": Doubled()})
    layer = stand_in_for(base).get_submodule("a")
    assert isinstance(layer, ReadOnDemand)
    assert torch.equal(layer.weight, 2.0 * base["a"].weight)
    x = torch.randn(4, 3)
    torch.testing.assert_close(layer(x), base["a"](x))
    base["a"].weight += 1
    assert torch.equal(layer.weight, 2.0 * base["a"].weight)  # it is not kept
    assert list(layer.children()) == []
