"""Numbers and texts as people read them."""

from collections.abc import Mapping

_MINUS = "\N{MINUS SIGN}"


def percent(value: float, stderr: float | None = None) -> str:
    """Return a share with its standard error: `62.0 ± 3.4 %`."""
    return f"{_plus_minus(value, stderr)} %"


def points(value: float, stderr: float | None = None) -> str:
    """Return a difference of two shares: `31.0 ± 4.1 points`."""
    return f"{_plus_minus(value, stderr)} points"


def _plus_minus(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if stderr is None else f" ± {100 * stderr:.1f}")


def signed_points(value: float) -> str:
    """Return a difference of two shares with its sign, in points."""
    return f"{100 * value:+.1f}".replace("-", _MINUS)


def p_value(value: float | None) -> str:
    """Return a p-value as `= 0.034`; what is smaller than 0.001 says no more than that."""
    if value is None:
        return "unknown"
    return "< 0.001" if value < 0.001 else f"= {value:.2g}"


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with a few significant digits; None is infinite."""
    return "∞" if value is None else f"{value:.{digits}g}".replace("-", _MINUS)


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return `1 row`, `1,200 rows`; `many` is the plural where it is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def duration(seconds: float) -> str:
    """Return `48 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clip(text: str, length: int) -> str:
    """Shorten a text in its middle: the start says what it is about, the end often holds the answer."""
    text = text.strip()
    if len(text) <= length:
        return text
    end = length // 3
    return f"{text[: length - end].rstrip()} […] {text[-end:].lstrip()}"


def flat(values: Mapping[str, object]) -> dict[str, object]:
    """Return nested settings as one level: `packages.torch`."""
    found: dict[str, object] = {}
    for key, value in values.items():
        inner = flat(value) if isinstance(value, Mapping) else None
        found |= {key: value} if inner is None else {f"{key}.{name}": one for name, one in inner.items()}
    return found
