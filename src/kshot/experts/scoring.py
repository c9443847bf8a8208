"""Score every adapter on the shots: accuracy, and how well it predicts the reasoning to the answer."""

from collections.abc import Callable, Iterator, Sequence

from torch import nn

from kshot.bank import Adapter, Bank
from kshot.engine import Engine
from kshot.errors import ConfigError, KshotError
from kshot.examples import Example
from kshot.experts.asked_shots import ask_shots
from kshot.experts.batch_plan import default_memory_mb
from kshot.experts.expert_score import ExpertScore, Scores
from kshot.experts.outcomes import Outcomes
from kshot.experts.score_store import ScoreStore
from kshot.experts.shot_passes import ScoringSettings
from kshot.experts.shot_runner import ShotRunner
from kshot.experts.spread_scoring import run_groups
from kshot.language_model import LanguageModel
from kshot.mixture import check_fits
from kshot.progress import Advance

# In memory, 32 MB each at rank 16 on q and v of a 7B model, and what a lost worker costs. A batch of 16 shots
# is full with 4; with 8 its shots are closer in length; 16 would spare 0 to 4 % of padded target tokens.
ADAPTERS_AT_ONCE = 8


def score_experts(
    lm: LanguageModel,
    bank: Bank,
    shots: Sequence[Example],
    *,
    scorer: str = "exact_match",
    listed: bool = False,
    max_new_tokens: int = 128,
    adapters_at_once: int = ADAPTERS_AT_ONCE,
    memory_mb: int | None = None,
    store: ScoreStore | None = None,
    engine: Engine | None = None,
    on_score: Callable[[ExpertScore], None] | None = None,
    progress: Advance | None = None,
) -> Scores:
    """Score every adapter of a bank; the base model is loaded once, and adapters share its batches.

    An adapter that is damaged, of another base, or whose likelihoods are not numbers is a failure of its own
    and stops no other.

    Args:
        lm: The base model.
        bank: Adapters that fit it.
        shots: The K examples.
        scorer: As in `kshot.evaluate`.
        listed: As in `kshot.evaluate`.
        max_new_tokens: Longest generated answer.
        adapters_at_once: Adapters in memory, and at most in one batch.
        memory_mb: What a batch may take, about; None: a quarter of the base model, and no less than 1,024.
        store: Keeps results of every batch; what an earlier call left there is not computed again.
        engine: Whose workers run the adapters, `adapters_at_once` to a shard; None: all is done here. Batches
            are the same, and so are the results, as far as the machines compute alike.
        on_score: Called with each score as soon as it is known.
        progress: Called with the number of (adapter, shot) pairs just finished.

    Returns:
        One score for each adapter, in the order of the bank, and a reason for each that has none.

    Raises:
        ConfigError: The bank is empty, or a setting is out of range.
        ExampleError: There are no shots, or one lacks what the scorer needs or does not fit the context.
        AdapterError: No adapter can be scored, or `lm` has adapters already.
        EngineError: Workers cannot be had, or are lost again and again.

    Reference: arXiv 2408.15915v2, section 3.2, in the length-normalised form that its printed numbers fit.
    """
    memory_mb = default_memory_mb(lm.model) if memory_mb is None else memory_mb
    _check_settings(bank, adapters_at_once, memory_mb)
    lm.model.eval()
    asked = ask_shots(lm, shots, scorer, listed=listed)
    advance = progress or (lambda pairs: None)
    settings = ScoringSettings(scorer, listed, max_new_tokens, memory_mb * 2**20)
    store = ScoreStore() if store is None else store
    runner = ShotRunner(lm, asked, settings, store, advance)
    outcomes = Outcomes(runner, on_score)

    usable = list(usable_adapters(lm.model, bank, outcomes.failures))
    pending = [adapter for adapter in usable if runner.whole_key(adapter) not in store]
    outcomes.conclude([adapter for adapter in usable if adapter not in pending])
    advance((len(bank) - len(pending)) * len(shots))
    groups = list(groups_of_adapters(lm.model, pending, adapters_at_once))
    for group in run_groups(runner, groups, engine):
        outcomes.conclude(group)
    # Only now: groups are made of what is pending, and must be the same after a kill.
    store.put({runner.whole_key(adapter): True for adapter in pending})
    return outcomes.in_order_of(bank)


def _check_settings(bank: Bank, adapters_at_once: int, memory_mb: int) -> None:
    for setting, value in {"adapters_at_once": adapters_at_once, "memory_mb": memory_mb}.items():
        if value < 1:
            raise ConfigError(f"{setting} must be at least 1, got {value}: raise it")
    if not len(bank):
        raise ConfigError(
            "expected at least one adapter to score, got an empty bank: 'kshot bank add' adds some"
        )


def usable_adapters(model: nn.Module, bank: Bank, failures: dict[str, str]) -> Iterator[Adapter]:
    """Yield the adapters that can be read and fit the model; put the reason of each other into `failures`."""
    for adapter in bank:
        try:
            check_fits(adapter.load(), model)
        except KshotError as error:
            failures[adapter.name] = str(error)
        else:
            yield adapter


def groups_of_adapters(
    model: nn.Module, adapters: Sequence[Adapter], at_once: int
) -> Iterator[list[Adapter]]:
    """Put adapters of similar rank together, which are filled up with zeros to the largest, in even groups.

    Those that change the output embedding are alone: it sees chosen positions of all rows in one.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    head_name = next(name for name, module in model.named_modules() if module is head).rpartition(".")[2]
    alone = [adapter for adapter in adapters if head_name in adapter.entry.target_modules]
    others = sorted(
        (adapter for adapter in adapters if adapter not in alone), key=lambda one: (one.entry.r, one.name)
    )
    num_groups = -(-len(others) // at_once)
    for group in range(num_groups):
        yield others[len(others) * group // num_groups : len(others) * (group + 1) // num_groups]
    for adapter in alone:
        yield [adapter]
