"""Whether what a file or a user gave is a number: JSON and Python take true and false for 1 and 0."""

import math
from collections.abc import Sequence
from typing import Any, TypeGuard


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether it is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def are_finite(values: Sequence[Any]) -> bool:
    """Whether all are int or float, and none is infinite or NaN."""
    numbers = (isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return all(numbers) and all(math.isfinite(value) for value in values)
