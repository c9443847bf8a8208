"""Pictures of the bank: every adapter, how alike adapters are, the groups that could have been."""

from html import escape

from kshot.report.figures.drawing import ACCENT, QUIET, SCALE, WARM, Figure, draw, label, title, wrapped
from kshot.report.parts.experts import Group, RankedAdapter, Selection
from kshot.report.wording import number, percent, plural, significant

MAX_ADAPTERS = 60  # in the heat map, best ranked first: more cannot be read
_WIDE = 20.0  # perplexities that differ by this factor need a logarithmic axis
_MAX_POWER = 31  # perplexities beyond are drawn without a mark on the axis
_MAX_TICKS = 9  # that a phone has room for
_MARKS = {
    "expert": {"color": ACCENT, "size": 13, "symbol": "circle"},
    "candidate": {"color": ACCENT, "size": 11, "symbol": "circle-open", "line": {"width": 2}},
    "": {"color": QUIET, "size": 8, "symbol": "circle"},
}
_NAMES = {"expert": "expert", "candidate": "candidate, not chosen", "": "other adapter"}


def draw_bank(selection: Selection) -> Figure:
    """Draw every adapter: accuracy against reasoning perplexity, the chosen ones marked."""
    known = [one for one in selection.ranking if one.reasoning_ppl is not None]
    traces = []
    for mark in ("", "candidate", "expert"):
        group = [one for one in known if selection.mark(one.name) == mark]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": _NAMES[mark],
                "x": [one.reasoning_ppl for one in group],
                "y": [100 * one.accuracy for one in group],
                "hovertext": [_described(one, selection) for one in group],
                "hoverinfo": "text",
                "marker": _MARKS[mark],
                "cliponaxis": False,
            }
        )
    best = [one for one in known if one.name == selection.best_single]
    traces.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "best single expert",
            "x": [one.reasoning_ppl for one in best],
            "y": [100 * one.accuracy for one in best],
            "marker": {"color": WARM, "size": 20, "symbol": "circle-open", "line": {"width": 2}},
            "hoverinfo": "skip",
            "cliponaxis": False,
        }
    )
    top = max([10.0, *(100 * one.accuracy for one in known)])
    layout = {
        "xaxis": {"title": title("reasoning perplexity on the shots")}
        | _perplexity_axis([one.reasoning_ppl for one in known if one.reasoning_ppl]),
        "yaxis": {"title": title("shots right, %"), "range": [-0.05 * top, 1.08 * top]},
        "showlegend": True,
    }
    chosen = "; ".join(_in_words(one) for one in selection.ranking if one.name in selection.experts)
    alt = (
        f"{plural(len(known), 'adapter')} by accuracy and reasoning perplexity on "
        f"{plural(selection.num_shots, 'shot')}. The experts: {chosen}."
    )
    return draw("bank-figure", alt, traces, layout, 400)


def draw_similarity(selection: Selection) -> Figure:
    """Draw how alike adapters are, in the order of the ranking."""
    names = [adapter.name for adapter in selection.ranking[:MAX_ADAPTERS]]
    labels = [_axis_label(rank, name, selection.mark(name)) for rank, name in enumerate(names, start=1)]
    cosines = [
        [None if one == other else selection.similarity[one][other] for other in names] for one in names
    ]
    ranks = [str(rank) for rank in range(1, len(names) + 1)]  # names beside the rows alone: phones are narrow
    trace = {
        "type": "heatmap",
        "x": ranks,
        "y": labels,
        "z": cosines,
        "colorscale": SCALE,
        "xgap": 1,
        "ygap": 1,
        "hoverongaps": False,
        "customdata": [labels] * len(labels),
        "hovertemplate": "%{y}<br>and %{customdata}<br>cosine %{z:.3f}<extra></extra>",
        "colorbar": {  # below, since a phone has no room beside
            "orientation": "h",
            "thickness": 10,
            "outlinewidth": 0,
            "yref": "container",
            "y": 0,
            "yanchor": "bottom",
        },
    }
    axis = {"type": "category", "tickfont": {"size": 11}, "showgrid": False}
    layout = {
        "xaxis": axis | {"tickangle": 0},
        "yaxis": axis | {"autorange": "reversed", "dtick": 1},
    }
    return draw("similarity-figure", _alike(selection, names), [trace], layout, 120 + 20 * len(names))


def draw_groups(selection: Selection) -> Figure:
    """Draw the groups that could have been chosen: how good against how alike."""
    traces = []
    for name, groups, marker in (
        ("other group", selection.groups[1:], {"color": QUIET, "size": 8}),
        ("chosen", selection.groups[:1], {"color": ACCENT, "size": 14}),
    ):
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": [group.similarity for group in groups],
                "y": [group.quality for group in groups],
                "hovertext": [_members(group) for group in groups],
                "hoverinfo": "text",
                "marker": marker,
                "cliponaxis": False,
            }
        )
    quality = "mean loss" if selection.method == "robust" else "sum of ranks"
    layout = {
        "xaxis": {"title": title("mean similarity of the members")},
        "yaxis": {"title": title(quality)},
        "showlegend": True,
    }
    alt = (
        f"The best {len(selection.groups):,} of {plural(selection.num_groups, 'group')} by {quality} and "
        f"mean similarity. Chosen: {', '.join(selection.experts)}."
    )
    return draw("groups-figure", alt, traces, layout, 400)


def _perplexity_axis(values: list[float]) -> dict[str, object]:
    """Return a logarithmic axis where perplexities differ much, with 1, 2, 5, 10, 20 ... written out."""
    if not values or max(values) <= _WIDE * min(values):
        return {"type": "linear"}
    ticks = [digit * 10**power for power in range(_MAX_POWER) for digit in (1, 2, 5)]
    shown = [tick for tick in ticks if tick <= 2 * max(values)]
    step = -(-len(shown) // _MAX_TICKS)  # from the first on, so that few are left where there are many
    marks = [float(tick) for tick in shown[::step]]  # not every JSON writer takes whole numbers above 2^64
    return {"type": "log", "tickvals": marks, "ticktext": [f"{tick:,}" for tick in shown[::step]]}


def _described(one: RankedAdapter, selection: Selection) -> str:
    mark = _NAMES[selection.mark(one.name)] + (", best single" if one.name == selection.best_single else "")
    return (
        f"<b>{wrapped(one.name)}</b><br>{mark}<br>accuracy {percent(one.accuracy)}, rank "
        f"{number(one.rank_accuracy)}<br>reasoning perplexity {significant(one.reasoning_ppl)}, rank "
        f"{number(one.rank_ppl)}"
    )


def _in_words(one: RankedAdapter) -> str:
    return f"{one.name} ({percent(one.accuracy)}, perplexity {significant(one.reasoning_ppl)})"


def _alike(selection: Selection, names: list[str]) -> str:
    pairs = [
        (selection.similarity[one][other], one, other)
        for place, one in enumerate(names)
        for other in names[place + 1 :]
    ]
    if not pairs:
        return "One adapter, which nothing is compared with."
    cosine, one, other = max(pairs)
    return (
        f"Cosines of {plural(len(names), 'adapter')}, pair by pair; the most alike are {one} and {other} "
        f"with {cosine:.3f}."
    )


def _members(group: Group) -> str:
    return (
        "<br>".join(label(name) for name in group.members)
        + f"<br>quality {number(group.quality)}, similarity {group.similarity:.3f}<br>total "
        + number(group.total)
    )


def _axis_label(rank: int, name: str, mark: str) -> str:
    """Return an axis label, unique by its rank."""
    return f"{rank} {label(name)}" + {"expert": " ●", "candidate": " ○"}.get(mark, escape(mark))
