"""Results as they come, failures at once."""

import threading
import time

import pytest

from kshot.endpoint.threads import in_threads


@pytest.mark.parametrize(("count", "num_threads"), [(0, 3), (1, 3), (7, 1), (20, 4)])
def test_every_index_is_worked_on_once(count: int, num_threads: int) -> None:
    assert sorted(in_threads(lambda index: index**2, count, num_threads)) == [(i, i**2) for i in range(count)]


def test_as_many_at_once_as_asked() -> None:
    meeting = threading.Barrier(3, timeout=5)  # broken unless three are under way together
    assert len(list(in_threads(lambda index: meeting.wait(), 6, 3))) == 6


def test_a_result_comes_before_a_slow_one_is_done() -> None:
    go_on = threading.Event()
    results = in_threads(lambda index: index == 1 or go_on.wait(5), 2, 2)
    assert next(results) == (1, True)
    go_on.set()
    assert next(results) == (0, True)


def test_the_first_failure_is_raised_and_nothing_more_begun() -> None:
    begun = []

    def work(index: int) -> int:
        begun.append(index)
        if index == 2:
            raise KeyError("two")
        return index

    with pytest.raises(KeyError, match="two"):
        list(in_threads(work, 100, 1))
    assert begun == [0, 1, 2]


def test_nothing_is_begun_before_the_last_result_is_dealt_with() -> None:
    begun: list[int] = []
    results = in_threads(begun.append, 3, 1)
    for number in range(3):
        next(results)
        time.sleep(0.02)
        assert begun == list(range(number + 1))


def test_nothing_more_is_begun_for_a_reader_that_leaves() -> None:
    begun = []
    results = in_threads(lambda index: begun.append(index) or time.sleep(0.01), 1000, 2)
    next(results)
    results.close()
    time.sleep(0.05)
    seen = len(begun)
    time.sleep(0.05)
    assert len(begun) == seen < 1000
