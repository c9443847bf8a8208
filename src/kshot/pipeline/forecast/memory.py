"""Peak memory and disk of each stage, from sizes that are known; estimates, not promises to the byte."""

from collections.abc import Sequence

import psutil
import torch

from kshot.experts.batch_plan import answer_bytes, default_memory_mb
from kshot.experts.scoring import ADAPTERS_AT_ONCE
from kshot.pipeline.forecast.counter import WorkCounter
from kshot.pipeline.forecast.probe import Probe
from kshot.pipeline.forecast.training_probe import TrainingProbe

ENCODER_BYTES = 500_000_000  # MiniLM with a batch of 64 texts; larger encoders take more
_TRAINING = ("single", "expert", "choice")  # the last by folds of the shots, if at all


def resident_bytes() -> int:
    """Return what is taken now, libraries and base model included; on an accelerator, what it holds."""
    if torch.cuda.is_available():
        return int(torch.cuda.memory_allocated())
    return int(psutil.Process().memory_info().rss)


def stage_bytes(counter: WorkCounter, stage: str, probe: Probe) -> int:
    """Return what a stage takes at its peak beside the loaded base model."""
    if stage == "screening":
        return _model_bytes(counter)  # the gradient
    if stage == "experts":
        task, lm = counter.inputs.task, counter.inputs.lm
        batch = (task.experts.memory_mb or default_memory_mb(lm.model)) * 2**20
        return batch + ADAPTERS_AT_ONCE * _adapter_bytes(probe)
    if stage == "data":
        return ENCODER_BYTES if counter.inputs.task.data.budget else 0
    if stage in _TRAINING:
        trained = _probe_of(stage, probe) if counter.amounts(stage) else None
        return trained.step_bytes(_largest_micro_batch(counter)) + trained.weight_bytes if trained else 0
    return _answer_bytes(counter)


def disk_bytes(counter: WorkCounter, stages: Sequence[str], probe: Probe) -> int:
    """Return what a run adds to the disk at its peak: tuned adapters, and two checkpoints of one."""
    found = {stage: one for stage in stages if stage in _TRAINING and (one := _probe_of(stage, probe))}
    kept = sum(one.weight_bytes for stage, one in found.items() if stage != "choice")
    return kept + 2 * max((one.checkpoint_bytes for one in found.values()), default=0)


def _probe_of(stage: str, probe: Probe) -> TrainingProbe | None:
    return probe.single if stage == "single" else probe.mixture


def _model_bytes(counter: WorkCounter) -> int:
    return sum(weight.numel() * weight.element_size() for weight in counter.inputs.lm.model.parameters())


def _adapter_bytes(probe: Probe) -> int:
    return probe.single.weight_bytes if probe.single else 0


def _largest_micro_batch(counter: WorkCounter) -> int:
    """Return the padded tokens of a micro-batch of the longest rows."""
    rows = [*counter.rows, *counter.sampled_rows]
    return max(map(len, rows)) * min(counter.inputs.task.training.per_device_train_batch_size, len(rows))


def _answer_bytes(counter: WorkCounter) -> int:
    """Return the keys and values of a batch of answers at full length."""
    if not counter.generates or not counter.prompts:
        return 0
    task = counter.inputs.task
    longest = max(map(len, counter.prompts))
    one_token = answer_bytes(counter.inputs.lm.model, counter.asked[0], 0) // counter.asked[0].prompt_length
    rows = min(task.evaluation.batch_size, len(counter.prompts))
    return rows * (longest + task.evaluation.max_new_tokens) * one_token
