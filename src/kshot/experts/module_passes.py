"""Adapters read module by module: as many modules at a time as fit into a fixed memory."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from kshot.errors import AdapterError
from kshot.mixture import LoraExpert, LoraFactors

HELD_BYTES = 2 << 30  # of factors at once, as stored: 1,000 adapters of 2 MB take one pass over the bank

Members = dict[int, LoraFactors]


class LoadableAdapter(Protocol):
    """What a comparison needs of an adapter; `kshot.bank.Adapter` is one."""

    @property
    def name(self) -> str:
        """Its name in the bank."""

    def load(self) -> LoraExpert:
        """Read the factors."""


@dataclass(frozen=True, slots=True, eq=False)
class ModulePass:
    """What one reading of the bank kept.

    Attributes:
        modules: Factors by module, then by the adapter's place; each module is whole.
        num_left: Modules left to later passes.
    """

    modules: dict[str, Members]
    num_left: int


def passes_by_module(
    adapters: Sequence[LoadableAdapter], *, held_bytes: int = HELD_BYTES
) -> Iterator[ModulePass]:
    """Read the bank as often as it takes to have had each module of all adapters at once.

    During a pass the modules last in name are put off to the next one whenever those held outgrow
    `held_bytes`; one module is always held.

    Args:
        adapters: Each may be loaded several times.
        held_bytes: Memory for factors, in the type stored.

    Raises:
        AdapterError: An adapter cannot be read, or a module has other inputs or outputs in another adapter.
    """
    done: set[str] = set()
    while True:
        held, put_off = _read_pass(adapters, done, held_bytes)
        yield ModulePass(held, len(put_off))
        done |= held.keys()
        if not put_off:
            return


def _read_pass(
    adapters: Sequence[LoadableAdapter], done: set[str], held_bytes: int
) -> tuple[dict[str, Members], set[str]]:
    held: dict[str, Members] = {}
    put_off: set[str] = set()
    size = 0
    for place, adapter in enumerate(adapters):
        for module, factors in adapter.load().factors.items():
            if module in done or module in put_off:
                continue
            held.setdefault(module, {})[place] = _copied(factors)
            size += _bytes(factors)
            while size > held_bytes and len(held) > 1:
                last = max(held)
                put_off.add(last)
                size -= sum(_bytes(one) for one in held.pop(last).values())
    for module, members in held.items():
        _check_equal_shapes([adapter.name for adapter in adapters], module, members)
    return held, put_off


def _copied(factors: LoraFactors) -> LoraFactors:
    """Copy out of the file's own memory, which a view would keep whole."""
    return LoraFactors(factors.A_rI.detach().clone(), factors.B_Or.detach().clone(), factors.scaling)


def _bytes(factors: LoraFactors) -> int:
    return factors.A_rI.nbytes + factors.B_Or.nbytes


def _check_equal_shapes(names: Sequence[str], module: str, members: Members) -> None:
    """Check that all adapt a linear layer of one size."""
    shapes = {place: (one.B_Or.shape[0], one.A_rI.shape[1]) for place, one in members.items()}
    first, want = next(iter(shapes.items()))
    for place, got in shapes.items():
        if got != want:
            raise AdapterError(
                f"{module}: expected equal shapes (outputs, inputs), got {want} in {names[first]!r} and "
                f"{got} in {names[place]!r}: they were trained on different base models, and only adapters "
                "of one base can be compared; keep those of one base"
            )
