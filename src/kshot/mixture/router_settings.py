"""The settings of a router: their kinds and defaults, and what they must be to have an effect."""

from typing import TYPE_CHECKING, Any, Literal, get_args

from kshot.errors import ConfigError
from kshot.mixture.number_checks import are_finite, is_whole

if TYPE_CHECKING:
    from kshot.mixture.config import MixtureConfig

DEFAULT_TOP_K = 2  # of 4 experts, the paper's setting
DEFAULT_INIT_STD = 0.02  # that of transformers' linear layers: gates start close to equal
Scope = Literal["module", "layer"]
Granularity = Literal["token", "sequence"]
Start = Literal["random", "directions"]
_ROUTER_SETTINGS = (
    "top_k", "router_scope", "router_granularity", "router_start", "router_prior", "router_temperature",
    "router_init_std", "router_dropout", "null_expert", "load_balancing", "z_loss",
)  # fmt: skip


def check_fixed_gates(config: "MixtureConfig") -> None:
    """Check `fixed_gates`, beside which no setting of a router may be made.

    Raises:
        ConfigError: They are not N finite numbers, or a setting has no effect.
    """
    gates = config.fixed_gates
    if gates is None or len(gates) != config.num_experts or not are_finite(gates):
        raise ConfigError(
            f"fixed_gates must be {config.num_experts} finite numbers, one an expert, got {gates}"
        )
    defaults = type(config).__dataclass_fields__
    for name in _ROUTER_SETTINGS:
        value = getattr(config, name)
        if value != defaults[name].default:
            raise ConfigError(
                f"{name}={value} has no effect with fixed_gates, which replace the router: drop one"
            )


def check_router(config: "MixtureConfig") -> None:
    """Check the settings of a router.

    Raises:
        ConfigError: One is out of its range, or would have no effect.
    """
    if not isinstance(config.null_expert, bool):
        raise ConfigError(f"null_expert must be true or false, got {config.null_expert!r}")
    top_k, choices = config.top_k, config.num_choices
    if not is_whole(top_k) or not 1 <= top_k <= choices:
        raise ConfigError(f"top_k must be in [1, {choices}], got {top_k}: lower top_k or add experts")
    _check_kind(config)
    _check_start(config, dense=top_k == choices)
    if not (are_finite([config.router_temperature]) and config.router_temperature > 0):
        raise ConfigError(
            f"router_temperature must be > 0, got {config.router_temperature}: 1 leaves logits as they are"
        )
    if top_k == 1 and config.router_temperature != 1:
        raise ConfigError(
            f"router_temperature={config.router_temperature} has no effect with top_k=1, "
            "whose gate is always 1: raise top_k or drop it"
        )
    if not (are_finite([config.router_dropout]) and 0 <= config.router_dropout < 1):
        raise ConfigError(f"router_dropout must be in [0, 1), got {config.router_dropout}: 0 is off")
    for name in ("load_balancing", "z_loss"):
        value = getattr(config, name)
        if not (are_finite([value]) and value >= 0):
            raise ConfigError(f"{name} must be >= 0, got {value}: 0 is off")
    if config.load_balancing > 0 and top_k == choices:
        raise ConfigError(
            f"load_balancing={config.load_balancing} has no effect with top_k={top_k} of {choices}: "
            "every expert is always on; lower top_k or drop it"
        )


def _check_kind(config: "MixtureConfig") -> None:
    kinds: dict[str, Any] = {
        "router_scope": Scope, "router_granularity": Granularity, "router_start": Start,
    }  # fmt: skip
    for name, allowed in kinds.items():
        if getattr(config, name) not in get_args(allowed):
            raise ConfigError(
                f"{name} must be one of {', '.join(get_args(allowed))}, got {getattr(config, name)!r}"
            )


def _check_start(config: "MixtureConfig", *, dense: bool) -> None:
    std, prior = config.router_init_std, config.router_prior
    if not (are_finite([std]) and std >= 0):
        raise ConfigError(f"router_init_std must be >= 0, got {std}: 0.02 is a good start")
    if config.router_start == "directions" and std != DEFAULT_INIT_STD:
        raise ConfigError(
            f'router_init_std={std} has no effect with router_start="directions", which draws nothing: '
            "drop one"
        )
    if std == 0 and not dense and prior is None:
        raise ConfigError(
            f"router_init_std must be > 0 with top_k={config.top_k} of {config.num_choices}, got 0: "
            "all tokens would choose the same experts"
        )
    if prior is not None and (len(prior) != config.num_choices or not are_finite(prior)):
        raise ConfigError(
            f"router_prior must be {config.num_choices} finite numbers, one a choice, got {prior}"
        )
