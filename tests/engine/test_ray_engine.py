"""Ray with two workers on this machine: results, lost workers, errors, and what is left behind."""

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from kshot.engine import LocalEngine, RayEngine
from kshot.engine.ray_pool import RayPool
from kshot.engine.worker_plan import WorkerPlan
from kshot.errors import AdapterError, ConfigError, EngineError, SourceError

pytestmark = pytest.mark.slow
PATIENCE_S = 300  # workers import torch, which takes a minute where other tests fill the machine


class Squares:
    """Squares numbers, and notes in a folder which process did which.

    The first `together` workers wait for each other, so that each gets some shards.
    """

    def __init__(self, folder: Path, deadly: dict[int, int] | None = None, together: int = 1) -> None:
        self.folder = folder
        self.deadly = deadly or {}  # how many workers a shard kills
        self.together = together

    def __call__(self):
        with (self.folder / "made").open("a") as file:
            print(os.getpid(), file=file)
        deadline = time.monotonic() + PATIENCE_S
        while len(self.pids()) < self.together and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.square

    def square(self, number: int) -> int:
        with (self.folder / "done").open("a") as file:
            print(number, os.getpid(), file=file)
        if self.folder.joinpath("done").read_text().split().count(str(number)) <= self.deadly.get(number, 0):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.05)  # so that both workers get some
        return number * number

    def runs(self) -> Counter[int]:
        return Counter(int(line.split()[0]) for line in (self.folder / "done").read_text().splitlines())

    def pids(self) -> set[str]:
        return set((self.folder / "made").read_text().split())


class Failing:
    """Raises at a shard, or when it is made."""

    def __init__(self, error: Exception, *, at_start: bool) -> None:
        self.error = error
        self.at_start = at_start

    def __call__(self):
        if self.at_start:
            raise self.error
        return self.fail

    def fail(self, number: int) -> int:
        raise self.error


@pytest.fixture(scope="module", autouse=True)
def by_value(ray):
    """Workers of this module cannot be imported elsewhere."""
    module = sys.modules[__name__]
    ray.cloudpickle.register_pickle_by_value(module)
    yield
    ray.cloudpickle.unregister_pickle_by_value(module)


def living(pids) -> set[str]:
    return {pid for pid in pids if psutil.pid_exists(int(pid))}


def wait_until_gone(pids) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while living(pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_against_the_local_engine(ray, tmp_path) -> None:
    squares = Squares(tmp_path, together=2)
    found = dict(RayEngine(num_workers=2).run(squares, list(range(10))))
    assert found == {number: number * number for number in range(10)}
    assert squares.runs() == Counter(range(10))
    assert len(squares.pids()) == 2
    wait_until_gone(squares.pids())
    local = tmp_path / "local"
    local.mkdir()
    assert dict(LocalEngine().run(Squares(local), list(range(10)))) == found


def test_a_killed_worker_costs_its_unfinished_shard_alone(ray, tmp_path) -> None:
    squares, said = Squares(tmp_path, {3: 1}, together=2), []
    found = dict(RayEngine(num_workers=2, say=said.append).run(squares, list(range(8))))
    assert found == {number: number * number for number in range(8)}
    assert squares.runs() == Counter(range(8)) + Counter([3])
    assert len(said) == 1
    assert said[0].startswith("lost a worker, process ")
    assert said[0].endswith("; 3 will be done again")


def test_a_shard_that_kills_every_worker_is_named(ray, tmp_path) -> None:
    squares = Squares(tmp_path, {1: 99})
    with pytest.raises(
        EngineError, match="expected a result of 1, got 3 workers lost at it, the last one pro"
    ):
        list(RayEngine(num_workers=1).run(squares, [0, 1, 2]))
    assert squares.runs()[1] == 3
    wait_until_gone(squares.pids())


def test_own_errors_of_a_shard_come_through_once_as_they_are(ray) -> None:
    with pytest.raises(AdapterError) as caught:
        list(RayEngine(num_workers=2).run(Failing(AdapterError("torn: mend it"), at_start=False), [1, 2]))
    assert type(caught.value) is AdapterError
    assert str(caught.value) == "torn: mend it"
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__


def test_a_worker_that_cannot_be_made_stops_the_run_with_its_reason(ray) -> None:
    with pytest.raises(SourceError, match="no such model") as caught:
        list(RayEngine(num_workers=1).run(Failing(SourceError("no such model"), at_start=True), [1]))
    assert type(caught.value) is SourceError


def test_foreign_errors_keep_the_traceback_of_the_worker(ray) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(RayEngine(num_workers=1).run(Failing(ZeroDivisionError("by 0"), at_start=False), [1]))
    assert type(caught.value) is ZeroDivisionError
    assert "in fail" in caught.value.__notes__[0]


class DyingAtStart:
    """Kills the process that makes it."""

    def __call__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_workers_that_are_lost_as_soon_as_they_start_end_the_run(ray) -> None:
    with pytest.raises(EngineError, match="expected workers that start, got 3 lost in a row"):
        list(RayEngine(num_workers=1).run(DyingAtStart(), [1]))


def test_a_run_that_is_left_early_leaves_no_worker(ray, tmp_path) -> None:
    squares = Squares(tmp_path)
    run = RayEngine(num_workers=2).run(squares, list(range(50)))
    assert next(run)[0] in (0, 1)
    run.close()
    wait_until_gone(squares.pids())
    assert len(squares.runs()) < 50


def wait_for_event(pool: RayPool) -> object:
    while (event := pool.next_event()) is None:
        pass
    return event


def test_where_no_machine_has_room_the_run_ends(ray) -> None:
    pool = RayPool(ray, WorkerPlan(1, 64, 0), LocalEngine, place_timeout_s=2)
    with pytest.raises(
        EngineError, match="a machine with 64 free cores and 0 free GPUs for a worker, got none"
    ):
        wait_for_event(pool)
    pool.close()


def test_a_process_that_cannot_start_is_no_lost_worker(ray) -> None:
    pool = RayPool(ray, WorkerPlan(1, 0, 0), LocalEngine)  # torch refuses 0 threads
    with pytest.raises(
        EngineError, match=r"a worker cannot be started: RuntimeError: .*the same Python, Ray and"
    ):
        wait_for_event(pool)
    pool.close()


def test_more_workers_than_cores_are_refused(ray) -> None:
    with pytest.raises(ConfigError, match="at most 2 workers, one a core of the cluster, got 3"):
        list(RayEngine(num_workers=3).run(LocalEngine, [1, 2, 3]))


def test_a_ray_that_was_there_stays(ray) -> None:
    with RayEngine(num_workers=1) as engine:
        assert list(engine.run(Failing, [])) == []
    assert ray.is_initialized()


PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from kshot.engine import RayEngine

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    notes = Path(sys.argv[1])

    def make_worker(notes=notes):
        with notes.open("a") as file:
            print(os.getpid(), file=file)
        return work

    def work(shard, first=notes.with_name("first")):
        if not first.exists():
            first.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(600)

    try:
        with RayEngine(num_workers=2, say=print) as engine:
            list(engine.run(make_worker, ["one", "two"]))
    except KeyboardInterrupt:
        print("stopped")
"""


def test_a_program_prints_nothing_of_ray_and_interrupted_leaves_no_process(tmp_path) -> None:
    notes = tmp_path / "pids"
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, notes],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE_S
    while not notes.exists() or len(notes.read_text().splitlines()) < 3:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=300)
    lost, stopped = output.splitlines()
    assert re.fullmatch(r"lost a worker, process \d+ on .*: .*; (one|two) will be done again", lost)
    assert stopped == "stopped"
    assert "ray" not in errors.lower()
    wait_until_gone([str(child.pid) for child in started] + notes.read_text().split())
