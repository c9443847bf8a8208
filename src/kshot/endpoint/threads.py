"""Run a function over numbers in a few threads, and hand out results as they come."""

import threading
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import TypeVar

R = TypeVar("R")


def in_threads(work: Callable[[int], R], count: int, num_threads: int) -> Iterator[tuple[int, R]]:
    """Yield (index, work(index)) for every index below `count`, in the order in which they are done.

    A thread begins the next index only when the reader has come back for another result, so that no more than
    `num_threads` are under way or not yet dealt with. The first failure is raised at once, and no further
    index is begun. The threads are daemons: a program that ends, or is interrupted, does not wait for calls
    under way.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    for index in range(count):
        waiting.put(index)
    done: SimpleQueue[tuple[int, R] | BaseException] = SimpleQueue()
    stopped, free = threading.Event(), threading.Semaphore(num_threads)

    def run() -> None:
        while free.acquire() and not stopped.is_set():
            try:
                index = waiting.get_nowait()
            except Empty:
                return
            try:
                done.put((index, work(index)))
            except BaseException as error:
                done.put(error)
                return

    try:
        for _ in range(min(num_threads, count)):
            threading.Thread(target=run, daemon=True).start()
        for _ in range(count):
            result = done.get()
            if isinstance(result, BaseException):
                raise result
            yield result
            free.release()
    finally:
        stopped.set()
        free.release(num_threads)
