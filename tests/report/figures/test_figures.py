"""The pictures: what they hold, that names stay text, their words, and the page without Plotly."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from kshot.report.contents import Contents
from kshot.report.drawn import draw_figures
from kshot.report.figures.data import draw_relevance, draw_sources
from kshot.report.figures.experts import draw_bank, draw_similarity
from kshot.report.figures.training import draw_layers, draw_losses
from kshot.report.parts.data import DataMap, MapPoint, SelectedData
from kshot.report.parts.experts import Selection
from kshot.report.parts.reading import Missing
from kshot.report.parts.routing import ExpertUse, Layer
from kshot.report.parts.training import Training
from kshot.report.read import read_contents
from kshot.report.render import render_page
from kshot.run_folder import RunFolder

MakeRun = Callable[..., RunFolder]
EVIL = "<a href='https://evil.example'>x</a>"


@pytest.fixture
def contents(make_run: MakeRun) -> Contents:
    return read_contents(make_run())


def _traces(spec: str | None) -> dict[str, Any]:
    assert spec is not None
    return {trace.get("name", ""): trace for trace in json.loads(spec)["data"]}


def _selection(contents: Contents) -> Selection:
    assert isinstance(contents.selection, Selection)
    return contents.selection


def test_every_picture_is_drawn_and_said_in_words(contents: Contents) -> None:
    figures = draw_figures(contents)
    wanted = "arms cases choice cost bank groups similarity relevance sources map loss layers"
    assert set(figures) == {f"{name}-figure" for name in wanted.split()}
    for name, figure in figures.items():
        assert figure.alt.endswith("."), name
        assert figure.spec, name
    assert "arithmetic (75.0 %, perplexity 2.125)" in figures["bank-figure"].alt.replace("\xa0", " ")
    assert "the most alike are arithmetic and chain-sum with 0.875" in figures["similarity-figure"].alt


def test_similarity_has_names_marks_and_an_empty_diagonal(contents: Contents) -> None:
    trace = _traces(draw_similarity(_selection(contents)).spec)[""]
    assert trace["y"][0] == "1 arithmetic ●"
    assert [one.split()[1] for one in trace["y"]] == [one.name for one in _selection(contents).ranking]
    assert all(row[place] is None for place, row in enumerate(trace["z"]))
    assert trace["z"][0][1] == 0.875


def test_bank_marks_experts_and_leaves_out_infinite_perplexities(contents: Contents) -> None:
    selection = _selection(contents)
    ranking = (*selection.ranking[:-1], replace(selection.ranking[-1], reasoning_ppl=None))
    traces = _traces(draw_bank(replace(selection, ranking=ranking)).spec)
    experts = [one for one in ranking if one.name in selection.experts]
    assert traces["expert"]["x"] == [one.reasoning_ppl for one in experts]
    assert traces["expert"]["y"] == [100 * one.accuracy for one in experts]
    assert sum(len(traces[name]["x"]) for name in ("expert", "candidate, not chosen", "other adapter")) == 5


def test_wide_perplexities_get_a_logarithmic_axis_with_few_marks(contents: Contents) -> None:
    selection = _selection(contents)
    ranking = (*selection.ranking[:-1], replace(selection.ranking[-1], reasoning_ppl=1e30))
    axis = json.loads(draw_bank(replace(selection, ranking=ranking)).spec or "")["layout"]["xaxis"]
    assert axis["type"] == "log"
    assert 2 < len(axis["tickvals"]) < 12


def test_names_are_escaped(contents: Contents) -> None:
    selection = _selection(contents)
    ranking = (replace(selection.ranking[0], name=EVIL),)
    similarity = {EVIL: {EVIL: 1.0}}
    changed = replace(selection, ranking=ranking, similarity=similarity, experts=(EVIL,))
    for figure in (draw_similarity(changed), draw_bank(changed)):
        assert "<a" not in (figure.spec or "").replace("\\u003c", "<")
    point = MapPoint(0.0, 0.0, EVIL, EVIL, 0.5)
    data = contents.data
    assert isinstance(data, SelectedData)
    mapped = replace(data, map=DataMap((), (point,), (point,), 1.0, 1), sources={EVIL: 3})
    figures = draw_figures(replace(contents, data=mapped))
    assert "<a" not in "".join(figure.spec or "" for figure in figures.values()).replace("\\u003c", "<")


def test_loss_has_both_runs_and_a_running_mean_where_there_are_many_steps(contents: Contents) -> None:
    assert not isinstance(contents.training, Missing)
    traces = _traces(draw_losses(contents.training).spec)
    assert traces["mixture"]["y"] == [2.5, 1.75, 1.25, 0.5]
    assert traces["best single expert"]["y"] == [2.5, 1.75, 1.25, 0.5]
    long = Training("expert", "mixture", tuple([1.0, 0.0] * 20), 1, 1, 1, 1.0)
    raw, mean = json.loads(draw_losses([long]).spec or "")["data"]
    assert raw["y"][:4] == [1.0, 0.0, 1.0, 0.0]
    assert mean["y"][:4] == [1.0, 0.5, 0.6667, 0.5]


def test_relevance_places_the_sample_in_the_whole_pool(contents: Contents) -> None:
    assert isinstance(contents.data, SelectedData)
    traces = _traces(draw_relevance(contents.data).spec)
    assert len(traces["pool"]["x"]) == 30
    assert 1 <= traces["pool"]["x"][0] < traces["pool"]["x"][-1] <= 3456
    assert traces["pool"]["y"] == sorted(traces["pool"]["y"], reverse=True)
    assert traces["kept rows"]["x"] == [1, 2, 3]


def test_many_sources_are_gathered(contents: Contents) -> None:
    assert isinstance(contents.data, SelectedData)
    sources = {f"source {place}": 1 for place in range(40)}
    data = replace(contents.data, sources=sources, rows=contents.data.rows[:1] * 40)
    bars = _traces(draw_sources(data).spec)["kept rows"]
    assert len(bars["y"]) == 16
    assert sum(bars["x"]) == pytest.approx(100)


def test_layers_with_one_expert(contents: Contents) -> None:
    use = ExpertUse(("alone",), (Layer("model.layers.0", (1.0,)),), (), 1)
    assert _traces(draw_layers(use).spec)["alone"]["y"] == [100.0]
    assert use.shares == {"alone": 1.0}


def test_without_pictures_their_words_and_the_extra_stand(contents: Contents) -> None:
    page = render_page(contents, pictures=False)
    assert page.count("pip install 'kshot[report]' for the pictures") == 12
    assert "packed-plotly" not in page.partition("<script>")[0]
    assert "Wall time of each stage: scoring the adapters" in page


def test_nothing_to_draw_draws_nothing(contents: Contents) -> None:
    nothing = Missing("not there", "kshot run")
    empty = replace(
        contents,
        selection=nothing,
        training=nothing,
        data=nothing,
        evaluation=nothing,
        expert_use=nothing,
        choice=None,
        cost=replace(contents.cost, stages=()),
    )
    assert draw_figures(empty) == {}
    assert len(render_page(empty)) < 60_000
