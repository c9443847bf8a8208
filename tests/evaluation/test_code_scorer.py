"""Scorer `code`: programs against tests, and answers that claim to have passed."""

import os
from pathlib import Path

import pytest

from kshot.endpoint import in_threads
from kshot.errors import ExampleError
from kshot.evaluation.code_scorer import PASSED, asserts_of, code, outcome_of_tests, program_of
from kshot.evaluation.sandbox import Sandbox
from kshot.examples import Example, read_examples

TESTS = "assert add(1, 2) == 3\nassert add('a', 'b') == 'ab'"
ADD = Example("Write a function that adds.", "def add(a, b):\n    return a + b", answer=TESTS, id="add")

pytestmark = pytest.mark.usefixtures("real_sandbox")


@pytest.mark.parametrize(
    "answer",
    [
        ADD.output,
        f"Here it is:\n```python\n{ADD.output}\n```\nIt adds.\n```\nadd(1, 2)\n```",
        f"```bash\npip install add\n```\n```py\n{ADD.output}",
        f"{ADD.output}\nprint('x' * 10**6)\nif __name__ == '__main__':\n    assert add(1, 1) == 3",
        "from dataclasses import dataclass\n@dataclass\nclass P:\n  x: 'int'\nadd = lambda a, b: P(a + b).x",
    ],
)
def test_right_programs(answer: str) -> None:
    assert outcome_of_tests(answer, ADD) == PASSED


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("def add(a, b):\n    return a - b", "AssertionError"),
        ("def add(a, b):\n    return a + b + 0", "TypeError"),
        ("def sum(a, b):\n    return a + b", "NameError"),
        ("I add them.", "SyntaxError"),
        ("", "NameError"),
        ("def add(a, b):\n    return\n\0", "SyntaxError"),
        ("import os\nos._exit(0)", "ended with code 0"),
        ("raise SystemExit(0)", "SystemExit"),
        ("print('passed')\nprint(True)\nraise SystemExit", "SystemExit"),
        ("def add(a, b):\n    return add(a, b)", "RecursionError"),
        ("import threading\nthreading.Thread(target=lambda: None).start()\n1 / 0", "ZeroDivisionError"),
        ("import builtins\nbuiltins.exec = lambda *a: None", "NameError"),
        ("(" * 5000, "SyntaxError|MemoryError|RecursionError"),
    ],
)
def test_wrong_programs(answer: str, outcome: str) -> None:
    assert outcome_of_tests(answer, ADD).startswith(tuple(outcome.split("|")))
    assert not code(answer, ADD)


def test_the_program_that_is_run() -> None:
    assert program_of("no fence") == "no fence"
    assert program_of("```\na\n```") == "a\n"
    assert program_of("```python\na\n") == "a\n"
    assert program_of("```sql\na\n```\n```python\nb\n```\n```python\nc\n```") == "b\n"
    assert program_of("```js\na\n```") == "```js\na\n```"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "Python tests in the answer of x, such as asserts, got none"),
        ("  ", "got none: add them"),
        ("the sum is 3", "got 'the sum is 3': invalid syntax"),
        ("x = 3", "asserts nothing and calls nothing"),
    ],
)
def test_rows_without_tests_are_named(answer: str | None, message: str) -> None:
    with pytest.raises(ExampleError, match=message):
        asserts_of(Example("ask", "def f(): pass", answer=answer, id="x"))


@pytest.mark.real
@pytest.mark.parametrize("mutated", [False, True])
def test_against_mbpp(real_sandbox: Sandbox, mutated: bool) -> None:
    """Reference programs pass; such that return what nobody asked for fail."""
    path = Path(os.environ.get("KSHOT_DATA", "")) / "tasks" / "mbpp" / "test.parquet"
    if "KSHOT_DATA" not in os.environ or not path.exists():
        pytest.skip("KSHOT_DATA names no folder with tasks/mbpp/test.parquet")
    rows = read_examples(path)

    def run(index: int) -> str:
        program = rows[index].output
        return outcome_of_tests(program + SPOILED if mutated else program, rows[index])

    outcomes = dict(in_threads(run, len(rows), len(os.sched_getaffinity(0))))
    passed = [rows[index].id for index, outcome in outcomes.items() if outcome == PASSED]
    assert len(passed) == (0 if mutated else len(rows)), outcomes


SPOILED = """
def _spoil():
    from types import FunctionType
    for name, value in list(globals().items()):
        if isinstance(value, FunctionType):
            globals()[name] = lambda *a, **k: ("not", "asked", "for")
_spoil()
"""
