"""Pictures of the selected data: the map, the fall of relevance, the sources."""

from collections import Counter
from collections.abc import Sequence

from kshot.report.figures.drawing import ACCENT, QUIET, WARM, Figure, draw, label, title, wrapped
from kshot.report.parts.data import DataMap, MapPoint, SelectedData
from kshot.report.wording import percent, plural

MAX_SOURCES = 15  # bars; the table names all
_REST = "all others"


def draw_map(data_map: DataMap) -> Figure:
    """Draw shots and kept rows among a sample of the pool."""
    traces = [
        _points("pool", data_map.pool, {"color": QUIET, "size": 5, "opacity": 0.45}),
        _points("kept rows", data_map.kept, {"color": ACCENT, "size": 8}),
        _points("shots", data_map.shots, {"color": WARM, "size": 11, "symbol": "diamond"}),
    ]
    axis = {"showticklabels": False, "showgrid": False}
    layout = {
        "xaxis": axis,
        "yaxis": axis | {"scaleanchor": "x"},
        "hovermode": "closest",
        "showlegend": True,
    }
    alt = (
        f"A map of {plural(len(data_map.shots), 'shot')}, {plural(len(data_map.kept), 'kept row')} and "
        f"{plural(len(data_map.pool), 'row')} of the pool: the two directions along which the pool varies "
        f"most, with {percent(data_map.explained)} of the variance."
    )
    return draw("map-figure", alt, traces, layout, 460)


def draw_relevance(data: SelectedData) -> Figure:
    """Draw how relevance falls over the pool, and where the kept rows are on the way."""
    traces = []
    if data.map is not None and data.map.pool:
        pool = sorted((point.relevance or 0.0 for point in data.map.pool), reverse=True)
        share = data.map.num_comparable / len(pool)
        ranks = [max(1.0, round((place + 0.5) * share + 0.5, 1)) for place in range(len(pool))]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines",
                "name": "pool",
                "x": ranks,
                "y": pool,
                "line": {"color": QUIET, "width": 2},
                "hovertemplate": "row %{x:,.0f} of the pool<br>relevance %{y:.3f}<extra></extra>",
            }
        )
    rows = data.rows
    traces.append(
        {
            "type": "scatter",
            "mode": "lines+markers" if len(rows) <= 100 else "lines",
            "name": "kept rows",
            "x": list(range(1, len(rows) + 1)),
            "y": [row.relevance for row in rows],
            "hovertext": [
                f"kept row {place}, relevance {row.relevance:.3f}<br>{wrapped(row.request, 140)}"
                for place, row in enumerate(rows, start=1)
            ],
            "hoverinfo": "text",
            "marker": {"color": ACCENT, "size": 6},
            "line": {"color": ACCENT, "width": 2},
        }
    )
    layout = {
        "xaxis": {"title": title("place by relevance"), "type": "log", "dtick": 1},
        "yaxis": {"title": title("relevance, cosine to the shots")},
        "showlegend": len(traces) > 1,
    }
    values = [row.relevance for row in rows] or [0.0]
    alt = (
        f"Relevance of the {plural(len(rows), 'kept row')}, from {values[0]:.3f} for the first to "
        f"{values[-1]:.3f} for the last."
    )
    return draw("relevance-figure", alt, traces, layout, 460 if data.map else 340)


def draw_sources(data: SelectedData) -> Figure:
    """Draw what each source gave, beside its share of the pool where that is known."""
    kept = {source: count / (len(data.rows) or 1) for source, count in data.sources.items()}
    pool = _shares(data.map.pool) if data.map else {}
    names = list(kept)[:MAX_SOURCES]
    rest = len(kept) > MAX_SOURCES
    rows = [*names, *([_REST] if rest else [])]

    def percents(shares: dict[str, float]) -> list[float]:
        shown = [100 * shares.get(name, 0.0) for name in names]
        return [*shown, *([100 * sum(shares.values()) - sum(shown)] if rest else [])]

    traces = [_bars("kept rows", rows, percents(kept), ACCENT)]
    if pool:
        traces.append(_bars("pool", rows, percents(pool), QUIET))
    layout = {
        "xaxis": {"title": title("share of rows, %")},
        "yaxis": {"type": "category", "autorange": "reversed", "showgrid": False},
        "barmode": "group",
        "bargap": 0.3,
        "showlegend": bool(pool),
        "legend": {"traceorder": "normal"},
    }
    alt = "Where the kept rows come from: " + ", ".join(f"{name} {percent(kept[name])}" for name in names)
    return draw("sources-figure", f"{alt}.", traces, layout, 90 + (36 if pool else 26) * len(rows))


def _points(name: str, points: Sequence[MapPoint], marker: dict[str, object]) -> dict[str, object]:
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [point.x for point in points],
        "y": [point.y for point in points],
        "hovertext": [_described(point) for point in points],
        "hoverinfo": "text",
        "marker": marker,
    }


def _described(point: MapPoint) -> str:
    if point.relevance is None:
        return f"<b>shot</b><br>{wrapped(point.text, 110)}"
    return f"<b>{label(point.source)}</b>, relevance {point.relevance:.3f}<br>{wrapped(point.text, 110)}"


def _shares(points: Sequence[MapPoint]) -> dict[str, float]:
    counts = Counter(point.source for point in points)
    return {source: count / len(points) for source, count in counts.items()}


def _bars(name: str, rows: Sequence[str], shares: Sequence[float], colour: str) -> dict[str, object]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": name,
        "x": list(shares),
        "y": [label(row) for row in rows],
        "hovertext": [
            f"<b>{label(row)}</b><br>{percent(share / 100)} of the {name}"
            for row, share in zip(rows, shares, strict=True)
        ],
        "hoverinfo": "text",
        "marker": {"color": colour},
    }
