"""Order a huge bank by what its adapters would do to the loss on the shots, without running one of them.

A few backward passes of the base give slope and curvature of the loss; then every adapter is read once, and
costs a small matrix product a module and pass. They are taken half way to the mean of the bank, since to
second order `L(W + Δ) - L(W)` is `<G(W + ½ Δ), Δ>`, and what the adapters of a bank have in common, such as a
format of answers, is known for all. What is known of a block of adapters is kept, so that a killed pass goes
on where it stood.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import astuple, dataclass

from torch import nn

from kshot.bank import Adapter, Bank
from kshot.errors import AdapterError, ConfigError
from kshot.examples import Example
from kshot.experts.asked_shots import AskedShot, ask_shots
from kshot.experts.displaced import displaced, mean_change, usual_size
from kshot.experts.loss_expansion import Expansion, check_gradients, expand_loss, foretell_changes
from kshot.experts.loss_gradients import LossGradients, loss_gradients
from kshot.experts.reading_ahead import Loadable, read_ahead, read_block
from kshot.experts.score_store import ScoreStore, key_of
from kshot.experts.shot_runner import model_key
from kshot.language_model import LanguageModel
from kshot.mixture import check_fits
from kshot.mixture.expert import linear_shape
from kshot.progress import Advance

VERSION = 1  # of what is stored: raise it when the same inputs give other values
RANKS_AT_ONCE = 512  # of a block: 64 adapters of rank 8; more ranks make a matrix product no faster
NUM_DRAWS = 8  # each costs as much as the gradient itself; see docs/log.md
HALF_WAY = 0.5  # to the mean of the bank


@dataclass(frozen=True, slots=True)
class Screening:
    """A bank in order.

    Attributes:
        changes: Foretold change of the loss on the shots, in nats, by adapter; the least, which is best,
            comes first.
        expansions: What it is made of, likewise.
        failures: For each other adapter why it has none.
    """

    changes: Mapping[str, float]
    expansions: Mapping[str, Expansion]
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
    num_draws: int = NUM_DRAWS,
    store: ScoreStore | None = None,
    progress: Advance | None = None,
) -> Screening:
    """Order all adapters of a bank without running one of them.

    An adapter that is damaged, of another base, or whose change is not a number is a failure of its own and
    stops no other. Memory: `1 + num_draws` times the weights of the adapted modules in float32, and two
    blocks of adapters, whatever the size of the bank.

    Args:
        lm: The base model.
        bank: Adapters.
        shots: The K examples; rationales, where there are some, are part of the target.
        scorer: As in `kshot.evaluate`: it decides how a shot is written.
        listed: As in `kshot.evaluate`.
        num_draws: Of the curvature; 0: by the slope alone, which says little of adapters of usual size.
        store: Keeps the expansions of every block; what an earlier call left there is not computed again.
        progress: Called with the number of adapters just finished.

    Raises:
        ConfigError: The bank is empty, `num_draws` is below 0, or the loss on the shots is not finite.
        ExampleError: There are no shots, or one lacks what the scorer needs or does not fit the context.
        AdapterError: No adapter can be ordered.
    """
    if not len(bank):
        raise ConfigError(
            "expected at least one adapter to screen, got an empty bank: 'kshot bank add' adds some"
        )
    if num_draws < 0:
        raise ConfigError(f"num_draws must be at least 0, got {num_draws}: raise it")
    asked = ask_shots(lm, shots, scorer, listed=listed)
    store = ScoreStore() if store is None else store
    advance = progress or (lambda adapters: None)
    spread = _spread(bank)
    keys = _keys(lm, asked, bank, spread, num_draws)
    unknown = [
        block for block in _blocks(bank) if not all(keys.get(adapter.name, "") in store for adapter in block)
    ]
    advance(len(bank) - sum(map(len, unknown)))
    failures: dict[str, str] = {}
    if unknown:
        gradients = _gradients_half_way(lm, asked, bank, spread, num_draws)
        for expansions, faults in stream_expansions(gradients, unknown):
            store.put({keys[name]: list(astuple(one)) for name, one in expansions.items()})
            failures |= faults
            advance(len(expansions) + len(faults))
    return _in_order(
        {name: Expansion(*store[keys[name]]) for name in bank.names if name not in failures}, failures
    )


def stream_expansions(
    gradients: LossGradients, blocks: Iterable[Sequence[Loadable]]
) -> Iterator[tuple[dict[str, Expansion], dict[str, str]]]:
    """Yield expansions and failures, a block of adapters after another; the next is read in a thread."""
    for experts, failures in read_ahead(blocks):
        sound = []
        for expert in experts:
            try:
                check_gradients(gradients, expert)
            except AdapterError as error:
                failures[expert.name] = str(error)
            else:
                sound.append(expert)
        expansions = expand_loss(gradients, sound)
        overflown = [name for name, one in expansions.items() if not all(map(math.isfinite, astuple(one)))]
        failures |= {
            name: f"{name!r}: expected a finite change of the loss, got {expansions.pop(name).slope}: its "
            "weights overflow in float32; train it again or leave it out"
            for name in overflown
        }
        yield expansions, failures


def _spread(bank: Bank) -> list[Adapter]:
    """Return adapters whose mean stands for the bank's: evenly spaced, of no more ranks than a block."""
    adapters = list(bank)
    count = max(1, RANKS_AT_ONCE // max(adapter.entry.r for adapter in adapters))
    return adapters[:: -(-len(adapters) // count)]


def _gradients_half_way(
    lm: LanguageModel, asked: Sequence[AskedShot], bank: Bank, spread: Sequence[Adapter], num_draws: int
) -> LossGradients:
    modules = _adapted_modules(lm.model, bank)
    lm.model.eval()
    experts = []
    for expert in read_block(spread)[0]:
        with suppress(AdapterError):  # which its own block will say
            check_fits(expert, lm.model)
            experts.append(expert)
    experts = usual_size(experts)
    moved = displaced(lm.model, mean_change(experts, HALF_WAY)) if experts else nullcontext()
    with moved:
        return loss_gradients(lm, [one.reasoning for one in asked], modules, num_draws=num_draws)


def _keys(
    lm: LanguageModel, asked: Sequence[AskedShot], bank: Bank, spread: Sequence[Adapter], num_draws: int
) -> dict[str, str]:
    """Return what the expansion of each adapter is stored under."""
    digests = {}
    for adapter in bank:
        with suppress(AdapterError):  # its settings cannot be read, which loading will say
            digests[adapter.name] = adapter.digest
    rows = [[one.reasoning.input_ids, one.reasoning.prompt_length] for one in asked]
    centre = [digests.get(adapter.name) for adapter in spread]
    base = key_of(VERSION, "expansion", model_key(lm), rows, centre, num_draws)
    return {name: key_of(base, digest) for name, digest in digests.items()}


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


def _in_order(expansions: Mapping[str, Expansion], failures: Mapping[str, str]) -> Screening:
    if not expansions:
        name, reason = next(iter(failures.items()))
        raise AdapterError(
            f"expected at least one adapter that can be screened, got {len(failures)} that cannot; "
            f"{name}: {reason}"
        )
    changes = dict(sorted(foretell_changes(expansions).items(), key=lambda item: (item[1], item[0])))
    return Screening(changes, {name: expansions[name] for name in changes}, dict(sorted(failures.items())))
