"""Tokens coloured by expert: by how far a gate lies above its mean."""

from kshot.report import routed
from kshot.report.parts.evaluation import Evaluation
from kshot.report.parts.evaluation import TestRow as Row
from kshot.report.parts.routing import ExpertUse, RoutedAnswer, RoutedToken

NOTHING = Evaluation((), (Row("a", "What?", "", ()),))


def _use(*gates: tuple[float, ...], choices: tuple[str, ...] = ("one", "two")) -> ExpertUse:
    tokens = tuple(RoutedToken("x", gates_E) for gates_E in gates)
    return ExpertUse(choices, (), (RoutedAnswer("a", tokens), RoutedAnswer("b", ())), 2)


def test_golden_colours() -> None:
    first, second = routed.coloured_answers(_use((0.75, 0.25), (0.25, 0.75), (0.5, 0.5)), NOTHING)
    assert first.request == "What?"
    assert [token.choice for token in first.tokens] == [0, 1, 0]
    assert [token.weight for token in first.tokens] == ["1.00", "1.00", "0.00"]
    assert first.tokens[0].gates == "one 0.75, two 0.25"
    assert (second.request, second.tokens) == ("b", ())


def test_one_expert_has_every_token() -> None:
    answers = routed.coloured_answers(_use((1.0,), (1.0,), choices=("one",)), NOTHING)
    assert [(token.choice, token.weight) for token in answers[0].tokens] == [(0, "1.00"), (0, "1.00")]


def test_no_token_at_all() -> None:
    assert [answer.tokens for answer in routed.coloured_answers(_use(), NOTHING)] == [(), ()]


def test_answers_beyond_the_page_are_left_out() -> None:
    answer = RoutedAnswer("a", tuple(RoutedToken("x", (0.5, 0.5)) for _ in range(1_500)))
    use = ExpertUse(("one", "two"), (), (answer,) * 4, 4)
    assert len(routed.coloured_answers(use, NOTHING)) == routed.MAX_TOKENS // 1_500
