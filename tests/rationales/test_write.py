"""Missing rationales are written, right ones kept, wrong ones asked for again."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kshot.errors import ConfigError, ExampleError, SourceError
from kshot.examples import Example
from kshot.language_model import LanguageModel
from kshot.progress import Advance
from kshot.rationales import Answer, AnswerCache, EndpointWriter, LocalWriter, Sampling, write_rationales
from kshot.rationales.prompt import gold_answer

from .conftest import ChatServer, Scripted, says

SUMS = [
    Example(f"What is {n} + {n}?", f"The answer is {2 * n}.", answer=str(2 * n), id=f"sum-{n}")
    for n in range(6)
]


def _doubled(prompt: str) -> int:
    return 2 * int(prompt.partition("What is ")[2].partition(" ")[0])


def _right(prompt: str, sampling: Sampling) -> str:
    return f"Answer: {_doubled(prompt)}\nTwice the number, at {sampling.temperature}."


def test_missing_rationales_are_filled_in_and_others_left() -> None:
    examples = [replace(SUMS[0], rationale="Mine."), SUMS[1], replace(SUMS[2], rationale=" "), SUMS[3]]
    result = write_rationales(examples, Scripted(_right), scorer="number")
    assert [one.rationale for one in result.examples] == ["Mine."] + ["Twice the number, at 0.0."] * 3
    assert result.examples[0] is examples[0]
    assert [replace(one, rationale=None) for one in result.examples] == SUMS[:4]
    assert [(row.index, row.id, row.accepted, row.reason) for row in result.rows] == [
        (index, f"sum-{index}", True, "") for index in (1, 2, 3)
    ]
    assert (result.accepted, result.reasons) == (3, {})
    assert (result.usage.answers, result.usage.tokens_in, result.usage.tokens_out) == (3, 30, 15)


def test_a_wrong_answer_is_asked_for_again_with_a_seed() -> None:
    def say(prompt: str, sampling: Sampling) -> str:
        wanted = {0: 0.0, 2: 0.7, 4: 0.7}.get(_doubled(prompt))
        right = sampling.temperature == wanted and (_doubled(prompt) != 4 or sampling.seed == 9)
        return _right(prompt, sampling) if right else "Answer: 7\nIt seems so."

    writer = Scripted(say)
    result = write_rationales(SUMS[:4], writer, scorer="number", attempts=3, seed=8, max_new_tokens=50)
    assert [len(row.attempts) for row in result.rows] == [1, 2, 3, 3]
    assert [row.accepted for row in result.rows] == [True, True, True, False]
    assert result.examples[3] is SUMS[3]
    assert result.reasons == {"another answer than the right one": 1}
    asked = Counter(sampling for _, sampling in writer.asked)
    assert asked == {Sampling(0.0, 0, 50): 4, Sampling(0.7, 8, 50): 3, Sampling(0.7, 9, 50): 2}


def test_style_is_asked_for_and_checked() -> None:
    def say(prompt: str, sampling: Sampling) -> str:
        assert "Name the answer only after the explanation." in prompt
        return f"Twice the number.\nAnswer: {_doubled(prompt)}" if sampling.seed else _right(prompt, sampling)

    result = write_rationales(SUMS[:2], Scripted(say), scorer="number", style="reason-first", seed=1)
    assert [one.rationale for one in result.examples] == ["Twice the number."] * 2
    assert result.rows[0].attempts[0].verdict.reason == "the answer comes before the reasoning"


def test_nothing_is_asked_where_nothing_is_missing() -> None:
    writer = Scripted(_right)
    result = write_rationales([replace(one, rationale="Mine.") for one in SUMS], writer, scorer="number")
    assert (result.rows, writer.asked, result.usage.answers) == ((), [], 0)


def test_answers_are_asked_for_once(tmp_path: Path) -> None:
    first, second = Scripted(_right), Scripted(_right)
    before = write_rationales(SUMS, first, scorer="number", cache=AnswerCache(tmp_path))
    after = write_rationales(SUMS, second, scorer="number", cache=AnswerCache(tmp_path))
    assert after.examples == before.examples
    assert (len(first.asked), len(second.asked)) == (6, 0)
    assert (after.usage.answers, after.usage.cached, after.usage.tokens_in) == (0, 6, 0)
    other = Scripted(_right, {"model": "another"})
    write_rationales(SUMS, other, scorer="number", cache=AnswerCache(tmp_path))
    assert len(other.asked) == 6


def test_a_writer_that_fails_loses_nothing_it_gave(tmp_path: Path) -> None:
    def say(prompt: str, sampling: Sampling) -> str:
        if _doubled(prompt) == 2:
            raise SourceError("gone")
        return _right(prompt, sampling)

    with pytest.raises(SourceError, match="gone"):
        write_rationales(SUMS, Scripted(say), scorer="number", cache=AnswerCache(tmp_path))
    writer = Scripted(_right)
    assert write_rationales(SUMS, writer, scorer="number", cache=AnswerCache(tmp_path)).accepted == 6
    assert len(writer.asked) == 2


def test_an_empty_answer_is_not_kept_on_disk(tmp_path: Path) -> None:
    result = write_rationales(
        SUMS[:1],
        Scripted(lambda prompt, sampling: ""),
        scorer="number",
        cache=AnswerCache(tmp_path),
        attempts=2,
    )
    assert result.reasons == {"an empty answer": 1}
    assert list(tmp_path.iterdir()) == []


def test_usage_and_cost() -> None:
    def say(prompt: str, sampling: Sampling) -> Answer:
        known = _doubled(prompt) > 2
        return Answer(_right(prompt, sampling), 1000 if known else None, 200 if known else None)

    usage = write_rationales(SUMS, Scripted(say), scorer="number").usage
    assert (usage.tokens_in, usage.tokens_out, usage.uncounted) == (4000, 800, 2)
    assert usage.cost(2.5, 10) == pytest.approx(4000 * 2.5e-6 + 800 * 1e-5)
    assert usage.cost(0, 0) is None
    assert usage.cost(1, 0) == pytest.approx(0.004)


class Bars:
    """Counts what each bar is told."""

    def __init__(self) -> None:
        self.seen: list[list[Any]] = []

    def say(self, text: str) -> None:
        raise AssertionError(text)

    @contextmanager
    def bar(self, text: str, total: int) -> Iterator[Advance]:
        self.seen.append([text, total, 0])

        def advance(units: int) -> None:
            self.seen[-1][2] += units

        yield advance


def test_a_bar_for_each_attempt() -> None:
    bars = Bars()
    write_rationales(
        SUMS[:2], Scripted(lambda prompt, sampling: "no"), scorer="number", attempts=2, progress=bars
    )
    assert bars.seen == [["rationales, attempt 1", 2, 2], ["rationales, attempt 2", 2, 2]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"max_new_tokens": 0}, "max_new_tokens must be at least 1, got 0"),
        ({"temperature": 0}, r"temperature must be in \(0, 2\], got 0"),
        ({"temperature": 2.5}, r"temperature must be in \(0, 2\], got 2.5"),
        ({"temperature": float("nan")}, r"temperature must be in \(0, 2\], got nan"),
        ({"style": "both"}, "style must be one of"),
        ({"scorer": "bleu"}, "scorer of generated text must be one of"),
    ],
)
def test_settings_out_of_range(settings, message: str) -> None:
    writer = Scripted(_right)
    with pytest.raises(ConfigError, match=message):
        write_rationales(SUMS, writer, **settings)
    assert writer.asked == []


def test_rows_that_cannot_be_scored_are_refused_before_anything_is_asked() -> None:
    writer, words = Scripted(_right), Example("a", "b", id="words")
    with pytest.raises(ExampleError, match="words: expected choices and label"):
        write_rationales([words], writer, scorer="multiple_choice")
    with pytest.raises(ExampleError, match="scorer number expects a number in the answer of words"):
        write_rationales([*SUMS, words], writer, scorer="number")
    assert writer.asked == []


def test_multiple_choice_through_an_endpoint(server: ChatServer) -> None:
    sky = Example(
        "Which?", "B", choices=("red", "blue"), label=1, question="Which colour has the sky?", id="sky"
    )
    server.reply = lambda request, number: says("**Answer:** blue\n\nAir scatters blue light most.")
    result = write_rationales([sky], EndpointWriter(server.url, "m"), scorer="multiple_choice")
    assert result.examples[0].rationale == "Air scatters blue light most."
    asked = server.requests[0]["messages"][0]["content"]
    assert f"Right answer:\n{gold_answer(sky, 'multiple_choice')}\n" in asked
    assert "Choices:\n- red\n- blue\n" in asked


def test_a_local_model_as_the_writer(tiny_lm: LanguageModel, tmp_path: Path) -> None:
    settings = {"scorer": "number", "max_new_tokens": 8, "attempts": 2}
    writer = LocalWriter(tiny_lm, identity={"model": "tiny"})
    result = write_rationales(SUMS[:3], writer, cache=AnswerCache(tmp_path), **settings)
    assert result.accepted == 0  # its words are noise
    assert all(len(row.attempts) == 2 for row in result.rows)
    again = write_rationales(SUMS[:3], writer, cache=AnswerCache(tmp_path), **settings)
    assert [[a.answer for a in row.attempts] for row in again.rows] == [
        [a.answer for a in row.attempts] for row in result.rows
    ]
