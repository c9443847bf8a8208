"""The official OpenAI client against the server: chats, completions, streams, models."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import OpenAI
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from kshot.errors import ConfigError
from kshot.prompts import PromptTemplate

from .conftest import NEW_TOKENS, PROMPTS, Served

Wanted = dict[tuple[str, str], str]


def say(client: OpenAI, model: str, prompt: str, **settings):
    messages = [{"role": "user", "content": prompt}]
    return client.chat.completions.create(
        model=model, messages=messages, **{"max_tokens": NEW_TOKENS} | settings
    )


def streamed(stream: Iterator[ChatCompletionChunk]) -> tuple[str, list[ChatCompletionChunk]]:
    chunks = list(stream)
    return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices), chunks


def test_models(client: OpenAI, served: Served) -> None:
    listed = client.models.list().data
    assert [model.id for model in listed] == [model.name for model in served.models]
    shown = client.models.retrieve("nulls")
    assert (shown.id, shown.owned_by, shown.kshot["experts"][-1]) == ("nulls", "kshot", "(none)")


def at_once(ask, wanted: Wanted) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, wanted.items()))


def test_chats_against_generate(client: OpenAI, wanted: Wanted) -> None:
    def check(asked: tuple[tuple[str, str], str]) -> None:
        (model, prompt), want = asked
        answer = say(client, model, prompt)
        assert answer.choices[0].message.content == want
        assert (answer.model, answer.object) == (model, "chat.completion")
        ChatCompletion.model_validate(answer.model_dump(), strict=True)

    at_once(check, wanted)


def test_streams_against_generate(client: OpenAI, wanted: Wanted) -> None:
    def check(asked: tuple[tuple[str, str], str]) -> None:
        (model, prompt), want = asked
        text, chunks = streamed(say(client, model, prompt, stream=True))
        assert text == want
        assert chunks[0].choices[0].delta.role == "assistant"
        reasons = [chunk.choices[0].finish_reason for chunk in chunks]
        assert reasons[-1] in ("stop", "length")
        assert not any(reasons[:-1])
        assert len({chunk.id for chunk in chunks}) == 1

    at_once(check, wanted)


def test_a_stream_comes_in_pieces(client: OpenAI) -> None:
    _, chunks = streamed(say(client, "plain", "yes", stream=True, stop=None))
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.content]) > 3


def test_usage_and_reasons_to_finish(client: OpenAI, served: Served) -> None:
    answer = say(client, "tokens", "yes", max_tokens=3)
    prompt_tokens = len(served.lm.template.encode_prompt("yes"))
    assert answer.choices[0].finish_reason == "length"
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (prompt_tokens, 3)
    assert answer.usage.total_tokens == prompt_tokens + 3
    options = {"stream": True, "stream_options": {"include_usage": True}}
    _, chunks = streamed(say(client, "tokens", "yes", max_tokens=3, **options))
    assert chunks[-1].usage == answer.usage
    assert not chunks[-1].choices
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_max_completion_tokens_is_the_newer_name(client: OpenAI) -> None:
    answer = say(client, "tokens", "yes", max_tokens=None, max_completion_tokens=2)
    assert answer.usage.completion_tokens == 2


def test_stop_strings_end_an_answer_and_are_never_shown(client: OpenAI, wanted: Wanted) -> None:
    model, prompt = next(key for key, text in wanted.items() if len(text) > 8)
    whole = wanted[model, prompt]
    stop = whole[4:7]
    answer = say(client, model, prompt, stop=stop)
    assert answer.choices[0].message.content == whole[: whole.index(stop)].strip()
    assert answer.choices[0].finish_reason == "stop"
    text, _ = streamed(say(client, model, prompt, stop=["\0", stop], stream=True))
    assert text == answer.choices[0].message.content


def test_a_seed_repeats_an_answer(client: OpenAI) -> None:
    settings = {"temperature": 1.5, "top_p": 0.9}
    first, again, other = (
        say(client, "tokens", "yes", seed=seed, **settings).choices[0].message.content for seed in (3, 3, 4)
    )
    assert first == again != other


def test_chat_logprobs(client: OpenAI) -> None:
    answer = say(client, "tokens", "yes", logprobs=True, top_logprobs=2)
    content = answer.choices[0].logprobs.content
    assert len(content) == answer.usage.completion_tokens
    for token in content:
        assert token.logprob == token.top_logprobs[0].logprob > token.top_logprobs[1].logprob
        assert token.bytes is None or bytes(token.bytes).decode() == token.token
    _, chunks = streamed(say(client, "tokens", "yes", logprobs=True, top_logprobs=2, stream=True))
    parts = [chunk.choices[0].logprobs.content for chunk in chunks if chunk.choices[0].logprobs]
    assert [token for part in parts for token in part] == content


def test_completions_continue_a_text(client: OpenAI, served: Served) -> None:
    ids = served.lm.tokenizer("What is the")["input_ids"]
    alone = served.alone("tokens")
    alone.template.encode_prompt = lambda _: ids  # the plain text in place of a chat
    want = alone.generate(["What is the"], max_new_tokens=NEW_TOKENS)[0]
    for prompt in ("What is the", ids):
        answer = client.completions.create(model="tokens", prompt=prompt, max_tokens=NEW_TOKENS, logprobs=2)
        choice = answer.choices[0]
        assert choice.text.strip() == want
        assert "".join(choice.logprobs.tokens).startswith(choice.text[:3])
        assert choice.logprobs.text_offset[:1] == [0]
        assert [max(top.values()) for top in choice.logprobs.top_logprobs] == choice.logprobs.token_logprobs
        Completion.model_validate(answer.model_dump(), strict=True)
    parts = client.completions.create(model="tokens", prompt=ids, max_tokens=NEW_TOKENS, stream=True)
    assert "".join(part.choices[0].text for part in parts) == choice.text


def test_experts_behind_tokens(client: OpenAI) -> None:
    asked = {"extra_body": {"kshot": {"experts": True}}}
    answer = say(client, "tokens", "yes", **asked)
    uses = answer.kshot["experts"]
    assert "".join(use["token"] for use in uses).strip() == answer.choices[0].message.content
    assert all(use["expert"] in ("a", "b", "c") and 0 < use["weight"] <= 1 for use in uses)
    assert all(-1e-4 <= use["above_mean"] <= use["weight"] for use in uses)
    _, chunks = streamed(say(client, "tokens", "yes", stream=True, **asked))
    parts = [part for chunk in chunks if chunk.model_extra for part in chunk.model_extra["kshot"]["experts"]]
    assert parts == uses
    assert "kshot" not in say(client, "tokens", "yes").model_dump()


def test_chats_of_several_turns(client: OpenAI, served: Served) -> None:
    lm = served.alone("tokens")
    chat = [
        {"role": "system", "content": "no"},
        {"role": "user", "content": "yes"},
        {"role": "assistant", "content": "maybe"},
        {"role": "user", "content": [{"type": "text", "text": "1 "}, {"type": "text", "text": "2"}]},
    ]
    plain = [*chat[:3], {"role": "user", "content": "1 2"}]
    text = lm.tokenizer.apply_chat_template(plain, tokenize=False, add_generation_prompt=True)
    want = lm.answer_batch([lm.tokenizer(text, add_special_tokens=False)["input_ids"]], max_new_tokens=8)
    for role in ("system", "developer"):
        messages = [{**chat[0], "role": role}, *chat[1:]]
        answer = client.chat.completions.create(model="tokens", messages=messages, max_tokens=8)
        assert answer.choices[0].message.content == want[0]


def test_one_user_message_is_the_prompt_of_training(served: Served) -> None:
    for template in (served.lm.template, PromptTemplate(served.lm.tokenizer, "be brief")):
        assert template.encode_messages([{"role": "user", "content": "yes"}]) == template.encode_prompt("yes")


def test_a_chat_that_the_template_refuses(served: Served) -> None:
    tokenizer = served.alone("tokens").tokenizer
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
        "{% endif %}{{ m['content'] }}{% endfor %}"
    )
    template = PromptTemplate(tokenizer)
    assert template.encode_messages([{"role": "user", "content": "yes"}]) == template.encode_prompt("yes")
    with pytest.raises(ConfigError, match="no system role; change their roles"):
        template.encode_messages([{"role": "system", "content": "no"}])


def test_many_clients_get_their_own_experts_answers(client: OpenAI, wanted: Wanted) -> None:
    keys = [*wanted] * 4

    def ask(number: int) -> bool:
        model, prompt = keys[number]
        if number % 3 == 0:
            return streamed(say(client, model, prompt, stream=True))[0] == wanted[keys[number]]
        return say(client, model, prompt).choices[0].message.content == wanted[keys[number]]

    with ThreadPoolExecutor(32) as pool:
        assert all(pool.map(ask, range(len(keys))))


def test_ignored_fields_and_neutral_values_are_taken(client: OpenAI, wanted: Wanted) -> None:
    answer = say(
        client, "tokens", "yes", n=1, user="me", presence_penalty=0, frequency_penalty=0.0, logit_bias={},
        store=False, metadata={"a": "b"}, response_format={"type": "text"},
    )  # fmt: skip
    assert answer.choices[0].message.content == wanted["tokens", "yes"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n": 2}, "n: "),
        ({"presence_penalty": 1}, "presence_penalty: "),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is not supported here"),
        ({"temperature": 3}, "temperature: "),
        ({"max_tokens": 0}, "max_tokens: "),
        ({"stop": ["a"] * 5}, "stop"),
        ({"top_logprobs": 2}, "top_logprobs has no effect without logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options has no effect without stream"),
        ({"response_format": {"type": "json_object"}}, "response_format.type: "),
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
    ],
)
def test_what_has_no_effect_here_is_refused(client: OpenAI, settings: dict, said: str) -> None:
    messages = [{"role": "user", "content": "yes"}]
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(**{"model": "tokens", "messages": messages} | settings)
    assert refused.value.body["message"].startswith(said)
    assert refused.value.body["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [10_000_000]}, "expected token ids below"),
        ({"echo": True}, "echo: "),
        ({"suffix": "x"}, "suffix is not supported here"),
    ],
)
def test_completions_that_are_refused(client: OpenAI, settings: dict, said: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(**{"model": "tokens", "prompt": "yes"} | settings)
    assert refused.value.body["message"].startswith(said)


def test_unknown_models(client: OpenAI) -> None:
    for ask in (
        lambda: say(client, "nothing", PROMPTS[0]),
        lambda: client.completions.create(model="nothing", prompt="a"),
        lambda: client.models.retrieve("nothing"),
    ):
        with pytest.raises(openai.NotFoundError, match="expected a model among tokens, prompts") as refused:
            ask()
        assert refused.value.code == "model_not_found"


def test_prompts_beyond_the_context_name_both_lengths(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="expected 1 to 512 tokens") as refused:
        say(client, "tokens", "yes " * 600)
    assert "and max_tokens 12" in refused.value.body["message"]
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="max_tokens 512"):
        client.completions.create(model="tokens", prompt="yes", max_tokens=512)
    answer = client.completions.create(model="tokens", prompt="yes " * 251)  # what is left of the context
    assert answer.usage.total_tokens <= 512
