"""Runs a little of each kind of work that a run needs: its own base, adapters, shots and rows."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from kshot.bank import Adapter
from kshot.corpus import TextEncoder, text_of
from kshot.errors import AdapterError
from kshot.experts import attached
from kshot.experts.batch_plan import default_memory_mb
from kshot.experts.row_experts import row_experts
from kshot.experts.scoring import ADAPTERS_AT_ONCE
from kshot.experts.shot_passes import ScoringSettings, ShotPasses
from kshot.language_model import LanguageModel
from kshot.mixture import LoraExpert
from kshot.pipeline.forecast.amounts import Kind
from kshot.pipeline.forecast.counter import WorkCounter
from kshot.pipeline.forecast.rates import Rate, affordable, answer_rates, likelihood_rate, rate_of
from kshot.pipeline.forecast.training_probe import TrainingProbe, probe_training
from kshot.prompts import TokenisedExample

TEXTS = 64  # embedded at once by the sentence encoder


@dataclass
class Probe:
    """What was measured.

    Attributes:
        rates: By kind of work.
        single: A step of one adapter, where a stage trains one.
        mixture: A step of the mixture, likewise.
    """

    rates: dict[Kind, Rate] = field(default_factory=dict)
    single: TrainingProbe | None = None
    mixture: TrainingProbe | None = None


def probe_run(counter: WorkCounter, kinds: Collection[Kind]) -> Probe:
    """Measure the kinds of work that are asked for.

    Raises:
        AdapterError: Fewer adapters than `experts.num_experts` can be read.
    """
    found = Probe()
    if "embed" in kinds:
        found.rates["embed"] = _embedding(counter, counter.encoder)
    if "scan" in kinds and counter.cheap_encoder:
        found.rates["scan"] = _embedding(counter, counter.cheap_encoder)
    if "score" in kinds:
        found.rates |= _scoring(counter)
    single = {"train_single", "read_single"} & set(kinds)
    mixture = {"train_mixture", "read_mixture"} & set(kinds)
    num_experts = counter.inputs.task.experts.num_experts
    experts = _experts(counter, num_experts) if single or mixture else {}
    if single:
        with attached(counter.inputs.lm, dict(list(experts.items())[:1]), gates=[1.0]) as lm:
            found.rates |= _answering(counter, lm, "read_single", "answer_single", kinds)
            if "train_single" in kinds:
                found.single = _training(counter, lm, found.rates)
                found.rates["train_single"] = found.single.rate
    if mixture:
        with attached(counter.inputs.lm, experts, **_mixture_options(counter)) as lm:
            found.rates |= _answering(counter, lm, "read_mixture", "answer_mixture", kinds)
            if "train_mixture" in kinds:
                found.mixture = _training(counter, lm, found.rates)
                found.rates["train_mixture"] = found.mixture.rate
    return found


def _mixture_options(counter: WorkCounter) -> dict[str, Any]:
    """Return the mixture of the task; what its routers start from changes no time."""
    return counter.inputs.task.mixture.model_dump() | {"router_start": "random"}


def _embedding(counter: WorkCounter, encoder: TextEncoder) -> Rate:
    """Time texts of middling length, as blocks of like length pad little."""
    texts = sorted((text_of(row) for row in counter.sample), key=len)
    start = max(0, (len(texts) - TEXTS) // 2)
    some = texts[start : start + TEXTS]
    encoder.encode(some[:1])
    return rate_of(lambda: encoder.encode(some), sum(map(len, some)))


def _readable(counter: WorkCounter, most: int) -> list[LoraExpert]:
    """Return the first adapters of the bank that can be read and fit."""
    found: list[LoraExpert] = []
    for adapter in counter.inputs.bank:
        expert = _read(adapter)
        if expert is not None:
            found.append(expert)
        if len(found) == most:
            break
    return found


def _read(adapter: Adapter) -> LoraExpert | None:
    try:
        return adapter.load()
    except AdapterError:  # scoring lists it
        return None


def _experts(counter: WorkCounter, num_experts: int) -> Mapping[str, LoraExpert]:
    found = _readable(counter, num_experts)
    if len(found) < num_experts:
        raise AdapterError(
            f"expected experts.num_experts = {num_experts} adapters that can be read, got {len(found)}: "
            "'kshot bank verify' says what is wrong with the others"
        )
    return {f"expert_{place}": expert for place, expert in enumerate(found)}


def _scoring(counter: WorkCounter) -> dict[Kind, Rate]:
    lm = counter.inputs.lm
    experts = _readable(counter, min(ADAPTERS_AT_ONCE, max(1, counter.pending)))
    num_rows = _rows_of_a_batch(counter, len(experts))
    with row_experts(lm.model, experts) as rows:

        def on_rows(places: Sequence[int]) -> None:
            rows.use([place * len(experts) // max(num_rows, 1 + max(places)) for place in places])

        targets = [shot.reasoning for shot in counter.asked]
        found: dict[Kind, Rate] = {"score": likelihood_rate(lm, targets, on_rows)}
        if counter.generates:
            prompts = [shot.reasoning.input_ids[: shot.prompt_length] for shot in counter.asked]
            found["score_answer"] = answer_rates(lm, prompts, num_rows, on_rows=on_rows)[1]
    return found


def _rows_of_a_batch(counter: WorkCounter, num_adapters: int) -> int:
    """Return how many pairs of adapter and shot answer at once."""
    task, lm = counter.inputs.task, counter.inputs.lm
    memory_mb = task.experts.memory_mb or default_memory_mb(lm.model)
    settings = ScoringSettings(
        task.scorer, task.lists_options, task.evaluation.max_new_tokens, memory_mb * 2**20
    )
    return len(next(ShotPasses(lm, counter.asked, settings).answer_batches(num_adapters)))


def _answering(
    counter: WorkCounter, lm: LanguageModel, read: Kind, answer: Kind, kinds: Collection[Kind]
) -> dict[Kind, Rate]:
    if read not in kinds:
        return {}
    if not counter.generates or not counter.prompts:
        return {read: likelihood_rate(lm, _middling(counter.rows))}
    task = counter.inputs.task
    num_rows = min(task.evaluation.batch_size, len(counter.inputs.test))
    copies = task.mixture.router_granularity == "token"
    rates = answer_rates(lm, sorted(counter.prompts, key=len), num_rows, copies=copies)
    return dict(zip((read, answer), rates, strict=True))


def _training(counter: WorkCounter, lm: LanguageModel, known: Mapping[Kind, Rate]) -> TrainingProbe:
    """Time a micro-batch, or as many of its rows as are no slow pass."""
    settings = counter.inputs.task.training
    rows = _middling([*counter.rows, *counter.sampled_rows])[: settings.per_device_train_batch_size]
    seconds_a_token = likelihood_rate(lm, rows[:1]).low
    return probe_training(lm, rows[: affordable(rows, lm.device, 3 * seconds_a_token)], settings)


def _middling(rows: Sequence[TokenisedExample]) -> list[TokenisedExample]:
    """Return rows from a middling length on."""
    ordered = sorted(rows, key=len)
    return ordered[len(ordered) // 2 :]
