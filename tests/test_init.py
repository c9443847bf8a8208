"""`kshot init`: the folder it writes is a task that can be read, and its parts do not overlap."""

from pathlib import Path

import pytest

from kshot.config import read_task
from kshot.corpus import fingerprint, read_pool, rows_to_avoid
from kshot.errors import ConfigError
from kshot.examples import read_examples
from kshot.init import NUM_SHOTS, NUM_TEST, write_task_folder


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("init")
    (folder / "bank").mkdir()
    return write_task_folder(folder / "task", bank=folder / "bank")


def test_roundtrip_through_the_task_file(task_file: Path) -> None:
    task = read_task(task_file)
    shots, test = read_examples(task.shots), read_examples(task.test or "")
    assert (len(shots), len(test)) == (NUM_SHOTS, NUM_TEST)
    assert all(shot.rationale for shot in shots)
    assert not {fingerprint(row.request) for row in shots} & {fingerprint(row.request) for row in test}


def test_the_pool_is_wide_and_holds_no_shot_and_no_test_row(
    task_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path))
    task = read_task(task_file)
    pool = read_pool(task.pool)
    assert len(pool) >= 3000
    sources = {pool.source_of(index) for index in range(len(pool))}
    assert len(sources) >= 20
    assert "shopping" not in sources
    assert not rows_to_avoid(pool, read_examples(task.shots), read_examples(task.test or ""))


def test_invariant_the_same_seed_writes_the_same_bytes(task_file: Path, tmp_path: Path) -> None:
    again = write_task_folder(tmp_path / "again", bank=task_file.parents[1] / "bank")
    for name in ("shots.jsonl", "test.jsonl", "pool/products.jsonl", "task.yaml"):
        assert (again.parent / name).read_bytes() == (task_file.parent / name).read_bytes()


def test_an_existing_folder_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="expected a new folder"):
        write_task_folder(tmp_path, bank=tmp_path)
