"""Arms that train nothing and choose nothing: the base model, and the shots in its prompt."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from kshot.examples import Example
from kshot.prompts import PromptTemplate, prompt_of, target_of
from suite.arm import Built, Setting
from suite.own.tuning import as_it_is

PROMPT_TOKENS = 1024  # of shots, or what the model reads: longer prompts cost minutes a cell and add little


def build_base(setting: Setting) -> Built:
    """Return the base model."""
    return as_it_is(setting, setting.lm.model, {})


def build_few_shot(setting: Setting) -> Built:
    """Put the shots before every question as turns of the chat, as many as fit."""
    lm = setting.lm
    room = min(PROMPT_TOKENS, lm.max_length // 2)
    turns = _turns(setting, setting.shots)
    while turns and len(lm.template.encode_messages(turns)) > room:
        turns = turns[:-2]
    lm.template = FewShotTemplate(lm.tokenizer, turns)
    return as_it_is(setting, lm.model, {"num_shots": len(turns) // 2})


def _turns(setting: Setting, shots: Sequence[Example]) -> list[dict[str, str]]:
    form, turns = setting.recipe.form, []
    for shot in shots:
        target = target_of(shot, form, rationale=setting.recipe.rationales)
        turns += [
            {"role": "user", "content": prompt_of(shot, form)},
            {"role": "assistant", "content": target},
        ]
    return turns


class FewShotTemplate(PromptTemplate):
    """A template whose every prompt comes after the same turns."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, turns: Sequence[dict[str, str]]) -> None:
        self._turns = list(turns)
        super().__init__(tokenizer)

    def _render(self, prompt: str, answer: str | None) -> str:
        messages = [*self._system, *self._turns, {"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return self._rendered(messages, add_generation_prompt=answer is None)
