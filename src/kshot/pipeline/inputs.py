"""What a run starts from, read and checked before anything is written."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from kshot.bank import Bank
from kshot.config import TaskConfig
from kshot.corpus import KeptOut, Pool, PoolSurvey, fingerprint, pool_contents, read_pool, survey_pool
from kshot.corpus.decontamination import named_groups
from kshot.corpus.row_store import EXACT_DUPLICATE
from kshot.engine import Engine
from kshot.errors import AdapterError, ConfigError, ExampleError
from kshot.examples import HUB_SCHEME, Example, read_examples
from kshot.experts import ServedBase
from kshot.language_model import LanguageModel
from kshot.mixture import check_fits
from kshot.progress import Progress
from kshot.run_folder import digest


@dataclass
class Inputs:
    """Task, shots, test rows, bank, pool and base model.

    Attributes:
        task: The resolved task file.
        progress: Where to say what takes long.
        engine: Whose workers score adapters and embed the pool; None: this process.
    """

    task: TaskConfig
    progress: Progress
    engine: Engine | None = None
    shots: list[Example] = field(init=False)
    test: list[Example] = field(init=False)
    bank: Bank = field(init=False)

    def __post_init__(self) -> None:
        self.shots = read_examples(self.task.shots)
        self.test = read_examples(self.task.test) if self.task.test else []
        self._check_choices([*self.shots, *self.test])
        self._check_leaks()
        self.bank = self._usable_bank()
        _ = self.pool_digest

    @cached_property
    def pool(self) -> Pool:
        """The open rows, read once."""
        return read_pool(self.task.pool, progress=self.progress)

    @cached_property
    def lm(self) -> LanguageModel:
        """The base model, loaded once, after which every adapter was checked against it.

        A damaged adapter is left to scoring, which lists it and goes on; one of another base is a bank for
        another task. A bank that is screened is not read here: screening lists what does not fit.
        """
        self.progress.say(f"loading the base model {self.task.base_model} (fetched on first use)")
        task = self.task
        lm = LanguageModel.load(task.base_model, dtype=task.dtype, quantization=task.quantization)
        for adapter in () if self.is_screened else self.bank:
            try:
                expert = adapter.load()
            except AdapterError:
                continue
            check_fits(expert, lm.model)
        return lm

    @property
    def is_screened(self) -> bool:
        """Whether the bank is larger than what is scored."""
        return self.task.experts.num_scored(len(self.bank)) < len(self.bank)

    @cached_property
    def served_base(self) -> ServedBase:
        """The base model of adapters that a server scores, without its weights."""
        return ServedBase.load(self.task.base_model)

    def check_budget(self) -> None:
        """Refuse a budget that the pool cannot fill, before anything is embedded.

        Raises:
            ConfigError: The pool has fewer rows than `data.budget`.
        """
        budget = self.task.data.budget
        usable = len(self.pool) - len(self.survey.avoided) if budget else 0
        if budget > usable:
            raise ConfigError(
                f"data.budget must be in [0, {usable}], the pool rows that may be picked, "
                f"got {budget}: lower data.budget or enlarge the pool"
            )

    @cached_property
    def survey(self) -> PoolSurvey:
        """Which pool rows must not be picked, and why; every row is read once."""
        kept_out = KeptOut(named_groups(self.shots, self.test, self.benchmarks))
        with self.progress.bar("comparing the pool with the test", len(self.pool)) as advance:
            return survey_pool(
                self.pool,
                kept_out,
                needs_rationale=self.task.data.require_rationale,
                progress=advance,
            )

    @cached_property
    def benchmarks(self) -> dict[str, list[Example]]:
        """Further rows whose questions are kept out of the pool, by the name of their source.

        Raises:
            ExampleError: A row cannot be read, so that it could not be kept out.
        """
        found: dict[str, list[Example]] = {}
        for source in self.task.data.benchmarks:
            rows = read_pool([source], progress=self.progress)
            lost = [one for one in rows.skipped if one.reason != EXACT_DUPLICATE]
            if lost:
                raise ExampleError(
                    f"data.benchmarks: expected rows that can all be read in {source.path}, got "
                    f"{lost[0].count} with {lost[0].reason} ({lost[0].first}); name its columns"
                )
            is_remote = source.path.startswith(HUB_SCHEME)
            name = source.path if is_remote else "/".join(Path(source.path).parts[-2:])
            found.setdefault(name.removeprefix(HUB_SCHEME), []).extend(rows)
        return found

    @cached_property
    def base_digest(self) -> str:
        """Hash of what names the base model."""
        return digest([self.task.base_model, self.task.dtype, self.task.quantization])

    @cached_property
    def shots_digest(self) -> str:
        """Hash of the shots."""
        return digest([shot.to_row() for shot in self.shots])

    @cached_property
    def test_digest(self) -> str:
        """Hash of the test rows."""
        return digest([example.to_row() for example in self.test])

    @cached_property
    def benchmarks_digest(self) -> str:
        """Hash of the files of benchmarks; a Hub data set counts as in the pool."""
        return digest(pool_contents(self.task.data.benchmarks) if self.task.data.budget else [])

    @cached_property
    def bank_digest(self) -> str:
        """Hash of the adapters that may be chosen."""
        return digest([[adapter.name, adapter.digest] for adapter in self.bank])

    @cached_property
    def pool_digest(self) -> str:
        """Hash of the pool's files and how they are read; a Hub data set counts by its name."""
        return digest(pool_contents(self.task.pool) if self.task.data.budget else [])

    def _check_choices(self, examples: Sequence[Example]) -> None:
        if self.task.scorer != "multiple_choice":
            return
        for example in examples:
            if not example.choices or example.label is None:
                raise ExampleError(
                    f"{example.id}: expected choices and label for the scorer multiple_choice, got none; "
                    "add them or use another scorer"
                )

    def _check_leaks(self) -> None:
        """Refuse test rows that ask what a shot asks."""
        asked = {fingerprint(shot.request): shot.id for shot in self.shots}
        leaked = [(row.id, asked[key]) for row in self.test if (key := fingerprint(row.request)) in asked]
        if leaked:
            raise ExampleError(
                f"expected test rows that are no shots, got {leaked[0][0]!r}, which is shot {leaked[0][1]!r} "
                f"({len(leaked)} in all): take them out of the shots or out of the test file"
            )

    def _usable_bank(self) -> Bank:
        bank = Bank.open_all(self.task.bank)
        excluded = {
            name for name in bank.names if any(fnmatchcase(name, one) for one in self.task.experts.exclude)
        }
        unused = [
            one for one in self.task.experts.exclude if not any(fnmatchcase(name, one) for name in bank.names)
        ]
        if unused:
            near = get_close_matches(unused[0], bank.names, n=5) or bank.names[:5]
            raise ConfigError(
                f"experts.exclude: expected names or patterns of adapters, got {unused[0]!r}, "
                f"which fits none of them; there are {', '.join(near)}"
            )
        kept = [name for name in bank.names if name not in excluded]
        if len(kept) < self.task.experts.num_experts:
            raise ConfigError(
                f"expected at least experts.num_experts = {self.task.experts.num_experts} adapters, "
                f"got {len(kept)}: lower it or enlarge the bank"
            )
        return bank.subset(kept)
