"""The report in a browser: nothing is fetched, pictures tell more under the pointer, rows are found."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kshot.report import write_comparison, write_report
from kshot.run_folder import RunFolder

from .conftest import SCHEMES, SIZES, Opened

pytestmark = pytest.mark.browser

MakeRun = Callable[..., RunFolder]
EVIL = "</script><script>alert('x')</script><img src=https://evil.example/x.png onerror=alert(1)> é 漢字 😀"
MAX_BYTES = 6_000_000


def _contrast(page: Any, selector: str) -> float:
    """Return the contrast of a text with the page, as WCAG 2 reckons it."""
    colours = page.evaluate(
        "selector => [getComputedStyle(document.querySelector(selector)).color,"
        " getComputedStyle(document.body).backgroundColor]",
        selector,
    )
    light, dark = sorted((_luminance(colour) for colour in colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def _luminance(colour: str) -> float:
    red, green, blue = (int(part) / 255 for part in colour.strip("rgb()").split(",")[:3])
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def _check(opened: Opened, path: Path) -> None:
    opened.open_report(path)
    opened.draw_all()
    assert opened.messages == []
    assert opened.requests == [path.as_uri()]
    assert not opened.is_wider_than_the_screen


@pytest.mark.parametrize("size", SIZES)
def test_every_picture_is_drawn_and_nothing_is_fetched(make_run: MakeRun, open_page: Any, size: Any) -> None:
    path = write_report(make_run(text=EVIL))
    for scheme in SCHEMES:
        with open_page(size, scheme) as opened:
            _check(opened, path)
            assert opened.page.locator(".plot .main-svg").count() >= 12
            for selector in ("body", ".quiet", ".verdict strong", ".chip.right", ".chip.wrong", "nav a"):
                assert _contrast(opened.page, selector) >= 4.5, (scheme, selector)
            assert opened.page.get_by_text("alert('x')").count() > 0  # what rows say is text


def test_pointing_at_a_picture_tells_more(make_run: MakeRun, open_page: Any) -> None:
    path = write_report(make_run())
    with open_page() as opened:
        opened.open_report(path)
        opened.draw_all()
        page = opened.page
        for figure, point, words in (
            ("bank", ".trace:nth-of-type(3) .point", "accuracy 75.0"),
            ("arms", ".point >> nth=-1", "32 of 40 right"),
            ("map", ".trace:nth-of-type(3) .point >> nth=0", "shot"),
            ("layers", ".point >> nth=0", "arithmetic"),
        ):
            mark = page.locator(f"#{figure}-figure {point}").first
            mark.scroll_into_view_if_needed()
            box = mark.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
            label = page.locator(f"#{figure}-figure .hoverlayer .hovertext").first
            label.wait_for()
            assert words in label.text_content().replace("\xa0", " "), figure
        assert opened.messages == []


def test_rows_are_filtered_searched_and_turned(make_run: MakeRun, open_page: Any) -> None:
    path = write_report(make_run())
    with open_page(SIZES[1]) as opened:
        opened.open_report(path)
        page = opened.page
        answers = page.locator("#answers-list")
        count, entries = answers.locator(".count"), answers.locator(".entry")
        assert count.text_content() == "40 of 40 test rows"
        assert entries.count() == 10
        answers.get_by_label("right by").select_option(label="tuned mixture")
        answers.get_by_label("wrong by").select_option(label="single tuned")
        assert count.text_content() == "14 of 40 test rows"
        assert entries.first.locator(".text").text_content() == "question 18"
        answers.get_by_role("button", name="next").click()
        assert entries.count() == 4
        answers.get_by_label("right by").select_option(index=0)
        answers.get_by_label("wrong by").select_option(index=0)
        answers.get_by_label("case").select_option("all right")
        assert count.text_content() == "8 of 40 test rows"
        answers.get_by_label("search").fill("QUESTION 3")
        assert count.text_content() == "1 of 40 test rows"
        entries.first.locator("summary").click()
        assert "tuned_mixture says What is 2 + 3?" in entries.first.locator("dl").inner_text()
        answers.get_by_label("search").fill("no such words")
        assert count.text_content() == "0 of 40 test rows"
        page.locator("#kept-list").get_by_label("search").fill("row 2")
        assert page.locator("#kept-list .count").text_content() == "1 of 3 kept rows"
        assert not opened.is_wider_than_the_screen
        assert opened.messages == []


def test_a_token_tells_its_gates(make_run: MakeRun, open_page: Any) -> None:
    path = write_report(make_run())
    with open_page() as opened:
        opened.open_report(path)
        token = opened.page.locator(".coloured span").first
        token.click()
        assert opened.page.locator("#token-note").text_content() == "“The” arithmetic 0.75, chain-sum 0.25"
        colour = token.evaluate("one => getComputedStyle(one).backgroundColor")
        assert colour not in ("rgba(0, 0, 0, 0)", "transparent")


def test_two_thousand_rows_and_ten_thousand_of_the_pool(make_run: MakeRun, open_page: Any) -> None:
    hits = {"base": 1, "best_single": 2, "best_single_tuned": 3, "uniform_mixture": 4, "tuned_mixture": 1500}
    text = "What is the sum of some numbers? " * 8
    run = make_run(text=text, n=2000, hits=hits, budget=1000, pool_sample=10_000)
    path = write_report(run)
    assert path.stat().st_size < MAX_BYTES
    with open_page() as opened:
        _check(opened, path)
        page = opened.page
        started = time.monotonic()
        page.locator("#answers-list").get_by_label("wrong by").select_option(label="tuned mixture")
        assert page.locator("#answers-list .count").text_content() == "500 of 2,000 test rows"
        page.locator("#answers-list").get_by_label("search").fill("question 1999")
        assert page.locator("#answers-list .count").text_content() == "1 of 2,000 test rows"
        assert time.monotonic() - started < 2  # two filters, each well within a second


def test_without_scripts_the_first_rows_and_all_words_stand(make_run: MakeRun, chromium: Any) -> None:
    path = write_report(make_run())
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("#answers-list .entry").count() == 10
    assert "Accuracy of each arm with one standard error" in page.locator("#arms-figure").inner_text()
    assert page.locator("#answers-list .filters").is_hidden()
    context.close()


@pytest.mark.parametrize("size", SIZES)
def test_comparison(make_run: MakeRun, open_page: Any, tmp_path: Path, size: Any) -> None:
    pair = [make_run(name="first"), make_run(("experts",), name="second"), make_run(name="third")]
    path = write_comparison(pair, tmp_path / "compared.html")
    for scheme in SCHEMES:
        with open_page(size, scheme) as opened:
            _check(opened, path)
            page = opened.page
            mark = page.locator("#runs-figure .point").first
            mark.scroll_into_view_if_needed()
            box = mark.bounding_box()
            page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=4)
            label = page.locator("#runs-figure .hoverlayer .hovertext").first
            label.wait_for()
            assert "base model" in label.text_content()
