"""Chromium, driven by Playwright; the tests skip where either is missing."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from ..report.conftest import make_run
from ..serving.conftest import expert_folders, served, url

__all__ = ["expert_folders", "make_run", "served", "url"]

SIZES = ((1280, 900), (390, 844))
SCHEMES = ("light", "dark")
PATIENCE_MS = 120_000  # a machine may be busy with other tests


class Opened:
    """A page, and what a reader must not see: messages on the console, requests."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.set_default_timeout(PATIENCE_MS)
        page.on("console", lambda message: self.messages.append(message.text))
        page.on("pageerror", lambda error: self.messages.append(str(error)))
        page.on("request", lambda request: self.requests.append(request.url))

    def open_report(self, path: Any) -> None:
        """Open a report and wait until its script has started."""
        self.page.goto(path.as_uri())
        self.page.wait_for_selector("html[data-ready]", state="attached")

    def draw_all(self) -> None:
        """Draw the pictures that are not in view."""
        self.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        self.page.locator(".plot:not(:has(.main-svg))").first.wait_for(state="detached")

    @property
    def is_wider_than_the_screen(self) -> bool:
        """Whether the page scrolls sideways."""
        root = self.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        return bool(root[0] > root[1])


Open = Callable[..., Any]


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="pip install 'kshot[browser]'")
    program = shutil.which("chromium") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    sandbox = [] if os.getuid() else ["--no-sandbox"]  # Chromium refuses its sandbox to root
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=sandbox, timeout=PATIENCE_MS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium: Any) -> Open:
    """Gives a page of some size and scheme for a block."""

    @contextmanager
    def opened(size: tuple[int, int] = SIZES[0], scheme: str = "light") -> Iterator[Opened]:
        width, height = size
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=width < 600
        )
        try:
            yield Opened(context.new_page())
        finally:
            context.close()

    return opened
