"""Order a huge bank by the first-order change of the loss on the shots, so that the best few can be scored.

One backward pass of the base gives the gradient; then every adapter is read once, and costs one small matrix
product a module. What is known of a block of adapters is kept, so that a killed pass goes on where it stood.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from kshot.bank import Adapter, Bank
from kshot.errors import AdapterError, ConfigError, KshotError
from kshot.examples import Example
from kshot.experts.asked_shots import AskedShot, ask_shots
from kshot.experts.first_order import check_gradients, first_order_changes
from kshot.experts.loss_gradients import LossGradients, loss_gradients
from kshot.experts.score_store import ScoreStore, key_of
from kshot.experts.shot_runner import model_key
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert
from kshot.mixture.expert import linear_shape
from kshot.progress import Advance

VERSION = 1  # of what is stored: raise it when the same inputs give other values
RANKS_AT_ONCE = 512  # of a block: 64 adapters of rank 8; more ranks make a matrix product no faster


class Loadable(Protocol):
    """What can be asked for its factors; `kshot.bank.Adapter` is one."""

    @property
    def name(self) -> str:
        """Unique among all."""

    def load(self) -> LoraExpert:
        """Read the factors.

        Raises:
            KshotError: They cannot be used.
        """


@dataclass(frozen=True, slots=True)
class Screening:
    """A bank in order.

    Attributes:
        changes: First-order change of the loss on the shots, in nats, by adapter; the least, which is best,
            comes first.
        failures: For each other adapter why it has none.
    """

    changes: Mapping[str, float]
    failures: Mapping[str, str]

    @property
    def order(self) -> tuple[str, ...]:
        """Names, best first."""
        return tuple(self.changes)


def screen_experts(
    lm: LanguageModel,
    bank: Bank,
    shots: Sequence[Example],
    *,
    scorer: str = "exact_match",
    listed: bool = False,
    store: ScoreStore | None = None,
    progress: Advance | None = None,
) -> Screening:
    """Order all adapters of a bank without running one of them.

    An adapter that is damaged, of another base, or whose change is not a number is a failure of its own and
    stops no other. Memory: the gradient, as much as the weights of the adapted modules in float32, and two
    blocks of adapters, whatever the size of the bank.

    Args:
        lm: The base model.
        bank: Adapters.
        shots: The K examples; rationales, where there are some, are part of the target.
        scorer: As in `kshot.evaluate`: it decides how a shot is written.
        listed: As in `kshot.evaluate`.
        store: Keeps the changes of every block; what an earlier call left there is not computed again.
        progress: Called with the number of adapters just finished.

    Raises:
        ConfigError: The bank is empty, or the loss of the base on the shots is not finite.
        ExampleError: There are no shots, or one lacks what the scorer needs or does not fit the context.
        AdapterError: No adapter can be ordered.
    """
    if not len(bank):
        raise ConfigError(
            "expected at least one adapter to screen, got an empty bank: 'kshot bank add' adds some"
        )
    asked = ask_shots(lm, shots, scorer, listed=listed)
    store = ScoreStore() if store is None else store
    advance = progress or (lambda adapters: None)
    keys = _keys(lm, asked, bank)
    unknown = [
        block for block in _blocks(bank) if not all(keys.get(adapter.name, "") in store for adapter in block)
    ]
    advance(len(bank) - sum(map(len, unknown)))
    failures: dict[str, str] = {}
    if unknown:
        lm.model.eval()
        rows = [one.reasoning for one in asked]
        gradients = loss_gradients(lm, rows, _adapted_modules(lm.model, bank))
        for found in stream_changes(gradients, unknown):
            store.put({keys[name]: change for name, change in found.changes.items()})
            failures |= found.failures
            advance(len(found.changes) + len(found.failures))
    changes = {name: store[keys[name]] for name in bank.names if name not in failures}
    return _in_order(changes, failures)


def stream_changes(gradients: LossGradients, blocks: Iterable[Sequence[Loadable]]) -> Iterator[Screening]:
    """Yield the changes of one block of adapters after another; the next is read meanwhile, in a thread."""
    for experts, failures in _read_ahead(blocks):
        sound = []
        for expert in experts:
            try:
                check_gradients(gradients, expert)
            except AdapterError as error:
                failures[expert.name] = str(error)
            else:
                sound.append(expert)
        changes = first_order_changes(gradients, sound)
        overflown = [name for name, change in changes.items() if not math.isfinite(change)]
        failures |= {
            name: f"{name!r}: expected a finite first-order change of the loss, got {changes.pop(name)}: its "
            "weights overflow in float32; train it again or leave it out"
            for name in overflown
        }
        yield Screening(changes, failures)


def _keys(lm: LanguageModel, asked: Sequence[AskedShot], bank: Bank) -> dict[str, str]:
    """Return what the change of each adapter is stored under."""
    rows = [[one.reasoning.input_ids, one.reasoning.prompt_length] for one in asked]
    base = key_of(VERSION, "first order", model_key(lm), rows)
    keys = {}
    for adapter in bank:
        with suppress(AdapterError):  # its settings cannot be read, which loading will say
            keys[adapter.name] = key_of(base, adapter.digest)
    return keys


def _blocks(bank: Bank) -> Iterator[list[Adapter]]:
    """Cut a bank, in its order, into blocks that are the same after a kill."""
    block: list[Adapter] = []
    ranks = 0
    for adapter in bank:
        if block and ranks + adapter.entry.r > RANKS_AT_ONCE:
            yield block
            block, ranks = [], 0
        block.append(adapter)
        ranks += adapter.entry.r
    if block:
        yield block


def _adapted_modules(model: nn.Module, bank: Bank) -> list[str]:
    targets = {target for adapter in bank for target in adapter.entry.target_modules}
    modules = [
        name
        for name, module in model.named_modules()
        if name.rpartition(".")[2] in targets and linear_shape(module) is not None
    ]
    if not modules:
        raise AdapterError(
            f"expected adapters of linear modules of the base, got adapters of {', '.join(sorted(targets))}: "
            "choose adapters of this base model"
        )
    return modules


_Read = tuple[list[LoraExpert], dict[str, str]]


def _read_ahead(blocks: Iterable[Sequence[Loadable]]) -> Iterator[_Read]:
    with ThreadPoolExecutor(max_workers=1) as reader:
        coming: Future[_Read] | None = None
        for block in blocks:
            following = reader.submit(_read, block)
            if coming is not None:
                yield coming.result()
            coming = following
        if coming is not None:
            yield coming.result()


def _read(block: Sequence[Loadable]) -> _Read:
    experts, failures = [], {}
    for adapter in block:
        try:
            experts.append(adapter.load())
        except KshotError as error:
            failures[adapter.name] = str(error)
    return experts, failures


def _in_order(changes: Mapping[str, float], failures: Mapping[str, str]) -> Screening:
    if not changes:
        name, reason = next(iter(failures.items()))
        raise AdapterError(
            f"expected at least one adapter that can be screened, got {len(failures)} that cannot; "
            f"{name}: {reason}"
        )
    ordered = dict(sorted(changes.items(), key=lambda item: (item[1], item[0])))
    return Screening(ordered, dict(sorted(failures.items())))
