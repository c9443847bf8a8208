"""What a model is asked for a rationale: the instruction, and its template in a sandbox."""

from pathlib import Path
from typing import Literal, get_args

from jinja2 import StrictUndefined, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from kshot.errors import ConfigError, reason_of
from kshot.examples import Example
from kshot.prompts import form_of, prompt_of

Style = Literal["answer-first", "reason-first"]

DEFAULT_PROMPT = """\
Read this question and the answer that is known to be right. \
Think step by step about what leads from one to the other.

Question:
{{ question }}

{% if choices %}
Choices:
{% for choice in choices %}
- {{ choice }}
{% endfor %}

{% endif %}
Right answer:
{{ answer }}

Explain in at most three plain sentences, about the content of the question, why this answer is right.\
{% if style == "answer-first" %}
 State the answer first, then explain it. Reply in this form:

Answer: {{ answer }}
Explanation: ...
{% else %}
 Name the answer only after the explanation. Reply in this form:

Explanation: ...
Answer: {{ answer }}
{% endif %}
"""
"""The paper's instruction in other words: read, think step by step, answer and explain in three sentences."""

_QUESTION = {"question", "instruction", "input"}
_VARIABLES = _QUESTION | {"answer", "choices", "output", "style"}


class RationalePrompt:
    """A Jinja2 template in a sandbox: no attribute of Python, no file, no code is in its reach.

    It may use `question` (the bare question where there is one, else instruction and input), `answer` (what
    is compared), `choices` (texts that the question does not list), `instruction`, `input`, `output` and
    `style`. Without `answer` the model has to find the right answer itself.

    Args:
        source: Of the template.
        name: For error messages.

    Raises:
        ConfigError: It is no template, uses an unknown name, leaves the question out, or does not ask for the
            line `Answer: ...`, without which every rationale would be turned down.
    """

    def __init__(self, source: str = DEFAULT_PROMPT, name: str = "the prompt") -> None:
        self.source = source
        self.name = name
        environment = ImmutableSandboxedEnvironment(
            undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
        )
        try:
            used = meta.find_undeclared_variables(environment.parse(source))
            self._template = environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ConfigError(
                f"{name}, line {error.lineno}: expected a Jinja2 template, got: {error.message}"
            ) from error
        if unknown := sorted(used - _VARIABLES):
            raise ConfigError(
                f"{name}: unknown variable {unknown[0]!r}; known: {', '.join(sorted(_VARIABLES))}"
            )
        if not used & _QUESTION:
            raise ConfigError(f"{name}: expected {{{{ question }}}} in the template, got none; add it")
        if "answer:" not in source.casefold():
            raise ConfigError(
                f"{name}: expected a prompt that asks for a line 'Answer: ...', got none: "
                "the stated answer is compared with the right one"
            )

    @classmethod
    def read(cls, path: Path) -> "RationalePrompt":
        """Read a template file.

        Raises:
            ConfigError: It cannot be read, or is no such template.
        """
        try:
            return cls(path.read_text(encoding="utf-8"), str(path))
        except OSError as error:
            raise ConfigError(f"cannot read {path}: {error.strerror}; expected a template file") from error
        except UnicodeDecodeError as error:
            raise ConfigError(
                f"{path}: expected UTF-8, got {error.reason} at byte {error.start}; save it as UTF-8"
            ) from error

    def render(self, example: Example, *, scorer: str, style: Style) -> str:
        """Return what the model is asked about one example.

        Raises:
            ConfigError: The template fails on this example, or renders to nothing.
        """
        question = prompt_of(example, form_of(scorer))
        choices = example.choices or () if scorer == "multiple_choice" else ()
        listed = all(choice in question for choice in choices)
        try:
            text = self._template.render(
                question=question,
                answer=gold_answer(example, scorer),
                choices=() if listed else choices,
                instruction=example.instruction,
                input=example.input,
                output=example.output,
                style=style,
            ).strip()
        except Exception as error:  # a template can raise what any expression raises
            raise ConfigError(
                f"{self.name}: fails on {example.id or 'an example'}: {reason_of(error)}; mend the template"
            ) from error
        if not text:
            raise ConfigError(f"{self.name}: expected text for {example.id or 'an example'}, got none")
        return text


def gold_answer(example: Example, scorer: str) -> str:
    """Return the right answer as the model is told it: a choice's text, or what is compared."""
    if scorer == "multiple_choice" and example.choices and example.label is not None:
        return example.choices[example.label]
    return example.output if scorer == "code" else example.gold  # of which the answer is the tests


def checked_style(name: str) -> Style:
    """Return the style of this name.

    Raises:
        ConfigError: There is none.
    """
    for style in get_args(Style):
        if style == name:
            return style  # type: ignore[no-any-return]
    raise ConfigError(f"style must be one of {', '.join(get_args(Style))}, got {name!r}")
