"""The picture of several runs: every arm of every run with its error."""

from collections.abc import Sequence

from kshot.report.figures.drawing import EXPERT_COLOURS, QUIET, Figure, draw, label, title
from kshot.report.parts.evaluation import Evaluation
from kshot.report.wording import percent

_SPREAD = 0.5  # of a line of the axis, which the runs share


def draw_runs(runs: Sequence[tuple[str, Evaluation]]) -> Figure:
    """Draw every arm of every measured run.

    Args:
        runs: Name and evaluation of each.
    """
    arms = {arm.key: arm.short for _, evaluation in runs for arm in evaluation.arms}
    lines = {key: place for place, key in enumerate(arms)}
    traces = []
    for place, (name, evaluation) in enumerate(runs):
        shift = _SPREAD * ((place + 0.5) / len(runs) - 0.5)
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label(name),
                "x": [100 * arm.accuracy for arm in evaluation.arms],
                "y": [lines[arm.key] + shift for arm in evaluation.arms],
                "error_x": {
                    "type": "data",
                    "array": [100 * (arm.stderr or 0) for arm in evaluation.arms],
                    "thickness": 1.5,
                    "width": 4,
                    "color": QUIET,
                },
                "marker": {"size": 11, "color": EXPERT_COLOURS[place % len(EXPERT_COLOURS)]},
                "hovertext": [
                    f"<b>{label(name)}</b><br>{label(arm.title)}<br>{percent(arm.accuracy, arm.stderr)}"
                    for arm in evaluation.arms
                ],
                "hoverinfo": "text",
                "cliponaxis": False,
            }
        )
    layout = {
        "xaxis": {"title": title("test rows right, %"), "rangemode": "tozero"},
        "yaxis": {
            "tickvals": list(lines.values()),
            "ticktext": [label(short) for short in arms.values()],
            "range": [len(lines) - 0.5, -0.5],
            "showgrid": False,
        },
        "showlegend": True,
    }
    alt = "Accuracy of each arm in each run, with one standard error. " + "; ".join(
        f"{name}: " + ", ".join(f"{arm.short} {percent(arm.accuracy, arm.stderr)}" for arm in one.arms)
        for name, one in runs
    )
    height = 96 + len(lines) * (24 + 14 * len(runs))
    return draw("runs-figure", f"{alt}.", traces, layout, height)
