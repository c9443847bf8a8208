"""One tokenisation for scoring, training and generation."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from kshot.errors import ConfigError
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.prompts import Form, PromptTemplate, TokenisedExample, form_of, prompt_of, target_of

QUESTION = Example(
    "Which?\nA) red\nB) blue", "B", choices=("red", "blue"), label=1, question="Which?", rationale="It is so."
)
CONVERSATIONS = [("Hi", "Hello."), ("", "x"), ("two\n\nlines ", " spaces\n"), ("größe 🙂", "<b>{{ x }}</b>")]
REFUSES_SYSTEM = (
    "{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    "[{{ message['role'] }}] {{ message['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


@pytest.fixture
def tokenizer(tiny_lm: LanguageModel) -> PreTrainedTokenizerFast:
    found = tiny_lm.tokenizer
    assert isinstance(found, PreTrainedTokenizerFast)
    return found


@pytest.mark.parametrize(("prompt", "target"), CONVERSATIONS)
def test_against_the_rendered_chat(tokenizer: PreTrainedTokenizerFast, prompt: str, target: str) -> None:
    messages = [
        {"role": "system", "content": ""},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": target},
    ]
    chat = tokenizer.apply_chat_template(messages, tokenize=False)
    expected = tokenizer(chat, add_special_tokens=False)["input_ids"]
    last = len(expected) - expected[::-1].index(tokenizer.eos_token_id)
    encoded = PromptTemplate(tokenizer).encode(prompt, target)
    assert list(encoded.input_ids) == expected[:last]  # the template goes on with a line break


@pytest.mark.parametrize("chat_template", [None, REFUSES_SYSTEM, "as it is"])
@pytest.mark.parametrize(("prompt", "target"), CONVERSATIONS)
def test_invariant_labels_are_target_and_end_token(
    tokenizer: PreTrainedTokenizerFast, chat_template: str | None, prompt: str, target: str
) -> None:
    if chat_template != "as it is":
        tokenizer.chat_template = chat_template
    template = PromptTemplate(tokenizer)
    encoded = template.encode(prompt, target)
    scored = [token for token in encoded.labels if token != -100]
    assert tokenizer.decode(scored) == target + "<|im_end|>"
    assert len(encoded.labels) == len(encoded) == encoded.prompt_length + encoded.target_length
    assert encoded.target_length == len(scored)
    assert list(encoded.input_ids[: encoded.prompt_length]) == template.encode_prompt(prompt)


def test_golden_plain_template(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    text = tokenizer.decode(PromptTemplate(tokenizer, "Be brief.").encode("Hi", "Hello").input_ids)
    assert text == "Be brief.\n\n### Instruction:\nHi\n\n### Response:\nHello<|im_end|>"
    assert PromptTemplate(tokenizer).prompt_text("Hi") == "### Instruction:\nHi\n\n### Response:\n"


def test_plain_template_starts_as_the_tokenizer_does(tokenizer: PreTrainedTokenizerFast) -> None:
    tokenizer.chat_template = None
    start = ("<|endoftext|>", 0)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[start]
    )
    tokenizer.bos_token = "<|endoftext|>"
    ids = PromptTemplate(tokenizer).encode_prompt("Hi")
    assert ids.count(0) == 1
    assert ids[0] == 0


def test_system_role(tokenizer: PreTrainedTokenizerFast) -> None:
    assert (
        PromptTemplate(tokenizer, "Be brief.")
        .prompt_text("Hi")
        .startswith("<|im_start|>system\nBe brief.<|im_end|>")
    )
    tokenizer.chat_template = REFUSES_SYSTEM
    assert PromptTemplate(tokenizer).prompt_text("Hi") == "[user] Hi<|im_end|>[assistant] "
    with pytest.raises(ConfigError, match=r"expected a chat template with a system role.*no system role"):
        PromptTemplate(tokenizer, "Be brief.")


def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Reads the line break before `yes` and the `y` as one token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*letters, "Ċy", "<end>"])}
    backend = Tokenizer(models.BPE(vocabulary, [("Ċ", "y")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<end>")


def test_prompt_and_target_that_would_merge() -> None:
    tokenizer = merging_tokenizer()
    template = PromptTemplate(tokenizer)
    prompt = template.encode_prompt("Say yes")
    together = tokenizer(template.prompt_text("Say yes") + "yes")["input_ids"]
    assert together[: len(prompt)] != prompt  # the tokenizer does merge them
    encoded = template.encode("Say yes", "yes")
    assert list(encoded.input_ids[: encoded.prompt_length]) == prompt
    assert tokenizer.convert_ids_to_tokens(encoded.input_ids[encoded.prompt_length :]) == [
        "y",
        "e",
        "s",
        "<end>",
    ]


def test_max_length_cuts_the_prompt_from_the_left(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate(tokenizer)
    whole = template.encode("a long question", "yes")
    cut = template.encode("a long question", "yes", max_length=len(whole) - 3)
    assert cut.input_ids == whole.input_ids[3:]
    assert cut.target_length == whole.target_length
    assert template.encode("a long question", "yes", max_length=len(whole)) == whole
    shortest = template.encode("a long question", "yes", max_length=whole.target_length + 1)
    assert shortest.prompt_length == 1
    with pytest.raises(
        ConfigError, match=rf"within {whole.target_length} tokens, got a target of {whole.target_length}"
    ):
        template.encode("a long question", "yes", max_length=whole.target_length)


@pytest.mark.parametrize("prompt_length", [0, 3])
def test_a_target_needs_a_prompt(prompt_length: int) -> None:
    with pytest.raises(ConfigError, match=rf"prompt_length must be in \[1, 2\], got {prompt_length}"):
        TokenisedExample((5, 6), prompt_length)


def test_end_of_turn_of_several_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert PromptTemplate(tokenizer).end_id() == tokenizer.eos_token_id
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} [END]\n{% endfor %}"
    template = PromptTemplate(tokenizer)
    assert (template.end_of_turn, template.end_id()) == ("[END]", None)


def test_forms() -> None:
    assert (form_of("multiple_choice"), form_of("number")) == ("cloze", "instruction")
    assert form_of("multiple_choice", listed=True) == "instruction"
    assert (prompt_of(QUESTION, "cloze"), target_of(QUESTION, "cloze")) == ("Which?", "blue")
    assert prompt_of(QUESTION, "instruction") == QUESTION.instruction
    assert target_of(QUESTION, "instruction", rationale=True) == "It is so.\nB"
    assert target_of(QUESTION, "cloze", rationale=True) == "It is so.\nblue"
    plain = Example("a", "b")
    assert (prompt_of(plain, "cloze"), target_of(plain, "cloze", rationale=True)) == ("a", "b")


@pytest.mark.parametrize(("form", "answer"), [("instruction", "B"), ("cloze", "blue")])
def test_order_of_rationale_and_answer(form: Form, answer: str) -> None:
    assert target_of(QUESTION, form, rationale=True, order="answer_first") == f"{answer}\nIt is so."
    assert target_of(QUESTION, form, rationale=True, order="rationale_first") == f"It is so.\n{answer}"
    assert target_of(QUESTION, form, order="answer_first") == answer
    assert target_of(Example("a", "b"), form, rationale=True, order="answer_first") == "b"


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(ConfigError, match="order must be one of rationale_first, answer_first, got 'answer'"):
        target_of(QUESTION, "cloze", rationale=True, order="answer")  # type: ignore[arg-type]


def test_encode_example(tokenizer: PreTrainedTokenizerFast) -> None:
    template = PromptTemplate(tokenizer)
    assert template.encode_example(QUESTION, "cloze", rationale=True) == template.encode(
        "Which?", "It is so.\nblue"
    )
    answer_first = template.encode_example(QUESTION, "cloze", rationale=True, order="answer_first")
    assert answer_first == template.encode("Which?", "blue\nIt is so.")
