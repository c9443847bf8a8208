"""Counts what each stage of a run has to compute, from its inputs."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from statistics import median

import numpy as np

from kshot.corpus import TextEncoder, load_encoder, text_of
from kshot.corpus.embedding_store import VECTORS, describe_encoder, encoder_key
from kshot.corpus.stored_vectors import are_whole
from kshot.examples import Example
from kshot.experts import ScoreStore
from kshot.experts.asked_shots import AskedShot, ask_shots, by_likelihood
from kshot.experts.halving_plan import num_entrants
from kshot.experts.prompt_cache import keeps_all_tokens
from kshot.experts.shared_prompts import shares_prompts
from kshot.experts.shot_passes import ScoringSettings
from kshot.experts.shot_runner import ShotRunner
from kshot.pipeline.forecast.amounts import (
    Amount,
    AnswerLength,
    Kind,
    answering,
    exactly,
    scoring_tokens,
    training_range,
)
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.token_experts import MAX_ANSWERS, MAX_TOKENS
from kshot.pipeline.training_stage import training_rows
from kshot.prompts import TokenisedExample, form_of, prompt_of
from kshot.run_folder import SCORE_STORE, RunFolder

SAMPLE = 200  # pool rows whose lengths stand for all: the mean length is known to some percent


class WorkCounter:
    """Counts; what is needed for it is read when it is first asked for.

    Args:
        inputs: Of the run, read and checked.
        out: The run folder, which may be there or not.
        data_is_there: Whether the rows to train on are selected already.
    """

    def __init__(self, inputs: Inputs, out: Path, *, data_is_there: bool) -> None:
        self.inputs, self._run, self._data_is_there = inputs, RunFolder.read_only(out), data_is_there

    def amounts(self, stage: str) -> list[Amount]:
        """Return what a stage computes, by its name in the run folder."""
        task = self.inputs.task
        if stage == "screening":  # backward passes over the shots: the slope, and draws of the curvature
            passes = 1 + task.experts.screen_draws
            return [exactly("train_single", passes * sum(len(one.reasoning) for one in self.asked))]
        if stage == "experts":
            return [] if task.experts.endpoint else self._scoring()
        if stage == "data":
            return self._embedding() if task.data.budget else []
        if stage in ("single", "expert"):
            return [self._training("train_mixture" if stage == "expert" else "train_single")]
        if stage == "choice":
            return self._choosing(task.evaluation.num_folds(len(self.inputs.shots)))
        return self._testing(stage)

    @cached_property
    def asked(self) -> list[AskedShot]:
        """The shots as tokens."""
        task = self.inputs.task
        return ask_shots(self.inputs.lm, self.inputs.shots, task.scorer, listed=task.lists_options)

    @cached_property
    def generates(self) -> bool:
        """Whether the task is answered in words, and not by likelihood."""
        return not by_likelihood(self.inputs.task.scorer, listed=self.inputs.task.lists_options)

    @cached_property
    def pending(self) -> int:
        """Adapters that an earlier run has not scored, of those that will be."""
        task, bank = self.inputs.task, self.inputs.bank
        store = ScoreStore(self._run.path(SCORE_STORE))
        settings = ScoringSettings(
            task.scorer, task.lists_options, task.evaluation.max_new_tokens, memory=2**20
        )  # no batch is made
        runner = ShotRunner(self.inputs.lm, self.asked, settings, store, lambda pairs: None)
        unknown = sum(runner.whole_key(adapter) not in store for adapter in bank)
        return min(unknown, task.experts.num_scored(len(bank)))

    @cached_property
    def encoder(self) -> TextEncoder:
        """What embeds the pool, or its shortlist."""
        settings = self.inputs.task.data
        return load_encoder(
            settings.encoder,
            prefix=settings.encoder_prefix,
            dtype=settings.encoder_dtype,
            base_model=lambda: self.inputs.lm,
        )

    @cached_property
    def cheap_encoder(self) -> TextEncoder | None:
        """What embeds the whole pool where a shortlist is made; None without one."""
        reference = self.inputs.task.data.shortlist_encoder
        return load_encoder(reference, base_model=lambda: self.inputs.lm) if reference else None

    @cached_property
    def sample(self) -> list[Example]:
        """Some usable pool rows, evenly spread."""
        if not self.inputs.task.data.budget:
            return []
        usable = np.setdiff1d(np.arange(len(self.inputs.pool)), self.inputs.survey.avoided)
        places = np.linspace(0, len(usable) - 1, min(SAMPLE, len(usable))).astype(np.int64)
        return self.inputs.pool.examples_at(usable[places]) if usable.size else []

    @cached_property
    def shot_rows(self) -> list[TokenisedExample]:
        """The shots as they are trained on."""
        return [self._tokens(shot, self.inputs.task.training.max_length) for shot in self.inputs.shots]

    @cached_property
    def selected_rows(self) -> list[TokenisedExample]:
        """The selected rows, where they are."""
        return training_rows(self.inputs, self._run, []) if self._data_is_there else []

    @property
    def rows(self) -> list[TokenisedExample]:
        """Rows to train on that are known."""
        return self.shot_rows * self.inputs.task.training.shot_repeats + self.selected_rows

    @cached_property
    def sampled_rows(self) -> list[TokenisedExample]:
        """Rows that stand for those that will be selected; too long ones never are."""
        longest = self.inputs.task.training.max_length
        return [row for row in map(self._tokens, self.sample) if len(row) <= longest]

    @cached_property
    def prompts(self) -> list[list[int]]:
        """Prompts of the test rows, as token ids."""
        encode = self.inputs.lm.template.encode_prompt
        return [encode(prompt_of(row, "instruction")) for row in self.inputs.test]

    def _tokens(self, example: Example, max_length: int | None = None) -> TokenisedExample:
        task = self.inputs.task
        form = form_of(task.scorer, listed=task.lists_options)
        return self.inputs.lm.template.encode_example(
            example, form, rationale=task.trains_on_rationales, max_length=max_length
        )

    def _scoring(self) -> list[Amount]:
        model = self.inputs.lm.model
        shares = shares_prompts(model, max(shot.longest for shot in self.asked))
        caches = shares and keeps_all_tokens(model)
        tokens = sum(
            scoring_tokens(shot, shares_prompts=shares, caches_prompts=caches, generates=self.generates)
            for shot in self.asked
        )
        halved = self._halved() * tokens
        found = [Amount("score", self.pending * tokens, self.pending * tokens + halved)]
        if self.generates:
            rows, length = self.pending * len(self.asked), self._answers(tuned=False)
            found.append(Amount("score_answer", rows * length.low, rows * length.high))
        return found

    def _halved(self) -> int:
        """Return how many adapters are run besides those that are scored, to find these."""
        experts, bank = self.inputs.task.experts, self.inputs.bank
        if not self.inputs.is_screened or not self.pending:
            return 0
        rounds = {"first_shots": experts.halving_shots, "factor": experts.halving_factor}
        entrants = num_entrants(len(self.inputs.shots), experts.num_scored(len(bank)), **rounds)
        return min(len(bank), entrants) - self.pending

    def _answers(self, *, tuned: bool) -> AnswerLength:
        """Return how long answers are: at least as the right one of a middling shot, without its rationale
        before tuning, and at most as long as is allowed."""
        most = self.inputs.task.evaluation.max_new_tokens
        rationale = tuned and self.inputs.task.trains_on_rationales
        encode = self.inputs.lm.template.encode_example
        right = [encode(shot, "instruction", rationale=rationale).target_length for shot in self.inputs.shots]
        return AnswerLength(min(most, round(median(right))), most)

    def _embedding(self) -> list[Amount]:
        found = []
        characters = np.mean([len(text_of(row)) for row in self.sample]) if self.sample else 0.0
        settings, num_rows = self.inputs.task.data, self._rows_to_embed(self.cheap_encoder or self.encoder)
        if self.cheap_encoder is None:
            return [exactly("embed", round(num_rows * characters))]
        short = min(settings.shortlist_factor * settings.budget, len(self.inputs.pool))
        found.append(exactly("scan", round(num_rows * characters)))
        found.append(Amount("embed", 0, round(short * characters)))  # some of it may be kept from before
        return found

    def _rows_to_embed(self, encoder: TextEncoder) -> int:
        """Return the pool rows that no earlier run has embedded."""
        described = describe_encoder(encoder)
        num_dimensions, total = int(described["dimensions"]), 0
        for shard in self.inputs.pool.shards:
            rows = shard.stored.shard_rows[shard.number]
            file = f"shard-{shard.number:05d}.npy"
            target = shard.stored.folder / VECTORS / encoder_key(described) / file
            total += 0 if are_whole(target, (rows, num_dimensions)) else rows
        return total

    def _training(
        self, kind: Kind, *, times_shots: int = 1, times_rows: int = 1, share: float = 1.0
    ) -> Amount:
        """Return the tokens of so many trainings, of which fewer may hold a shot than hold a selected row."""
        training = self.inputs.task.training
        more = 0 if self._data_is_there else self.inputs.task.data.budget
        sampled = [len(row) for row in self.sampled_rows] if more else []
        shots = self.shot_rows * training.shot_repeats * times_shots
        known = [len(row) for row in [*shots, *self.selected_rows * times_rows]]
        return training_range(kind, known, sampled, more * times_rows, training.num_train_epochs * share)

    def _choosing(self, folds: int) -> list[Amount]:
        """Return what trainings without a fold each take, and reading the shots with every arm."""
        if not folds:
            return []
        settings, each = self.inputs.task.evaluation, self._scored_tokens(self.inputs.shots)
        kinds: tuple[Kind, ...] = (
            ("train_mixture", "train_single") if settings.fold_single else ("train_mixture",)
        )
        trained = [
            self._training(kind, times_shots=folds - 1, times_rows=folds, share=settings.fold_epochs)
            for kind in kinds
        ]
        single = exactly("read_single", each * (2 + settings.fold_single))
        return [*trained, single, exactly("read_mixture", each * 2)]

    def _scored_tokens(self, examples: Sequence[Example]) -> int:
        """Return the tokens of examples whose likelihood is asked for: of each choice, or of the answer."""
        if self.generates:
            return sum(len(self._tokens(one)) for one in examples)
        encode = self.inputs.lm.template.encode
        return sum(
            len(encode(prompt_of(one, "cloze"), choice)) for one in examples for choice in one.choices or ()
        )

    def _testing(self, stage: str) -> list[Amount]:
        mixture = stage.endswith("_mixture")
        read: Kind = "read_mixture" if mixture else "read_single"
        if self.generates:
            answer: Kind = "answer_mixture" if mixture else "answer_single"
            tuned = "tuned" in stage
            found = answering(read, answer, [len(ids) for ids in self.prompts], self._answers(tuned=tuned))
        else:
            found = [exactly(read, self._scored_tokens(self.inputs.test))]
        return [*found, self._read_again()] if stage.endswith("tuned_mixture") else found

    def _read_again(self) -> Amount:
        """Return what it takes to read the first answers once more, for the experts behind each token."""
        examples = self.inputs.test[:MAX_ANSWERS]
        if self.generates:
            prompts, length = sum(map(len, self.prompts[:MAX_ANSWERS])), self._answers(tuned=True)
            ends = [min(MAX_TOKENS, end) * len(examples) for end in (length.low, length.high)]
            return Amount("read_mixture", prompts + ends[0], prompts + ends[1])
        encode = self.inputs.lm.template.encode
        choices = [
            [len(encode(prompt_of(one, "cloze"), choice)) for choice in one.choices or ()] for one in examples
        ]
        return Amount("read_mixture", sum(min(one) - 1 for one in choices), sum(map(max, choices)))
