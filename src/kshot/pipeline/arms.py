"""The arms that a run compares: from the untouched base to the tuned mixture."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import peft

from kshot.experts import attached
from kshot.language_model import LanguageModel
from kshot.pipeline.inputs import Inputs
from kshot.pipeline.training_stage import TrainedStage, chosen_experts
from kshot.run_folder import ADAPTER, RunFolder

Arm = Literal["base", "best_single", "best_single_tuned", "uniform_mixture", "tuned_mixture"]
ARMS: dict[Arm, str] = {
    "base": "base model",
    "best_single": "best single expert (by the shots)",
    "best_single_tuned": "best single expert, tuned",
    "uniform_mixture": "uniform mixture",
    "tuned_mixture": "tuned mixture",
}
TUNED: dict[Arm, TrainedStage] = {"best_single_tuned": "single", "tuned_mixture": "expert"}
"""Arms that are trained, each with the stage that trains it."""


@contextmanager
def model_of(inputs: Inputs, run: RunFolder, arm: Arm) -> Iterator[LanguageModel]:
    """Yield the language model with what an arm puts on it, for the length of the block."""
    lm = inputs.lm
    if arm == "base":
        yield lm
    elif arm == "best_single":
        with attached(lm, chosen_experts(inputs, run, "single"), gates=[1.0]):
            yield lm
    elif arm == "uniform_mixture":
        experts = chosen_experts(inputs, run, "expert")
        with attached(lm, experts, gates=[1 / len(experts)] * len(experts)):
            yield lm
    else:
        base = lm.model
        lm.model = peft.PeftModel.from_pretrained(base, str(run.path(TUNED[arm], ADAPTER))).eval()
        try:
            yield lm
        finally:
            lm.model = lm.model.unload()
