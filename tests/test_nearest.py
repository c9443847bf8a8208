"""What a mistyped name may have meant."""

from pathlib import Path

from kshot.nearest import did_you_mean, nearest_path


def test_the_nearest_name() -> None:
    assert did_you_mean("math_cott", ["math_cot", "sql"]) == "; did you mean 'math_cot'?"
    assert did_you_mean("zzz", ["math_cot", "sql"]) == ""


def test_the_first_part_of_a_path_that_is_missing_is_mended(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "shots.jsonl").touch()
    wanted = tmp_path / "data" / "shots.jsonl"
    assert nearest_path(tmp_path / "data" / "shot.jsonl") == f"; did you mean '{wanted}'?"
    assert nearest_path(tmp_path / "dat" / "shots.jsonl") == f"; did you mean '{wanted}'?"
    assert nearest_path(tmp_path / "quite-another") == ""
    assert nearest_path(wanted) == ""


def test_hidden_files_are_not_suggested(tmp_path: Path) -> None:
    (tmp_path / ".shots.jsonl").touch()
    assert nearest_path(tmp_path / "shots.jsonl") == ""
    assert ".shots.jsonl" in nearest_path(tmp_path / ".shot.jsonl")
