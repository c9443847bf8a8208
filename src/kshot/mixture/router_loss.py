"""The optional losses of a router: against sending all tokens to the same experts, and against large logits.

Shapes: B batch   T tokens   E choices of the router   M tokens that are not padding
"""

import torch
from torch import nn

from kshot.errors import ConfigError
from kshot.mixture.config import MixtureConfig
from kshot.mixture.router import Router


def router_loss(model: nn.Module, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the last training pass's router losses times their coefficients, ready to be added to a loss.

    The mean over routers of `load_balancing * load_balancing_loss + z_loss * z_loss`. What the pass kept is
    let go.

    Args:
        model: Holds a mixture whose `load_balancing` or `z_loss` is above 0, in training mode, after a
            forward pass.
        attention_mask: (B, T), 0 at padding, which is not counted; None if there is none.

    Returns:
        A scalar, float32 (float64 in a float64 model).

    Raises:
        ConfigError: No router kept its logits, the mask has another shape, or no gradient can flow.
    """
    losses = []
    for router in model.modules():
        if isinstance(router, Router) and router.logits is not None:
            _check_gradient(router.weight, router.logits)
            per_token = router.config.router_granularity == "token"
            logits_ME = _without_padding(router.logits, attention_mask if per_token else None)
            losses.append(_loss(logits_ME, router.config))
            router.logits = None
    if not losses:
        raise ConfigError(
            "router_loss expected a training pass of a mixture with load_balancing or z_loss > 0, got none: "
            "set one of them, call model.train() and run the model first"
        )
    return torch.stack(losses).mean()


def _loss(logits_ME: torch.Tensor, config: MixtureConfig) -> torch.Tensor:
    loss = logits_ME.new_zeros(())
    if config.load_balancing:
        top_k = config.top_k or config.num_choices
        loss = loss + config.load_balancing * load_balancing_loss(logits_ME, top_k)
    if config.z_loss:
        loss = loss + config.z_loss * z_loss(logits_ME)
    return loss


def load_balancing_loss(logits_ME: torch.Tensor, top_k: int) -> torch.Tensor:
    """E times the sum over choices of (share of the top-k places) x (mean probability); 1 when balanced.

    Reference: Fedus et al., Switch Transformers, arXiv 2101.03961v3, eq. 4, there for the top 1.
    """
    chosen_MK = logits_ME.topk(top_k, dim=-1).indices
    share_E = torch.zeros_like(logits_ME).scatter(-1, chosen_MK, 1.0).mean(dim=0) / top_k
    probability_E = logits_ME.softmax(dim=-1).mean(dim=0)
    return logits_ME.shape[-1] * (share_E * probability_E).sum()


def z_loss(logits_ME: torch.Tensor) -> torch.Tensor:
    """Mean over tokens of the squared log-sum-exp of the logits.

    Reference: Zoph et al., ST-MoE, arXiv 2202.08906v2, eq. 5.
    """
    return logits_ME.logsumexp(dim=-1).square().mean()


def _without_padding(logits_BTE: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    logits_ME = logits_BTE.flatten(end_dim=-2)
    if attention_mask is None:
        return logits_ME
    if attention_mask.numel() != len(logits_ME):
        raise ConfigError(
            f"attention_mask must have one entry a token the layer saw, {len(logits_ME)}, got "
            f"{tuple(attention_mask.shape)}: pass the mask of the same batch"
        )
    return logits_ME[attention_mask.flatten().to(logits_ME.device).bool()]


def _check_gradient(weight: nn.Parameter, logits_BTE: torch.Tensor) -> None:
    if torch.is_grad_enabled() and weight.requires_grad and not logits_BTE.requires_grad:
        raise ConfigError(
            "router_loss expected routing with a gradient, got routing computed without one: "
            'with gradient checkpointing pass gradient_checkpointing_kwargs={"use_reentrant": False}'
        )
