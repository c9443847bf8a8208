"""How router and experts are tuned."""

from typing import Literal

from pydantic import Field

from kshot.config.section import Section


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
