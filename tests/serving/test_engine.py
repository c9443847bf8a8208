"""Continuous batching: every answer as if it were alone, whatever joins and leaves beside it."""

import random
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from kshot.errors import ConfigError
from kshot.language_model import LanguageModel
from kshot.mixture import build_mixture, collect_routing
from kshot.serving.engine import Engine, QueueFullError
from kshot.serving.generation import Generation, GenerationFailedError, Piece

from .calls import wait_until
from .conftest import NEW_TOKENS, PROMPTS, Served


class Answer:
    """Collects the pieces of one generation."""

    def __init__(self, engine: Engine, generation: Generation) -> None:
        self.pieces: list[Piece] = []
        self.failure: GenerationFailedError | None = None
        self.ended = threading.Event()
        self.cancel = engine.submit(generation, self._take)

    def _take(self, piece: Piece | GenerationFailedError) -> None:
        if isinstance(piece, GenerationFailedError):
            self.failure = piece
            self.ended.set()
            return
        self.pieces.append(piece)
        if piece.finish_reason:
            self.ended.set()

    def text(self) -> str:
        assert self.ended.wait(30)
        assert self.failure is None
        return "".join(piece.text for piece in self.pieces)

    @property
    def tokens(self) -> list:
        return [token for piece in self.pieces for token in piece.tokens]


def asked(served: Served, name: str, prompt: str, **settings) -> Generation:
    adapter = next(model.adapter for model in served.models if model.name == name)
    ids = tuple(served.lm.template.encode_prompt(prompt))
    stop = (served.lm.template.end_of_turn,)
    return Generation(adapter, ids, **{"max_tokens": NEW_TOKENS, "strip": True, "stop": stop} | settings)


@pytest.fixture(scope="module")
def engine(served: Served) -> Iterator[Engine]:
    one = Engine(served.lm, max_rows=7, max_batch_tokens=2000)
    yield one
    one.close()


def test_against_generate_with_rows_that_join_and_leave(
    served: Served, engine: Engine, wanted: dict[tuple[str, str], str]
) -> None:
    assert len({*wanted.values()}) > 20  # of 25: experts and prompts are told apart
    order = [*wanted] * 2
    random.Random(1).shuffle(order)
    answers = []
    for number, (name, prompt) in enumerate(order):
        answers.append(Answer(engine, asked(served, name, prompt)))
        if number % 4 == 0:
            time.sleep(0.01)  # so that some join a batch that is under way
    assert [answer.text() for answer in answers] == [wanted[key] for key in order]
    wait_until(lambda: engine.num_running == engine.num_waiting == 0)


def test_rows_of_different_lengths_leave_at_different_times(served: Served, engine: Engine) -> None:
    long = served.alone("prompts").generate(PROMPTS, max_new_tokens=40)
    jobs = [(prompt, count) for count in (1, 3, 40, 2) for prompt in PROMPTS]
    answers = [Answer(engine, asked(served, "prompts", prompt, max_tokens=count)) for prompt, count in jobs]
    for (prompt, count), answer in zip(jobs, answers, strict=True):
        text, want = answer.text(), long[PROMPTS.index(prompt)]
        assert want.startswith(text) if count < 40 else want == text


def test_a_seed_gives_one_answer_whatever_is_beside_it(served: Served, engine: Engine) -> None:
    sampled = asked(served, "tokens", "yes", temperature=1.0, top_p=0.95, seed=11)
    alone = Answer(engine, sampled).text()
    others = [
        Answer(engine, asked(served, name, prompt, temperature=1.3))
        for name in ("prompts", "plain")
        for prompt in PROMPTS
    ]
    beside = Answer(engine, sampled)
    assert beside.text() == alone
    assert Answer(engine, replace(sampled, seed=12)).text() != alone
    assert all(other.text() is not None for other in others)


def test_logprobs_are_those_of_the_model(served: Served, engine: Engine) -> None:
    answer = Answer(engine, asked(served, "tokens", "yes", top_logprobs=3, strip=False))
    answer.text()
    lm = served.alone("tokens")
    prompt = lm.template.encode_prompt("yes")
    with torch.inference_mode():
        ids = lm.model.generate(torch.tensor([prompt]), max_new_tokens=NEW_TOKENS, do_sample=False)
        want_TV = lm.model(input_ids=ids).logits[0].log_softmax(-1)
    for place, token in enumerate(answer.tokens):
        here_V = want_TV[len(prompt) + place - 1]
        assert token.chosen.logprob == pytest.approx(float(here_V[ids[0, len(prompt) + place]]), abs=1e-4)
        got = [one.logprob for one in token.likeliest]
        assert got == pytest.approx(here_V.topk(3).values.tolist(), abs=1e-4)
        assert token.chosen == token.likeliest[0]


def _gates(served: Served, name: str, prompt: str) -> tuple[int, torch.Tensor, tuple[str, ...]]:
    """Return the length of the prompt, the gates of prompt and answer (T, E) in one pass, and their names."""
    lm = served.alone(name)
    prompt_ids = lm.template.encode_prompt(prompt)
    with torch.inference_mode():
        ids = lm.model.generate(torch.tensor([prompt_ids]), max_new_tokens=NEW_TOKENS, do_sample=False)
        with collect_routing(lm.model, keep_tokens=True) as routing:
            lm.model(input_ids=ids)
    ids = ids[0, :-1] if ids[0, -1] == lm.tokenizer.eos_token_id else ids[0]
    gates_TE = torch.stack([module.tokens[0][0] for module in routing.modules.values()]).mean(0)
    return len(prompt_ids), gates_TE[: len(ids) - 1], routing.choices


@pytest.mark.parametrize("name", ["tokens", "nulls"])
def test_experts_are_those_whose_gate_rises_most(served: Served, engine: Engine, name: str) -> None:
    answer = Answer(engine, asked(served, name, "yes", experts=True, strip=False))
    beside = Answer(engine, asked(served, "tokens", PROMPTS[2], experts=True))
    base = Answer(engine, asked(served, served.models[-1].name, "yes", experts=True))
    text = answer.text()
    prompt_length, gates_TE, choices = _gates(served, name, "yes")
    assert len(answer.tokens) == len(gates_TE) + 1 - prompt_length > 1
    largest = 0
    for place, token in enumerate(answer.tokens, start=prompt_length - 1):
        above_E = gates_TE[place] - gates_TE[: place + 1].mean(0)
        choice = int(above_E.argmax())
        assert token.use.expert == choices[choice]
        assert token.use.weight == pytest.approx(float(gates_TE[place, choice]), abs=1e-4)
        assert token.use.above_mean == pytest.approx(float(above_E[choice]), abs=1e-4)
        largest += choice == int(gates_TE[place].argmax())
    assert largest < len(answer.tokens)  # not the same as the largest gate
    assert "".join(token.text for token in answer.tokens) == text
    assert beside.text() is not None
    assert all(token.use for token in beside.tokens)
    assert base.text() is not None
    assert not any(token.use for token in base.tokens)


def test_where_gates_stand_still_it_is_the_expert_with_the_largest(served: Served, engine: Engine) -> None:
    answer = Answer(engine, asked(served, "prompts", "yes", experts=True))
    answer.text()
    with torch.inference_mode():
        lm = served.alone("prompts")
        prompt_ids = torch.tensor([lm.template.encode_prompt("yes")])
        with collect_routing(lm.model) as routing:
            lm.model(input_ids=prompt_ids)
    overall = routing.overall()
    expected = max(overall, key=lambda name: overall[name])
    assert {token.use.expert for token in answer.tokens} == {expected}
    assert all(token.use.weight == pytest.approx(overall[expected], abs=1e-4) for token in answer.tokens)
    assert all(token.use.above_mean == pytest.approx(0, abs=1e-4) for token in answer.tokens)


def test_a_cancelled_row_leaves(served: Served, engine: Engine) -> None:
    answer = Answer(engine, asked(served, "tokens", "yes", max_tokens=400, temperature=2.0, stop=()))
    while not answer.pieces:
        time.sleep(0.001)
    answer.cancel()
    wait_until(lambda: engine.num_running == 0)
    assert len(answer.tokens) < 400


def test_a_receiver_that_raises_loses_its_row_alone(
    served: Served, engine: Engine, wanted: dict[tuple[str, str], str]
) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("event loop is closed")

    engine.submit(asked(served, "tokens", "no maybe"), broken)
    assert Answer(engine, asked(served, "tokens", "yes")).text() == wanted["tokens", "yes"]


def test_the_queue_is_bounded_and_cancelled_requests_free_it(served: Served) -> None:
    engine = Engine(served.lm, max_rows=1, max_waiting=2)
    long = asked(served, "tokens", "yes", max_tokens=400, temperature=2.0, seed=1, stop=())
    first = Answer(engine, long)
    while not engine.num_running:
        time.sleep(0.001)
    waiting = [Answer(engine, long) for _ in range(2)]
    assert not engine.is_ready
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        Answer(engine, long)
    for answer in waiting:
        answer.cancel()
    wait_until(lambda: engine.num_waiting == 0)
    assert engine.is_ready
    first.cancel()
    engine.close()


def test_the_batch_is_bounded_by_its_tokens(served: Served) -> None:
    engine = Engine(served.lm, max_batch_tokens=100)
    assert engine.max_length == 100
    most = 0
    answers = [Answer(engine, asked(served, "tokens", "yes", max_tokens=10)) for _ in range(12)]
    while not all(answer.ended.is_set() for answer in answers):
        most = max(most, engine.num_running)
    assert most == 100 // asked(served, "tokens", "yes", max_tokens=10).longest
    engine.close()


def test_closing_fails_what_is_left(served: Served) -> None:
    engine = Engine(served.lm, max_rows=1)
    long = asked(served, "tokens", "yes", max_tokens=400, temperature=2.0, stop=())
    answers = [Answer(engine, long) for _ in range(2)]
    while not engine.num_running:
        time.sleep(0.001)
    engine.close()
    assert not engine.is_alive
    assert not engine.is_ready
    assert all(answer.ended.wait(5) for answer in answers)
    assert all("shutting down" in str(answer.failure) for answer in answers)
    with pytest.raises(QueueFullError):
        Answer(engine, long)


def test_a_failing_pass_fails_its_rows_and_no_others(
    served: Served, wanted: dict[tuple[str, str], str], caplog: pytest.LogCaptureFixture
) -> None:
    engine = Engine(served.lm)
    bad = replace(asked(served, "tokens", "yes"), adapter="no-such-adapter")
    answer = Answer(engine, bad)
    assert answer.ended.wait(10)
    assert "see the log" in str(answer.failure)
    assert "no-such-adapter" in caplog.text
    assert Answer(engine, asked(served, "tokens", "yes")).text() == wanted["tokens", "yes"]
    engine.close()


def test_limits_below_one_are_refused(served: Served) -> None:
    for setting in ("max_rows", "max_batch_tokens", "max_waiting"):
        with pytest.raises(ConfigError, match=f"{setting} must be at least 1, got 0"):
            Engine(served.lm, **{setting: 0})


def test_against_generate_with_a_sliding_window(served: Served) -> None:
    torch.manual_seed(1)
    config = MistralConfig(
        vocab_size=len(served.lm.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, sliding_window=6, initializer_range=0.3,
        max_position_embeddings=512, eos_token_id=served.lm.tokenizer.eos_token_id,
    )  # fmt: skip
    lm = LanguageModel(MistralForCausalLM(config).eval(), served.lm.tokenizer)
    want = lm.generate(PROMPTS, max_new_tokens=NEW_TOKENS)
    folder = served.folders["plain"]
    lm.model = build_mixture(lm.model, {"some": folder}, fixed_gates=[1.0], adapter_name="served-0").eval()
    engine = Engine(lm, max_rows=3)
    base = served.models[-1].name
    answers = [Answer(engine, asked(served, base, prompt)) for prompt in PROMPTS]
    assert [answer.text() for answer in answers] == want
    engine.close()
