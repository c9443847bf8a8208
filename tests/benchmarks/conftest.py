"""Makes the package of the benchmark importable as its scripts see it, `suite`, and sets up toy tasks."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path[:0] = [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parent)]

from suite.shared_work import SharedWork  # noqa: E402 - the paths come first
from suite_toy import toy_work, write_toy_data  # noqa: E402

from ..tiny_bank import write_bank  # noqa: E402


@pytest.fixture
def toy(
    tmp_path: Path,
    tiny_model_folder: Path,
    lora_folder: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> SharedWork:
    """Shared work on toy data, with KSHOT_DATA and KSHOT_HOME of its own."""
    monkeypatch.setenv("KSHOT_DATA", str(tmp_path / "toy" / "data"))
    monkeypatch.setenv("KSHOT_HOME", str(tmp_path / "toy" / "home"))
    write_toy_data(tmp_path / "toy" / "data")
    write_bank(tmp_path / "toy" / "bank", lora_folder)
    return toy_work(tmp_path / "toy", tiny_model_folder)
