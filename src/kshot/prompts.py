"""Example -> prompt -> `input_ids` and `labels`: one tokenisation for scoring, training and generation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from kshot.errors import ConfigError
from kshot.examples import Example

Form = Literal["instruction", "cloze"]
Order = Literal["rationale_first", "answer_first"]

PLAIN_TEMPLATE = (  # for base models without a chat template of their own
    "{{ bos }}{% for message in messages %}"
    "{% if message['role'] == 'system' and message['content'] %}{{ message['content'] }}\n\n"
    "{% elif message['role'] == 'user' %}### Instruction:\n{{ message['content'] }}\n\n### Response:\n"
    "{% elif message['role'] == 'assistant' %}{{ message['content'] }}{{ eos_token }}\n\n"
    "{% endif %}{% endfor %}"
)
_MARK = "<kshot:target>"  # stands for the response while the template is probed


@dataclass(frozen=True, slots=True)
class TokenisedExample:
    """Token ids of prompt and target; the target begins at `prompt_length`.

    Raises:
        ConfigError: There is no prompt, so that nothing predicts the first token of the target.
    """

    input_ids: tuple[int, ...]
    prompt_length: int

    def __post_init__(self) -> None:
        if not 1 <= self.prompt_length <= len(self.input_ids):
            raise ConfigError(
                f"prompt_length must be in [1, {len(self.input_ids)}], got {self.prompt_length}: "
                "a target needs a prompt token before it"
            )

    @property
    def labels(self) -> tuple[int, ...]:
        """Ids of the target alone; the prompt is masked with -100, as in transformers."""
        return (-100,) * self.prompt_length + self.input_ids[self.prompt_length :]

    @property
    def target_length(self) -> int:
        """Number of scored tokens, end token included."""
        return len(self.input_ids) - self.prompt_length

    def __len__(self) -> int:
        return len(self.input_ids)


def form_of(scorer: str, *, listed: bool = False) -> Form:
    """Return how a task is asked: multiple choice as the bare question unless its options are listed."""
    return "cloze" if scorer == "multiple_choice" and not listed else "instruction"


def prompt_of(example: Example, form: Form) -> str:
    """Return what the user says: instruction and input, or the bare question in the cloze form."""
    return example.question if form == "cloze" and example.question else example.request


def target_of(
    example: Example, form: Form, *, rationale: bool = False, order: Order = "rationale_first"
) -> str:
    """Return what the model should say: output or right choice, with its rationale where asked for.

    Args:
        example: What is asked and what is right.
        form: Whether the answer is the output or the text of the right choice.
        rationale: Add the rationale, if there is one.
        order: Which of the two comes first; without a rationale it changes nothing.

    Raises:
        ConfigError: `order` is unknown.
    """
    if order not in get_args(Order):
        raise ConfigError(f"order must be one of {', '.join(get_args(Order))}, got {order!r}")
    answer = example.output
    if form == "cloze" and example.choices is not None and example.label is not None:
        answer = example.choices[example.label]
    if not (rationale and example.rationale):
        return answer
    parts = (example.rationale, answer)
    return "\n".join(parts if order == "rationale_first" else parts[::-1])


class PromptTemplate:
    """The chat template of a tokenizer, or a plain instruction template where it has none.

    Args:
        tokenizer: Its chat template is used as it is.
        system_prompt: Empty by default: the default text of SmolLM2's template costs 20 tokens a row
            (measured) and says nothing of the task. Templates that refuse a system message get none.

    Raises:
        ConfigError: There is a system prompt, and the template refuses one.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system_prompt: str = "") -> None:
        self.tokenizer = tokenizer
        self._template: str | None = None if tokenizer.chat_template else PLAIN_TEMPLATE
        self._bos = self._own_bos()
        self._system: list[dict[str, str]] = [{"role": "system", "content": system_prompt}]
        try:
            self._render("", None)
        except TemplateError as error:
            if system_prompt:
                raise ConfigError(
                    f"expected a chat template with a system role, got one that says: {error}; "
                    "leave the system prompt out"
                ) from error
            self._system = []
        self.end_of_turn = self._end_of_turn()

    def prompt_text(self, prompt: str) -> str:
        """Return the text up to the point where the model answers."""
        return self._render(prompt, None)

    def encode_prompt(self, prompt: str) -> list[int]:
        """Return the ids that generation starts from."""
        return self._ids(self.prompt_text(prompt))

    def encode_messages(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Return the ids that the answer to a chat starts from; of one prompt, those of `encode_prompt`.

        Args:
            messages: As for `messages_text`.

        Raises:
            ConfigError: The template refuses such a chat.
        """
        return self._ids(self.messages_text(messages))

    def messages_text(self, messages: Sequence[Mapping[str, str]]) -> str:
        """Return the text of a chat up to the point where the model answers.

        Args:
            messages: Each with `role` and `content`; the system prompt is put before them if they have none.

        Raises:
            ConfigError: The template refuses such a chat.
        """
        has_own = any(message["role"] == "system" for message in messages)
        turns = [*([] if has_own else self._system), *map(dict, messages)]
        try:
            return self._rendered(turns, add_generation_prompt=True)
        except TemplateError as error:
            raise ConfigError(
                f"expected messages that the model's chat template takes, got: {error}; change their roles"
            ) from error

    def encode(self, prompt: str, target: str, *, max_length: int | None = None) -> TokenisedExample:
        """Tokenise prompt, target and end token together.

        Where the last prompt token would merge with the target, both are tokenised apart, so that the prompt
        is always the one that generation starts from.

        Args:
            prompt: What the user says.
            target: What the model should say.
            max_length: Cut the prompt from the left to this many tokens in all; the target stays whole.

        Raises:
            ConfigError: The target alone does not fit `max_length`.
        """
        return self.encode_after(self.prompt_text(prompt), target, max_length=max_length)

    def encode_after(self, before: str, target: str, *, max_length: int | None = None) -> TokenisedExample:
        """Do as `encode` after a prompt that is written out: up to the point where the model answers."""
        after = target + self.end_of_turn
        prompt_ids, ids = self._ids(before), self._ids(before + after)
        if ids[: len(prompt_ids)] != prompt_ids:
            ids = prompt_ids + self._ids(after)
        excess = 0 if max_length is None else max(0, len(ids) - max_length)
        if excess >= len(prompt_ids):
            raise ConfigError(
                f"expected prompt and target within {max_length} tokens, got a target of "
                f"{len(ids) - len(prompt_ids)}: raise max_length or shorten the target"
            )
        return TokenisedExample(tuple(ids[excess:]), len(prompt_ids) - excess)

    def encode_example(
        self,
        example: Example,
        form: Form,
        *,
        rationale: bool = False,
        order: Order = "rationale_first",
        max_length: int | None = None,
    ) -> TokenisedExample:
        """Tokenise an example as it is scored and trained on; `rationale` and `order` as in `target_of`."""
        target = target_of(example, form, rationale=rationale, order=order)
        return self.encode(prompt_of(example, form), target, max_length=max_length)

    def _own_bos(self) -> str:
        """Return the begin-of-text token if this tokenizer starts every text with one.

        The plain template writes it; chat templates write their own.
        """
        ids = self.tokenizer("a")["input_ids"]
        starts = self.tokenizer.bos_token_id is not None and ids[:1] == [self.tokenizer.bos_token_id]
        return str(self.tokenizer.bos_token) if starts else ""

    def end_id(self) -> int | None:
        """Return the id of the end of a turn, where it is one token."""
        ids = self._ids(self.end_of_turn)
        return ids[0] if len(ids) == 1 else None

    def end_ids(self, own: int | Sequence[int] | None) -> list[int]:
        """Return every token that ends an answer.

        Args:
            own: `eos_token_id` of the model's generation settings.
        """
        models = [own] if own is None or isinstance(own, int) else own
        ids = {*models, self.tokenizer.eos_token_id, self.end_id()}
        return sorted(id_ for id_ in ids if id_ is not None)

    def until_end(self, text: str) -> str:
        """Cut an answer at an end of turn that is no single token, so that no end id stopped there."""
        end = self.end_of_turn
        return (text.partition(end)[0] if end else text).strip()

    def _ids(self, text: str) -> list[int]:
        """Tokenise text that already holds the special tokens of the template."""
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _render(self, prompt: str, answer: str | None) -> str:
        messages = [*self._system, {"role": "user", "content": prompt}]
        if answer is not None:
            messages.append({"role": "assistant", "content": answer})
        return self._rendered(messages, add_generation_prompt=answer is None)

    def _rendered(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        options: dict[str, Any] = {"chat_template": self._template, "bos": self._bos}
        options["add_generation_prompt"] = add_generation_prompt
        # typed for the tokenised forms too, which tokenize=False rules out
        return cast(str, self.tokenizer.apply_chat_template(messages, tokenize=False, **options))

    def _end_of_turn(self) -> str:
        """Return what the template writes after an answer, without the white space that follows."""
        _, _, end = self._render("", _MARK).partition(_MARK)
        return end.strip() or str(self.tokenizer.eos_token or "")
