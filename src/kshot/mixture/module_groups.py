"""Which rank and scaling every expert has in which modules, as the settings of a mixture hold it."""

from collections.abc import Sequence
from typing import TypedDict

from kshot.errors import ConfigError
from kshot.mixture.number_checks import are_finite, is_whole


class ModuleGroup(TypedDict):
    """Modules in which every expert has the same rank and scaling, kept together to keep the file short.

    A rank of 0 says that the expert has nothing there; its scaling is then not used.
    """

    modules: list[str]
    ranks: list[int]
    scalings: list[float]


def check_groups(groups: Sequence[ModuleGroup], num_experts: int) -> None:
    """Check groups as they were read.

    Raises:
        ConfigError: A group lacks something, has not one rank and scaling an expert, or shares a module.
    """
    for group in groups:
        _check_group(group, num_experts)
    modules = [module for group in groups for module in group["modules"]]
    if len(set(modules)) != len(modules):
        twice = next(module for module in modules if modules.count(module) > 1)
        raise ConfigError(f"a module must be in one of module_groups, got {twice} in two: merge the groups")


def _check_group(group: ModuleGroup, num_experts: int) -> None:
    if set(group) != {"modules", "ranks", "scalings"}:
        raise ConfigError(
            f"each of module_groups must hold modules, ranks and scalings, got {sorted(group)}: "
            "save the mixture again"
        )
    ranks, scalings = group["ranks"], group["scalings"]
    whole = len(ranks) == len(scalings) == num_experts and all(is_whole(r) and r >= 0 for r in ranks)
    if not whole or not any(ranks) or not are_finite(scalings):
        raise ConfigError(
            f"each of module_groups must hold {num_experts} ranks >= 0, not all 0, and as many scalings, "
            f"got {ranks} and {scalings}: one of each an expert"
        )
