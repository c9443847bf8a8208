"""What `kshot run --dry-run` prints."""

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.table import Table

from kshot.pipeline.forecast import Forecast, StageForecast

_UNITS = ((3600.0, "h"), (60.0, "min"), (1.0, "s"))


def in_words(seconds: Sequence[float]) -> str:
    """Return a range of seconds as a person would say it, such as `8 to 12 min`."""
    low, high = seconds
    size, unit = next((one for one in _UNITS if high >= 2 * one[0]), _UNITS[-1])
    ends = [_rounded(end / size) for end in (low, high)]
    if high < 1:
        return "under 1 s"
    return f"{ends[1]} {unit}" if ends[0] == ends[1] else f"{ends[0]} to {ends[1]} {unit}"


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}".removesuffix(".0")


def forecast_table(forecast: Forecast) -> Table:
    """Draw the stages, each reused or with its time, and the sums."""
    table = Table("stage", "", "time", "memory", box=SIMPLE_HEAD, title="what would run")
    for stage in forecast.stages:
        table.add_row(stage.stage, "reused" if stage.reused else "run", _time(stage), _memory(stage))
    table.add_section()
    table.add_row(
        "all", "", f"about {in_words(forecast.seconds)}", f"{_gigabytes(forecast.memory_bytes)} at the peak"
    )
    lines = [f"disk: {_gigabytes(forecast.disk_bytes)}; the probe took {forecast.probe_seconds:.0f} s"]
    table.caption = "\n".join([*lines, *forecast.notes])
    table.caption_justify = "left"
    return table


def _time(stage: StageForecast) -> str:
    if stage.reused:
        return ""
    return "not known" if stage.seconds is None else in_words(stage.seconds)


def _memory(stage: StageForecast) -> str:
    return f"+ {_gigabytes(stage.memory_bytes)}" if stage.memory_bytes else ""


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"
