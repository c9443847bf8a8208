"""Many answers at once: what is run keeps its order and its reasons."""

import pytest

from kshot.errors import ConfigError, ExampleError
from kshot.evaluation.judging import check_golds, judge_all, judge_of
from kshot.evaluation.sandbox import Sandbox
from kshot.examples import Example

ONE = Example("f is 1", "def f(): return 1", answer="assert f() == 1", id="one")
TWO = Example("f is 2", "def f(): return 2", answer="assert f() == 2", id="two")
QUERY = Example("CREATE TABLE t (a INT)", "SELECT a FROM t", id="query")


def test_programs_in_order(real_sandbox: Sandbox) -> None:
    counted: list[int] = []
    answers = [ONE.output, ONE.output, "1 / 0", TWO.output]
    verdicts = judge_all("code", answers, [ONE, TWO, ONE, TWO], counted.append)
    assert [verdict.correct for verdict in verdicts] == [True, False, False, True]
    outcomes = [verdict.details["outcome"] for verdict in verdicts]
    assert outcomes == ["passed", "AssertionError", "ZeroDivisionError: division by zero", "passed"]
    assert counted == [1] * 4


def test_queries(real_sandbox: Sandbox) -> None:
    verdicts = judge_all("sql", ["SELECT t.a FROM t", "SELECT b FROM t"], [QUERY, QUERY])
    assert [verdict.correct for verdict in verdicts] == [True, False]
    assert verdicts[0].details == {"outcome": "same results"}
    assert judge_of("sql")("SELECT t.a FROM t", QUERY)


def test_texts_are_not_run() -> None:
    counted: list[int] = []
    verdicts = judge_all("normalised_match", ["The cat", "dog"], [Example("a", "cat")] * 2, counted.append)
    assert [(verdict.correct, verdict.details) for verdict in verdicts] == [(True, {}), (False, {})]
    assert counted == []


def test_a_row_without_tests_stops_all(real_sandbox: Sandbox) -> None:
    with pytest.raises(ExampleError, match="Python tests in the answer of bare"):
        judge_all("code", ["a", "b"], [ONE, Example("a", "b", id="bare")])


def test_golds_are_checked(real_sandbox: Sandbox) -> None:
    check_golds("code", [ONE, TWO])
    check_golds("sql", [QUERY])
    check_golds("exact_match", [ONE])
    with pytest.raises(ExampleError, match="one: expected choices and label"):
        check_golds("multiple_choice", [ONE])
    with pytest.raises(ConfigError, match="did you mean 'code'"):
        check_golds("codes", [ONE])
