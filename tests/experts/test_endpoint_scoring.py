"""Scores from a server against scores computed here, what is sent for them and what is kept."""

import sys
from typing import Any

import pytest

from kshot.bank import Bank
from kshot.config import EndpointConfig
from kshot.errors import ConfigError, ExampleError, MissingExtraError
from kshot.examples import Example
from kshot.experts import ScoreStore, score_experts
from kshot.experts.endpoint_names import check_names

from ..endpoint.server import Reply, fails
from .completions_server import BASE
from .shots import QUESTIONS, SHOTS


@pytest.mark.parametrize("knows", [("prompt_logprobs",), ("echo",)])
def test_against_scores_computed_here(knows, tiny_lm, bank, score_at, serve) -> None:
    server = serve(knows=knows)
    told: list[str] = []
    done: list[int] = []
    found = score_at(server, on_score=lambda score: told.append(score.name), progress=done.append)
    local = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    assert [score.name for score in found] == bank.names == sorted(told)
    assert found.failures == {}
    assert sum(done) == len(bank) * len(SHOTS)
    for one, other in zip(found, local, strict=True):
        assert one.shot_nll == pytest.approx(other.shot_nll, rel=1e-4)
        for field in ("reasoning_ppl", "answer_first_ppl", "mean_nll", "median_nll"):
            assert getattr(one, field) == pytest.approx(getattr(other, field), rel=1e-4)
        for field in ("accuracy", "shot_answer", "shot_correct", "shot_margin", "n", "num_rationales"):
            assert getattr(one, field) == getattr(other, field)
        assert one.num_tokens == other.num_tokens
        assert one.seconds > 0
    assert len({score.shot_answer for score in found}) > 1


def test_multiple_choice_against_scores_computed_here(tiny_lm, bank, score_at, serve) -> None:
    found = score_at(serve(), QUESTIONS, scorer="multiple_choice")
    local = score_experts(tiny_lm, bank, QUESTIONS, scorer="multiple_choice")
    for one, other in zip(found, local, strict=True):
        assert one.shot_answer == other.shot_answer
        assert one.shot_margin == pytest.approx(other.shot_margin, rel=1e-3, abs=1e-4)


def test_what_is_sent(base, score_at, serve) -> None:
    server = serve(prefix="mine/")
    score_at(server, SHOTS[1:2], prefix="mine/")
    ids = list(base.template.encode("say cat", "the cat").input_ids)
    asked = {"path": "/v1/completions", "model": "mine/first", "temperature": 0}
    likelihood = asked | {"prompt": ids, "max_tokens": 1, "prompt_logprobs": 1}
    greedy = {"repetition_penalty": 1.0, "return_token_ids": True, "stop_token_ids": list(base.end_ids)}
    answer = asked | {"prompt": base.template.encode_prompt("say cat"), "max_tokens": 4} | greedy
    assert [one for one in server.completions if one["model"] == "mine/first"] == [likelihood, answer]
    assert server.completions[0] == likelihood | {"model": BASE}


def test_names_at_the_server(score_at, serve) -> None:
    server = serve(prefix="x-")
    names = {"first": "x-second", "second": "x-first"}
    crossed = score_at(server, names=names)
    straight = score_at(server, prefix="x-")
    assert [one.shot_nll for one in crossed] == [one.shot_nll for one in straight][::-1]


def test_a_name_for_an_adapter_that_there_is_not(bank) -> None:
    endpoint = EndpointConfig(url="http://localhost/v1", names={"frist": "x"})
    with pytest.raises(
        ConfigError, match=r"experts\.endpoint\.names: expected names .* got 'frist'; .* first"
    ):
        check_names(bank, endpoint)


def test_a_server_that_refuses_what_it_does_not_know(bank, score_at, serve) -> None:
    server = serve(knows=("echo",))
    own = {"path", "model", "prompt", "temperature", "max_tokens", "echo", "logprobs", "stop"}

    def strict(request: dict[str, Any], number: int) -> Reply:
        strange = sorted({*request} - own)
        return fails(400, f"Unrecognized: {strange}") if strange else server.honest(request, number)

    server.reply = strict
    assert [score.name for score in score_at(server)] == bank.names
    assert server.completions[-1]["stop"] == ["<|im_end|>"]


def test_text_after_an_end_that_the_server_did_not_stop_at(tiny_lm, bank, score_at, serve) -> None:
    server = serve(knows=("echo",))
    server.change(lambda choice: choice.update(text=f" {choice['text']}<|im_end|> and on \ud83d"))
    local = score_experts(tiny_lm, bank, SHOTS, max_new_tokens=4)
    for one, other in zip(score_at(server), local, strict=True):
        assert one.shot_answer == other.shot_answer


def test_what_is_known_needs_no_server_and_is_nobody_elses(score_at, serve, tmp_path) -> None:
    server = serve()
    path = tmp_path / "scores.jsonl"
    known = score_at(server, store=ScoreStore(path))
    asked = len(server.requests)
    again = score_at(server, store=ScoreStore(path))
    assert len(server.requests) == asked
    assert [one.shot_nll for one in again] == [one.shot_nll for one in known]
    lines = len(path.read_text().splitlines())
    score_at(serve(), store=ScoreStore(path))  # at another address
    assert len(path.read_text().splitlines()) == 2 * lines


def test_bad_input_is_refused_before_anything_is_asked(score_at, serve, monkeypatch) -> None:
    server = serve()
    with pytest.raises(ConfigError, match="got an empty bank"):
        score_at(server, bank=Bank([]))
    with pytest.raises(ExampleError, match="expected at least one shot"):
        score_at(server, [])
    with pytest.raises(ExampleError, match="shot endless: expected at most 512 tokens"):
        score_at(server, [Example("count", "yes " * 600, id="endless")])
    with pytest.raises(ConfigError, match="expected an endpoint such as"):
        score_at(server, url="localhost:8000")
    with pytest.raises(ConfigError, match=r"put the key into .* name it with experts\.endpoint\.api_key_env"):
        score_at(server, url="http://me:pass@localhost/v1")
    with pytest.raises(ConfigError, match="in the environment variable NOT_SET"):
        score_at(server, api_key_env="NOT_SET")
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'kshot\[endpoint\]'"):
        score_at(server)
    assert server.requests == []
