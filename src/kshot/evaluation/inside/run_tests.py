"""Runs inside the sandbox: an answer's program, then the tests of the row, in one module."""

import sys
from types import ModuleType
from typing import Any


def main(data: dict[str, str]) -> bool:
    """Return True once the tests are through; whatever they or the program raise is passed on.

    Args:
        data: `program`, which is not trusted, and `tests`.
    """
    tests = compile(data["tests"], "<tests>", "exec")
    run: Any = exec  # held here, as a program may put something else in its place
    module = ModuleType("answer")  # so that what stands below `if __name__ == "__main__"` is left out
    sys.modules["answer"] = module
    run(compile(data["program"], "<answer>", "exec"), module.__dict__)
    run(tests, module.__dict__)
    return True
