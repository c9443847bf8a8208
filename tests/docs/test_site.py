"""The site builds strictly, its pages reach nothing else, and what README and examples link to is there."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from .blocks import ROOT, pages

_LOADING = {"script": "src", "link": "href", "img": "src", "iframe": "src"}


class Loaded(HTMLParser):
    """What a page loads by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in _LOADING and given.get("rel") != "canonical":
            self.addresses.append(given.get(_LOADING[tag]) or "")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    for name in ("docs", "src"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "mkdocs.yml", folder)
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.mark.slow
def test_it_builds_every_page_and_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in (ROOT / "docs").rglob("*.md"):
        html = (site / page.relative_to(ROOT / "docs")).with_suffix(".html").read_text(encoding="utf-8")
        loaded = Loaded()
        loaded.feed(html)
        foreign = [one for one in loaded.addresses if re.match(r"(https?:)?//", one)]
        assert not foreign, (page.name, foreign)
    assert not list(site.rglob("generate.py"))


@pytest.mark.slow
def test_the_reference_has_the_docstrings(site: Path) -> None:
    html = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for text in ("kshot.experts.selection.select_experts", "kshot.mixture.build.build_mixture", "KshotError"):
        assert text in html


def test_every_page_is_in_the_menu() -> None:
    menu = re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    assert set(menu) == there
    assert len(menu) == len(set(menu))
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["theme"]["font"] is False


@pytest.mark.parametrize("page", pages(), ids=lambda page: "/".join(page.parts[-2:]))
def test_links_between_files_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"https?:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


@pytest.mark.parametrize(
    "picture", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda one: one.name
)
def test_a_picture_says_in_words_what_it_shows(picture: Path) -> None:
    text = picture.read_text(encoding="utf-8")
    assert re.search(r"<title id=\"t\">.+</title>\s*<desc id=\"d\">.{40,}</desc>", text)
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
