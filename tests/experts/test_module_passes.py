"""Reading by module: nothing is lost, memory is bounded, and the bank is read once where it fits."""

from dataclasses import dataclass, field

import pytest
import torch

from kshot.errors import AdapterError
from kshot.experts.module_passes import passes_by_module
from kshot.mixture import LoraExpert, LoraFactors

NUMBERS = 4 * (3 + 5)  # of a module of rank 4 with 3 inputs and 5 outputs


@dataclass
class Counted:
    """An adapter that counts how often it is read."""

    name: str
    modules: str
    reads: int = field(default=0)

    def load(self) -> LoraExpert:
        self.reads += 1
        factors = {
            one: LoraFactors(torch.full((4, 3), ord(one) / 1), torch.ones(5, 4), 1.0) for one in self.modules
        }
        return LoraExpert(self.name, None, factors)


@pytest.mark.parametrize(
    ("modules_held", "passes"),
    [(8, [["a", "b", "c", "d"]]), (7, [["a", "b", "c"], ["d"]]), (4, [["a"], ["b", "c"], ["d"]]), (0, 4)],
)
def test_every_module_comes_once_and_whole(modules_held: int, passes: list[list[str]] | int) -> None:
    bank = [Counted("x", "abc"), Counted("y", "bd"), Counted("z", "abd")]
    found = list(passes_by_module(bank, held_bytes=4 * NUMBERS * modules_held))
    if isinstance(passes, list):
        assert [list(one.modules) for one in found] == passes
    assert len(found) == (passes if isinstance(passes, int) else len(passes))
    assert [one.reads for one in bank] == [len(found)] * 3
    assert [one.num_left for one in found] == [
        4 - sum(len(p.modules) for p in found[: i + 1]) for i in range(len(found))
    ]
    members = {module: list(places) for one in found for module, places in one.modules.items()}
    assert members == {"a": [0, 2], "b": [0, 1, 2], "c": [0], "d": [1, 2]}
    assert all(
        (factors.A_rI == ord(module)).all()
        for one in found
        for module, places in one.modules.items()
        for factors in places.values()
    )


def test_what_is_held_is_a_copy() -> None:
    tensors = torch.ones(4, 3), torch.ones(5, 4)

    class Shared(Counted):
        def load(self) -> LoraExpert:
            return LoraExpert("s", None, {"a": LoraFactors(*tensors, 1.0)})

    (one,) = passes_by_module([Shared("s", "a")])
    tensors[0].zero_()
    assert one.modules["a"][0].A_rI.all()


def test_refuses_another_bases_shapes() -> None:
    class Wider(Counted):
        def load(self) -> LoraExpert:
            return LoraExpert("w", None, {"a": LoraFactors(torch.ones(4, 9), torch.ones(5, 4), 1.0)})

    with pytest.raises(
        AdapterError,
        match=r"a: expected equal shapes \(outputs, inputs\), got \(5, 3\) in 'x' and \(5, 9\) in 'w': they",
    ):
        list(passes_by_module([Counted("x", "a"), Wider("w", "a")]))
