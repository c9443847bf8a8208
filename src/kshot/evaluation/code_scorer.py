"""Scorer `code`: a program is right if the row's tests run through, in the sandbox (pass@1, greedy).

That they did is said by the harness in the process that ran them, marked with a token of the run: to print
"passed", to exit early or to be killed proves nothing. A program that was written against this harness could
still lie: it shares an interpreter with its tests, so it can look for the token in the frames of its callers,
or return objects that equal everything. No harness that runs asserts in the program's own process rules this
out; it matters where a model is trained on the verdict, less where one is measured.
"""

import ast
import re

from kshot.errors import ExampleError
from kshot.evaluation.inside import text_of
from kshot.evaluation.sandbox import Outcome, open_sandbox
from kshot.examples import Example

PASSED = "passed"
_BLOCK = re.compile(
    r"^[ \t]*```[ \t]*(?P<kind>[\w+.-]*)[^\n]*\n(?P<code>.*?)(?:^[ \t]*```|\Z)", re.MULTILINE | re.DOTALL
)
_PYTHON = {"", "python", "python3", "py"}


def code(prediction: str, example: Example) -> bool:
    """Say whether the program in an answer passes the tests that the example's `answer` holds.

    Raises:
        ExampleError: The example has no tests.
        SandboxError: The sandbox cannot be started.
    """
    return outcome_of_tests(prediction, example) == PASSED


def outcome_of_tests(prediction: str, example: Example) -> str:
    """Return `passed`, or what went wrong in one line.

    Args:
        prediction: What the model wrote; see `program_of`.
        example: `answer` holds Python that raises where the program is wrong, such as asserts.

    Raises:
        As `code`.
    """
    tests = asserts_of(example)
    outcome: Outcome = open_sandbox().run(
        text_of("run_tests"), {"program": program_of(prediction), "tests": tests}
    )
    return PASSED if outcome.value is True else outcome.problem or "ended without a verdict"


def asserts_of(example: Example) -> str:
    """Return the tests of an example.

    Raises:
        ExampleError: It has none, or they are no Python.
    """
    tests = (example.answer or "").strip()
    expected = (
        f"scorer code expects Python tests in the answer of {example.id or 'the example'}, such as asserts"
    )
    if not tests:
        raise ExampleError(f"{expected}, got none: add them, or use scorer exact_match")
    try:
        statements = ast.parse(tests).body
    except (SyntaxError, ValueError) as error:
        raise ExampleError(f"{expected}, got {tests[:60]!r}: {error}; mend them") from error
    if not any(isinstance(node, ast.Assert | ast.Call) for part in statements for node in ast.walk(part)):
        raise ExampleError(f"{expected}, got {tests[:60]!r}, which asserts nothing and calls nothing")
    return tests


def program_of(prediction: str) -> str:
    """Return the first fenced block of Python, the whole text where nothing is fenced.

    A block that is cut off counts up to its end, so that a cut answer is judged by what is there.
    """
    for block in _BLOCK.finditer(prediction):
        if block["kind"].lower() in _PYTHON:
            return block["code"]
    return prediction
