"""Several runs on one page: arms, differences on the same rows, settings, mistakes."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kshot.cli import app
from kshot.errors import ConfigError
from kshot.report.comparison import differing_values, short_names, write_comparison
from kshot.run_folder import RunFolder

from .conftest import HITS
from .test_report import EVIL, Page

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def runs(make_run: MakeRun) -> list[RunFolder]:
    better = HITS | {"tuned_mixture": 36}
    unmeasured = make_run(("experts",), name="third", seed=4)
    return [make_run(name="first"), make_run(name="second", hits=better, seed=5), unmeasured]


def test_golden_numbers_land_in_the_page(runs: list[RunFolder], tmp_path: Path) -> None:
    page = Page(write_comparison(runs, tmp_path / "compared.html").read_text(encoding="utf-8"))
    text = page.text
    assert "3 runs compared first (task shopping, seed 3); second" in text
    assert "tuned mixture 80.0 ± 6.4 % 90.0 ± 4.8 %" in text
    assert "second +10.0 ± 4.8 0.12" in text  # 4 wins and no loss: p = 2 / 2**4
    assert "third Not measured. Not every arm is tested yet (so far: no arm)." in text
    assert "seed 3 5 4" in text
    assert "tokens trained on 8,642 8,642" in text
    assert "Nothing: the task files are the same" not in text
    assert page.count("script") == 3


def test_other_test_rows_are_not_paired(make_run: MakeRun, tmp_path: Path) -> None:
    pair = [make_run(name="first"), make_run(name="second", n=60)]
    text = Page(write_comparison(pair, tmp_path / "compared.html").read_text(encoding="utf-8")).text
    assert "Against first" not in text
    assert "Runs on other test rows than the first are not compared row by row" in text


def test_runs_that_are_not_measured(make_run: MakeRun, tmp_path: Path) -> None:
    pair = [make_run((), name="a"), make_run((), name="b")]
    text = Page(write_comparison(pair, tmp_path / "compared.html").read_text(encoding="utf-8")).text
    assert text.count("Not measured.") == 2
    assert "Nothing: the task files are the same." in text


def test_one_run_twice_is_refused(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    for runs in ([run], [run, run]):
        with pytest.raises(ConfigError, match="expected two or more different run folders"):
            write_comparison(runs, tmp_path / "compared.html")
    assert not (tmp_path / "compared.html").exists()


def test_short_names_tell_runs_apart() -> None:
    assert short_names([Path("/a/x/run"), Path("/a/y/run")]) == ["x/run", "y/run"]
    assert short_names([Path("/a/x"), Path("/a/y")]) == ["x", "y"]
    assert short_names([Path("/a"), Path("/b/a")]) == ["/a", "b/a"]


def test_differing_values_keep_what_one_lacks() -> None:
    assert differing_values([{"a": 1, "b": 2}, {"a": 1, "c": 3}]) == {"b": [2, None], "c": [None, 3]}


def test_command_writes_one_page_for_several_runs(
    runs: list[RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [str(run.root) for run in runs]
    printed = CliRunner().invoke(app, ["report", *folders, "--json"])
    assert json.loads(printed.stdout) == {"report": "comparison.html"}
    printed = CliRunner().invoke(app, ["report", *folders[:2], "--out", "pair.html"])
    assert printed.stdout == "report: pair.html\n"
    printed = CliRunner().invoke(app, ["report", folders[0], "--out", "one.html"])
    assert printed.exit_code == 0
    assert all((tmp_path / name).is_file() for name in ("comparison.html", "pair.html", "one.html"))


def test_invariant_text_of_users_stays_text(make_run: MakeRun, tmp_path: Path) -> None:
    pair = [make_run(name="first"), make_run(name="second")]
    plain = Page(write_comparison(pair, tmp_path / "plain.html").read_text(encoding="utf-8"))
    for run in pair:
        config = run.path("config.yaml")
        config.write_text(config.read_text().replace("base_model: tiny", f"base_model: {json.dumps(EVIL)}"))
    pair[0].path("config.yaml").write_text(
        pair[0].path("config.yaml").read_text().replace("shots.jsonl", "other.jsonl")
    )
    evil = Page(write_comparison(pair, tmp_path / "evil.html").read_text(encoding="utf-8"))
    assert {tag for tag, _ in evil.tags} <= {tag for tag, _ in plain.tags} | {"td", "code"}
