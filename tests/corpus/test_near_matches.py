"""Near matches: against sets of n-grams without hashes, and what counts as a question's own words."""

import random

import pytest

from kshot.corpus.near_matches import LEAST_WORDS, NGRAM, NearMatch, QuestionIndex

STORY = (
    "Nancy uploaded fifty one pictures to her page and put eleven pics into one album and the rest into "
    "eight different albums so how many were in each"
)


def _found(question: str, text: str) -> float | None:
    """Return the share of a question that a text holds, if that is a match, among unlike questions."""
    others = [f"some other thing number {number} asked" for number in range(3)]
    matches = QuestionIndex([question, *others]).matches([text])
    return matches[0].share if matches else None


def _share_by_sets(question: str, text: str) -> float:
    words, grams = question.split(), text.split()
    size = min(NGRAM, len(words))
    held = {tuple(grams[i : i + size]) for i in range(len(grams) - size + 1)}
    covered = {
        place
        for start in range(len(words) - size + 1)
        if tuple(words[start : start + size]) in held
        for place in range(start, start + size)
    }
    return len(covered) / len(words)


def test_against_sets_of_ngrams() -> None:
    draw = random.Random(0)
    vocabulary = [f"w{number}" for number in range(400)]
    questions = [" ".join(draw.sample(vocabulary, draw.randint(3, 40))) for _ in range(60)]
    texts = []
    for _ in range(300):
        words = draw.choice(questions).split()
        start = draw.randint(0, len(words))
        piece = words[start : start + draw.randint(1, 40)]
        if draw.random() < 0.5 and piece:
            piece[draw.randrange(len(piece))] = "changed"
        texts.append(" ".join([*draw.sample(vocabulary, 5), *piece, *draw.sample(vocabulary, 5)]))
    expected = []
    for place, text in enumerate(texts):
        shares = [
            (_share_by_sets(question, text), -number)
            for number, question in enumerate(questions)
            if len(question.split()) >= LEAST_WORDS
        ]
        eligible = [
            (share, number)
            for share, number in shares
            if share > (0.8 if len(questions[-number].split()) < 16 else 0.5)
        ]
        if eligible:
            share, number = max(eligible)
            expected.append(NearMatch(place, -number, share))
    assert QuestionIndex(questions).matches(texts) == expected
    assert 40 < len(expected) < 200


def test_more_than_half_of_a_long_question_is_a_match_and_half_is_not() -> None:
    words = STORY.split()
    assert len(words) == 28
    assert _found(STORY, " ".join(words[:15])) == pytest.approx(15 / 28)
    assert _found(STORY, " ".join(words[:14])) is None
    assert _found(STORY, " ".join([*words[:8], "or", *words[8:]])) == pytest.approx(28 / 28)
    assert _found(STORY, " ".join(reversed(words))) is None


def test_case_and_punctuation_do_not_count_and_operators_do() -> None:
    question = "Compute the value of x * y + z for x one, y two, z three."
    assert _found(question, "compute the value of X * Y + Z for x one y two z three!") == 1
    assert _found(question, "compute the value of x + y * z for x one y two z three") is None


def test_a_short_question_must_be_there_almost_whole() -> None:
    question = "the sun is an example of which of the following"
    assert _found(question, "a dryer is an example of which of the following controls") is None
    assert _found(question, "well the sun is an example of which of the following") == 1
    assert _found("which gas do plants breathe", "say which gas do plants breathe at night") == 1
    assert _found("which gas do plants breathe", "say which gas do plants need") is None
    assert _found("caused by a virus", "flu is caused by a virus") is None


def test_what_many_questions_share_is_no_match() -> None:
    template = (
        "read the passage below with care and choose the one correct answer to the question that follows"
    )
    questions = [f"{template} who saw animal {number} in zoo {number + 50} last" for number in range(12)]
    index = QuestionIndex(questions)
    assert index.matches([f"{template} what colour is grass"]) == []
    assert index.matches(["tell me who saw animal 3 in zoo 53 last"]) == [NearMatch(0, 3, 1.0)]


def test_the_form_of_few_shots_is_no_match_either() -> None:
    template = "write the equation for the math word problem and solve it step by step"
    shots = [f"{template} add {number} apples and {number + 40} pears to a bag" for number in range(5)]
    assert QuestionIndex(shots).matches([f"{template} divide nine cakes"]) == []
    assert [match.question for match in QuestionIndex(shots).matches([shots[4]])] == [4]


def test_of_two_questions_the_one_that_is_held_more_of_is_named() -> None:
    words = [f"w{number}" for number in range(60)]
    one, other = " ".join(words[:30]), " ".join(words[10:40])
    text = " ".join(words[8:40])
    assert QuestionIndex([one, other]).matches([text, one]) == [NearMatch(0, 1, 1.0), NearMatch(1, 0, 1.0)]


def test_words_do_not_run_from_one_text_into_the_next() -> None:
    words = STORY.split()
    assert QuestionIndex([STORY, "another"]).matches([" ".join(words[:12]), " ".join(words[12:24])]) == []


def test_nothing_among_nothing() -> None:
    assert QuestionIndex([]).matches(["some text of eight words or a few more"]) == []
    assert QuestionIndex([STORY, "x"]).matches([]) == []
    assert QuestionIndex([STORY, "x"]).matches([""]) == []


def test_letters_of_scripts_without_spaces_are_words() -> None:
    question = "北京市位于中国的北部是全国的政治中心"
    assert _found(question, f"问题：{question}？") == 1
    assert _found(question, question[:6] + "上海" + question[8:12] + "东" + question[13:]) is None
