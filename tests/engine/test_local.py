"""The engine of one process."""

from kshot.engine import LocalEngine


def test_one_worker_takes_all_shards_in_order_and_each_is_made_when_it_is_asked_for() -> None:
    said: list[str] = []

    class Shards(list[int]):
        def __getitem__(self, index):
            said.append(f"made {index}")
            return super().__getitem__(index)

    def make_worker():
        said.append("worker")
        return lambda shard: shard * shard

    found = LocalEngine().run(make_worker, Shards([3, 4]))
    assert next(found) == (0, 9)
    assert said == ["worker", "made 0"]
    assert list(found) == [(1, 16)]
    assert said == ["worker", "made 0", "made 1"]


def test_without_shards_no_worker_is_made() -> None:
    assert list(LocalEngine().run(lambda: 1 / 0, [])) == []
