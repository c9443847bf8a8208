"""Which experts of the tuned mixture produced its first test answers, for the report: by layer and by token.

T tokens of a row   N tokens of an answer   E choices of the router, the null expert last if there is one
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kshot.atomic import write_json
from kshot.evaluation.runner import Prediction
from kshot.language_model import LanguageModel
from kshot.mixture import collect_routing
from kshot.mixture.config import layer_of
from kshot.prompts import TokenisedExample
from kshot.run_folder import TOKEN_EXPERTS

MAX_ANSWERS = 50  # what a reader looks at; a forward pass each
MAX_TOKENS = 256  # of one answer


def write_token_experts(lm: LanguageModel, predictions: Sequence[Prediction], folder: Path) -> None:
    """Write the gates behind the first answers.

    A token's gates are those at the position that predicts it, as their mean over modules. Prompt and answer
    are read in one pass, whose gates are those of the decoding that gave the answer.

    Args:
        lm: Its model is the tuned mixture.
        predictions: Of the test rows, in order; of multiple choice the choice taken.
        folder: Of the arm.
    """
    choices: tuple[str, ...] = ()
    layers: dict[str, list[Tensor]] = {}
    answers = []
    for prediction in predictions[:MAX_ANSWERS]:
        row = _row_of(lm, prediction)
        if row is None:
            answers.append({"id": prediction.id, "tokens": [], "gates": []})
            continue
        with collect_routing(lm.model, keep_tokens=True) as statistics:
            lm.token_nll([row])
        choices = statistics.choices
        first, last = row.prompt_length - 1, len(row) - 1
        by_module = {
            module: routing.tokens[0][0, first:last].float().cpu()
            for module, routing in statistics.modules.items()
        }
        for module, gates_NE in by_module.items():
            layers.setdefault(layer_of(module), []).append(gates_NE)
        gates_NE = torch.stack(list(by_module.values())).mean(dim=0)
        tokens = _texts_of(lm, row.input_ids[row.prompt_length :])
        answers.append({"id": prediction.id, "tokens": tokens, "gates": _rounded(gates_NE)})
    if layers:
        write_json(
            folder / TOKEN_EXPERTS,
            {
                "choices": choices,
                "layers": [
                    {"layer": layer, "gates": _rounded(torch.cat(found).mean(dim=0))}
                    for layer, found in layers.items()
                ],
                "answers": answers,
            },
        )


def _row_of(lm: LanguageModel, prediction: Prediction) -> TokenisedExample | None:
    """Return prompt and answer without the end of the turn; None where nothing was answered."""
    if not prediction.prediction:
        return None
    whole = lm.template.encode(prediction.request, prediction.prediction)
    end = lm.tokenizer(lm.template.end_of_turn, add_special_tokens=False)["input_ids"]
    ids = whole.input_ids
    if end and list(ids[-len(end) :]) == list(end):
        ids = ids[: -len(end)]
    ids = ids[: whole.prompt_length + MAX_TOKENS]
    return TokenisedExample(ids, whole.prompt_length) if len(ids) > whole.prompt_length else None


def _texts_of(lm: LanguageModel, ids: Sequence[int]) -> list[str]:
    """Return the text that each token adds; one that ends within a character adds nothing yet."""
    texts, seen = [], ""
    for end in range(1, len(ids) + 1):
        text = str(lm.tokenizer.decode(list(ids[:end])))
        if text.endswith("\ufffd") and end < len(ids):
            texts.append("")
            continue
        texts.append(text[len(seen) :])
        seen = text
    return texts


def _rounded(gates: Tensor) -> Any:
    return [
        [round(value, 3) for value in row] if isinstance(row, list) else round(row, 3)
        for row in gates.tolist()
    ]
