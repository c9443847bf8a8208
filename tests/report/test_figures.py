"""The pictures: what they hold, and the line in their place without Plotly."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from kshot.report.contents import Contents, Missing, Selection
from kshot.report.figures import draw_figures
from kshot.report.read import read_contents
from kshot.report.render import render_page
from kshot.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]


@pytest.fixture
def contents(make_run: MakeRun) -> Contents:
    return read_contents(make_run())


def test_similarity_figure_has_names_marks_and_an_empty_diagonal(contents: Contents) -> None:
    html = draw_figures(contents).similarity
    trace = json.loads(re.findall(r'"similarity-figure",\s*(\[\{.*?\}\]),\s*\{"', html, re.DOTALL)[0])[0]
    assert isinstance(contents.selection, Selection)
    assert trace["x"][0] == "1 arithmetic ●"
    assert [one.split()[1] for one in trace["x"]] == [one.name for one in contents.selection.ranking]
    assert all(row[place] is None for place, row in enumerate(trace["z"]))
    assert trace["z"][0][1] == 0.875


def test_loss_figure_has_both_arms(contents: Contents) -> None:
    html = draw_figures(contents).losses
    assert '"name":"best single expert"' in html
    assert '"name":"mixture"' in html
    assert '"y":[2.5,1.75,1.25,0.5]' in html


def test_names_are_escaped(contents: Contents) -> None:
    evil = "<a href='https://evil.example'>x</a>"
    selection = contents.selection
    assert isinstance(selection, Selection)
    ranking = (replace(selection.ranking[0], name=evil),)
    changed = replace(contents, selection=replace(selection, ranking=ranking))
    html = draw_figures(changed).similarity
    assert "href=" not in html.replace("\\u003c", "<").replace("&lt;a href=", "")


def test_without_plotly_a_line_names_the_extra(contents: Contents) -> None:
    figures = draw_figures(contents, plotly_installed=False)
    assert not figures.script
    assert "pip install 'kshot[report]' for the pictures" in figures.similarity
    page = render_page(contents, plotly_installed=False)
    assert "<script" not in page
    assert page.count("kshot[report]") == 2


def test_nothing_to_draw_loads_nothing(contents: Contents) -> None:
    nothing = Missing("not there", "kshot run")
    empty = replace(contents, selection=nothing, training=nothing)
    for installed in (True, False):
        assert not any((draw_figures(empty, plotly_installed=installed).script, draw_figures(empty).losses))
