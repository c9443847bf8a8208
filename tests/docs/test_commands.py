"""Every command of README, examples and docs runs, page by page and in order, but for those counted here."""

import runpy
from collections import Counter
from pathlib import Path

import pytest
import yaml

from kshot.config import TaskConfig

from .blocks import RUN, Block, blocks_of, pages
from .conftest import Shell
from .world import TASK

NOT_RUN = {
    "README.md": 2,
    "docs/evaluate.md": 2,
    "docs/howto/export.md": 3,
    "docs/howto/many-machines.md": 2,
    "docs/howto/own-adapters.md": 2,
    "docs/howto/own-data.md": 1,
    "docs/howto/own-gpu.md": 1,
    "docs/serving.md": 2,
    "docs/tour.md": 1,
}
PAGES = [page for page in pages() if any(block.is_run for block in blocks_of(page))]


def test_what_is_not_run_is_known_and_says_why() -> None:
    skipped = [block for page in pages() for block in blocks_of(page) if block.not_run is not None]
    assert Counter(block.page for block in skipped) == NOT_RUN
    assert all(block.language in RUN for block in skipped)


def test_commands_stand_in_blocks_that_are_run() -> None:
    for page in pages():
        for block in blocks_of(page):
            is_shell = any(line.startswith(("kshot ", "$ kshot ")) for line in block.text.splitlines())
            assert not is_shell or block.language in ("bash", "console"), (block.page, block.line)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=["/".join(page.parts[-2:]) for page in PAGES])
def test_the_blocks_of_a_page_run_in_order(page: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(shell.folder)
    for name in ("KSHOT_HOME", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, shell.environment[name])
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if not block.is_run:
            continue
        if block.language == "bash":
            _run_shell(block, shell)
        else:
            names = _run_python(block, names, shell)


def _run_shell(block: Block, shell: Shell) -> None:
    done = shell.run(block.text)
    assert done.returncode == 0, f"{block.page}:{block.line}\n{done.stdout}\n{done.stderr}"


def _run_python(block: Block, names: dict[str, object], shell: Shell) -> dict[str, object]:
    program = shell.folder / f"block-{block.line}.py"
    program.write_text(block.text)
    return names | runpy.run_path(str(program), init_globals=names)


@pytest.mark.parametrize("page", pages(), ids=lambda page: "/".join(page.parts[-2:]))
def test_settings_of_a_page_are_valid(page: Path) -> None:
    for block in blocks_of(page):
        if block.language == "yaml":
            given = yaml.safe_load(block.text)
            sections = {
                key: {**TASK.get(key, {}), **value} for key, value in given.items() if isinstance(value, dict)
            }
            TaskConfig.model_validate({**TASK, **given, **sections})
