"""Row gates: each row runs as if its expert alone were loaded."""

import pytest
import torch

from kshot.errors import ConfigError
from kshot.mixture import build_mixture, set_row_gates

IDS = torch.tensor([[5, 9, 3, 7], [1, 2, 3, 4], [8, 8, 6, 2]])


def test_against_each_expert_alone(make_llama, make_lora) -> None:
    folders = {"a": make_lora("a", seed=1), "b": make_lora("b", seed=2, r=2)}
    model = build_mixture(make_llama(), folders, fixed_gates=[0.5, 0.5]).eval()
    owners = [1, 0, 1]
    set_row_gates(model, torch.eye(2)[owners])
    with torch.no_grad():
        together = model(input_ids=IDS).logits
    for row, owner in enumerate(owners):
        name = list(folders)[owner]
        alone = build_mixture(make_llama(), {name: folders[name]}, fixed_gates=[1.0]).eval()
        with torch.no_grad():
            logits = alone(input_ids=IDS[row : row + 1]).logits[0]
        torch.testing.assert_close(together[row], logits, rtol=1e-5, atol=1e-5)


def test_a_routed_mixture_is_refused(make_llama, make_lora) -> None:
    model = build_mixture(make_llama(), {"a": make_lora("a"), "b": make_lora("b")})
    with pytest.raises(ConfigError, match="got a routed one"):
        set_row_gates(model, torch.eye(2))


def test_a_wrong_number_of_gates_is_refused(make_llama, make_lora) -> None:
    model = build_mixture(make_llama(), {"a": make_lora("a")}, fixed_gates=[1.0])
    with pytest.raises(ConfigError, match=r"shape \(rows, 1\), got \(2, 2\)"):
        set_row_gates(model, torch.eye(2))
