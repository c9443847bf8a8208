"""What each expert brings to a mixture: a report on loading, in which nothing is left out.

r rank   I inputs of a module   O outputs
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from kshot.errors import ConfigError
from kshot.mixture.expert import LoraExpert, LoraFactors

_HEADER = ("expert", "modules", "r", "scaling", "dtype", "mean norm", "error")


@dataclass(frozen=True, slots=True)
class Contribution:
    """What an expert adds to one module.

    Attributes:
        expert: Its name.
        module: The module's name in the base model.
        r: Rank.
        scaling: s of `s B A x`.
        dtype: Of the factors as stored, such as `bfloat16`.
        norm: `||s B A||`, Frobenius.
        conversion_error: `||dW - s B A|| / ||dW||`; None if the adapter was a plain LoRA.
    """

    expert: str
    module: str
    r: int
    scaling: float
    dtype: str
    norm: float
    conversion_error: float | None = None


def expert_contributions(experts: Sequence[LoraExpert]) -> list[Contribution]:
    """Return what every expert adds to every module it has, in the order of experts and modules."""
    return [
        Contribution(
            expert=expert.name,
            module=module,
            r=factors.r,
            scaling=factors.scaling,
            dtype=_dtype(factors),
            norm=_norm(factors),
            conversion_error=expert.conversion_errors.get(module),
        )
        for expert in experts
        for module, factors in expert.factors.items()
    ]


def missing_modules(experts: Sequence[LoraExpert]) -> dict[str, list[str]]:
    """Return, for every expert by name, the modules that some other expert has and it has not.

    Where an expert lacks a module, choosing it there adds nothing.

    Raises:
        ConfigError: Two experts have the same name.
    """
    twice = [name for name, count in Counter(expert.name for expert in experts).items() if count > 1]
    if twice:
        raise ConfigError(f"experts must have different names, got {twice[0]!r} twice: rename one")
    union = sorted({module for expert in experts for module in expert.factors})
    return {expert.name: [m for m in union if m not in expert.factors] for expert in experts}


def contribution_table(experts: Sequence[LoraExpert]) -> str:
    """Return a table in plain text: a line for each expert and kind of module, counted over the layers.

    Layers' numbers are left out of a kind (`self_attn.q_proj x30`); where its modules differ, both ends are
    given (`4-8`). What an expert lacks and others have has a line too. The last column is there if an expert
    was converted, and holds the largest error.

    Raises:
        ConfigError: Two experts have the same name.
    """
    missing = missing_modules(experts)
    kinds = _kinds({module for expert in experts for module in expert.factors})
    rows = []
    for expert in experts:
        by_kind: dict[str, list[Contribution]] = {}
        for one in expert_contributions([expert]):
            by_kind.setdefault(kinds[one.module], []).append(one)
        rows += [_row(expert.name, kind, group) for kind, group in by_kind.items()]
        lacking = Counter(kinds[module] for module in missing[expert.name])
        rows += [(expert.name, f"{kind} x{count}", "none", "", "", "", "") for kind, count in lacking.items()]
    converted = any(expert.conversion_errors for expert in experts)
    columns = len(_HEADER) if converted else len(_HEADER) - 1
    return _aligned([row[:columns] for row in (_HEADER, *rows)])


def _norm(factors: LoraFactors) -> float:
    """Through the r x r Gram matrices: `||B A||^2` is the sum of `(B^T B) * (A A^T)`."""
    A_rI, B_Or = factors.A_rI.double(), factors.B_Or.double()
    square = ((B_Or.T @ B_Or) * (A_rI @ A_rI.T)).sum().clamp(min=0)
    return abs(factors.scaling) * square.sqrt().item()


def _dtype(factors: LoraFactors) -> str:
    names = [str(tensor.dtype).removeprefix("torch.") for tensor in (factors.A_rI, factors.B_Or)]
    return "/".join(dict.fromkeys(names))


def _kinds(modules: Iterable[str]) -> dict[str, str]:
    """Map modules to names without layer numbers, and without what comes before these if all share it."""
    starred = {
        module: ".".join("*" if part.isdigit() else part for part in module.split(".")) for module in modules
    }
    stems = {kind.partition(".*.")[0] for kind in starred.values() if ".*." in kind}
    if len(stems) > 1:  # an encoder and a decoder
        return starred
    return {module: kind.partition(".*.")[2] or kind for module, kind in starred.items()}


def _row(expert: str, kind: str, group: Sequence[Contribution]) -> tuple[str, ...]:
    errors = [one.conversion_error for one in group if one.conversion_error is not None]
    return (
        expert,
        f"{kind} x{len(group)}",
        _ends([one.r for one in group]),
        _ends([one.scaling for one in group]),
        "/".join(sorted({one.dtype for one in group})),
        f"{fmean(one.norm for one in group):.3g}",
        f"{max(errors):.2g}" if errors else "",
    )


def _ends(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low}-{high}"


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
