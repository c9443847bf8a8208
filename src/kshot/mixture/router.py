"""The router: from a module's input to one gate for each token and expert.

B batch   T tokens   E choices of the router   K experts a token uses   r rank   D inputs   O outputs
"""

from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from kshot.errors import AdapterError
from kshot.mixture.config import MixtureConfig
from kshot.mixture.routing import Decision, Routing


class Router(nn.Module):
    """`softmax(top-k of (R x + b) / temperature)`, as a `MixtureConfig` describes it.

    Args:
        weight_ED: R, where it starts from; in float32 at least.
        config: Of the mixture.
        module_name: Where it sits.
        adapter_name: Of the mixture.
    """

    def __init__(
        self, weight_ED: torch.Tensor, config: MixtureConfig, module_name: str, adapter_name: str = "default"
    ) -> None:
        super().__init__()
        self.config = config
        self.module_name = module_name
        self.adapter_name = adapter_name
        self.weight = nn.Parameter(weight_ED)
        prior = config.router_prior
        self.bias = None if prior is None else nn.Parameter(torch.tensor(prior, dtype=weight_ED.dtype))
        self.logits: torch.Tensor | None = None  # of the last training pass, kept for router_loss
        self.lent_gates: torch.Tensor | None = None  # of the last pass, for the other modules of its layer

    def forward(
        self, x_BTD: torch.Tensor, routing: Routing, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the gates, (B, T, E), or (B, 1, E) from one decision a sequence.

        Args:
            x_BTD: Input of the module.
            routing: What is known of the pass.
            rows: x's places in the whole batch, if it is a part of one.
        """
        if self.config.router_granularity == "token":
            gates_BTE = self._decide(x_BTD)
        elif routing.continues:
            gates_BTE = self._decided(len(x_BTD), routing, rows)
        else:
            gates_BTE = self._decide(routing.mean_of_prompt(x_BTD, rows))
            routing.decisions[self._name] = Decision(gates_BTE.detach(), rows)
        if self.config.router_scope == "layer":
            self.lent_gates = gates_BTE
        return gates_BTE

    def lend(self, module_name: str, x_BTD: torch.Tensor) -> torch.Tensor:
        """Return the gates of this pass to another module of the layer, whose input is x.

        Raises:
            AdapterError: The router has not run yet, or on other tokens.
        """
        gates_BTE = self.lent_gates
        per_token = self.config.router_granularity == "token"
        if gates_BTE is None or (per_token and gates_BTE.shape[:-1] != x_BTD.shape[:-1]):
            raise AdapterError(
                f"expected {self.module_name}, which holds the router of its layer, to run before "
                f"{module_name} and on the same tokens, got "
                f"{'nothing yet' if gates_BTE is None else 'gates of ' + str(tuple(gates_BTE.shape[:-1]))}: "
                'use router_scope="module" with this base'
            )
        return gates_BTE

    def __getstate__(self) -> dict[str, Any]:
        """A copied or pickled router holds nothing of the last pass."""
        return self.__dict__ | {"logits": None, "lent_gates": None}

    @property
    def _name(self) -> str:
        return f"{self.adapter_name} in {self.module_name}"

    def _decide(self, x_BTD: torch.Tensor) -> torch.Tensor:
        config = self.config
        dtype = torch.promote_types(self.weight.dtype, torch.float32)
        logits_BTE = linear(as_dtype(x_BTD, dtype), as_dtype(self.weight, dtype))
        if config.router_start == "directions":
            logits_BTE = logits_BTE.abs()
        if self.bias is not None:
            logits_BTE = logits_BTE + self.bias.to(dtype)
        if config.router_temperature != 1:
            logits_BTE = logits_BTE / config.router_temperature
        if config.keeps_logits:
            self.logits = logits_BTE if self.training else None
        if config.router_dropout and self.training:
            logits_BTE = hide_choices(logits_BTE, config.router_dropout)
        return top_k_gates(logits_BTE, config.top_k or config.num_choices)

    def _decided(self, num_rows: int, routing: Routing, rows: torch.Tensor | None) -> torch.Tensor:
        decision = routing.decisions.get(self._name)
        if decision is None or not decision.is_of(num_rows, rows):
            got = "no prompt" if decision is None else f"one of {len(decision.gates_B1E)}"
            raise AdapterError(
                f"expected to go on from a prompt of {num_rows} rows, got {got}: a sequence-level router "
                f"decides when it sees the prompt; run that with {self.adapter_name!r} too, and call "
                "select_rows when rows leave the batch"
            )
        return decision.gates_B1E


def as_dtype(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x in a dtype. A `to` that changes nothing costs 4 µs, as much as a product at decoding."""
    return x if x.dtype == dtype else x.to(dtype)


def top_k_gates(logits_BTE: torch.Tensor, k: int) -> torch.Tensor:
    """Softmax over the k largest logits of each token, 0 elsewhere; over all of them if k is their number."""
    if k == logits_BTE.shape[-1]:
        return logits_BTE.softmax(dim=-1)
    top_BTK, choice_BTK = logits_BTE.topk(k, dim=-1)
    return torch.zeros_like(logits_BTE).scatter_(-1, choice_BTK, top_BTK.softmax(dim=-1))


def hide_choices(logits_BTE: torch.Tensor, probability: float) -> torch.Tensor:
    """Hide each choice from each token with some probability, so that no token depends on one expert.

    A token from which all would be hidden keeps all.
    """
    hidden_BTE = torch.rand_like(logits_BTE) < probability
    hidden_BTE = hidden_BTE & ~hidden_BTE.all(dim=-1, keepdim=True)
    return logits_BTE.masked_fill(hidden_BTE, -torch.inf)


@torch.no_grad()
def leading_direction(A_rD: torch.Tensor, B_Or: torch.Tensor) -> torch.Tensor:
    """Return the right singular vector of B A with the largest singular value, (D,), of length 1, float64.

    Through a QR of each factor, so that nothing of size O x D is formed. B = 0 gives 0.
    """
    rows_Dr, small_rr = torch.linalg.qr(A_rD.double().T)
    core_rr = torch.linalg.qr(B_Or.double()).R @ small_rr.T
    _, sizes_r, directions_rr = torch.linalg.svd(core_rr, full_matrices=False)
    direction_D: torch.Tensor = rows_Dr @ directions_rr[0] * (sizes_r[0] > 0)
    return direction_D
