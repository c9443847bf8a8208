"""The chat page of the server in a browser: an answer comes, coloured by expert; mistakes are told."""

from typing import Any

import pytest

from ..serving.conftest import Served, serving
from .conftest import SCHEMES, SIZES

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("size", SIZES)
def test_a_message_gets_a_coloured_answer(url: str, open_page: Any, size: Any) -> None:
    for scheme in SCHEMES:
        with open_page(size, scheme) as opened:
            page = opened.page
            page.goto(url)
            page.wait_for_selector("#model option", state="attached")
            page.get_by_label("model").select_option("tokens")
            assert page.locator("#legend span").all_text_contents() == ["a", "b", "c"]
            page.get_by_label("message").fill("What is two?")
            page.get_by_label("message").press("Enter")
            page.locator("#send:enabled").wait_for()
            answer = page.locator("#log .answer")
            assert answer.count() == 1
            tokens = answer.locator("span")
            assert tokens.count() > 0
            assert tokens.first.get_attribute("title").endswith(" above its mean")
            colours = answer.locator("span[class^=e]").evaluate_all(
                "all => all.map(one => getComputedStyle(one).backgroundColor)"
            )
            assert colours
            assert "rgba(0, 0, 0, 0)" not in colours
            assert opened.messages == []
            assert all(request.startswith(url) for request in opened.requests)
            assert not opened.is_wider_than_the_screen


def _send(page: Any, address: str, text: str) -> None:
    page.goto(address)
    page.wait_for_selector("#model option", state="attached")
    page.get_by_label("message").fill(text)
    page.get_by_role("button", name="send").click()


def test_another_model_and_a_new_chat_start_afresh(url: str, open_page: Any) -> None:
    with open_page() as opened:
        page = opened.page
        _send(page, url, "yes")
        page.locator("#send:enabled").wait_for()
        assert page.locator("#log > div").count() == 2
        page.get_by_role("button", name="new chat").click()
        assert page.locator("#log > div").count() == 0
        page.get_by_label("model").select_option("nulls")
        assert page.locator("#legend span").all_text_contents() == ["a", "b", "c", "(none)"]
        assert opened.messages == []


def test_text_of_answers_and_messages_stays_text(url: str, open_page: Any) -> None:
    with open_page() as opened:
        page = opened.page
        _send(page, url, "<img src=x onerror=alert(1)>")
        page.locator("#send:enabled").wait_for()
        assert page.locator("#log .user").text_content() == "<img src=x onerror=alert(1)>"
        assert page.locator("img").count() == 0
        assert opened.messages == []


def test_too_long_a_message_is_told(served: Served, open_page: Any) -> None:
    with serving(served) as address, open_page() as opened:
        page = opened.page
        _send(page, address, "many words " * 600)
        error = page.locator("#log .error")
        error.wait_for()
        assert "token" in (error.text_content() or "")
        assert page.locator("#send").is_enabled()
