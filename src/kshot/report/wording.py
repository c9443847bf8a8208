"""Numbers and texts as people read them."""

from collections.abc import Mapping

_MINUS = "\N{MINUS SIGN}"
_GLUE = "\N{NO-BREAK SPACE}"  # keeps a number, its error and its unit on one line


def percent(value: float, stderr: float | None = None) -> str:
    """Return a share with its standard error: `62.0 ± 3.4 %`."""
    return f"{_plus_minus(value, stderr)}{_GLUE}%"


def points(value: float, stderr: float | None = None) -> str:
    """Return a difference of two shares: `31.0 ± 4.1 points`."""
    return f"{_plus_minus(value, stderr)}{_GLUE}points"


def _plus_minus(value: float, stderr: float | None) -> str:
    return f"{100 * value:.1f}" + ("" if stderr is None else f"{_GLUE}±{_GLUE}{100 * stderr:.1f}")


def signed(value: float, stderr: float | None = None) -> str:
    """Return a difference of two shares with its sign, in points: `+31.0 ± 4.1`."""
    return ("+" if value > 0 else "") + _plus_minus(value, stderr).replace("-", _MINUS)


def p_value(value: float | None) -> str:
    """Return `p = 0.034`."""
    shown = p_number(value)
    return f"p{_GLUE}{shown}" if shown.startswith("<") else f"p{_GLUE}={_GLUE}{shown}"


def p_number(value: float | None) -> str:
    """Return a p-value to two digits; what is smaller than 0.001 says no more than that."""
    if value is None:
        return "?"
    return f"<{_GLUE}0.001" if value < 0.001 else f"{value:.2g}"


def number(value: float) -> str:
    """Return a number with at most four digits that count: `4.5`, `12`."""
    return f"{value:.4g}".replace("-", _MINUS)


def significant(value: float | None) -> str:
    """Return a number with just four digits that count: `4.500`, `12.00`; None is infinite."""
    return "∞" if value is None else f"{value:#.4g}".replace("-", _MINUS)


def plus_minus(value: float, stderr: float | None) -> str:
    """Return a number with its standard error, both to four digits that count: `0.4312 ± 0.05100`."""
    return significant(value) + ("" if stderr is None else f"{_GLUE}±{_GLUE}{significant(stderr)}")


def memory(mebibytes: float) -> str:
    """Return `512 MiB` or `2.1 GiB`."""
    return f"{mebibytes:.0f}{_GLUE}MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.1f}{_GLUE}GiB"


def plural(count: int, noun: str, many: str | None = None) -> str:
    """Return `1 row`, `1,200 rows`; `many` is the plural where it is not the noun and an s."""
    return f"{count:,} {noun if count == 1 else many or noun + 's'}"


def duration(seconds: float) -> str:
    """Return `48 s`, `3 min 20 s` or `2 h 5 min`."""
    whole = round(seconds)
    minutes = whole // 60
    if minutes >= 60:
        return f"{minutes // 60}{_GLUE}h {minutes % 60}{_GLUE}min"
    return f"{minutes}{_GLUE}min {whole % 60}{_GLUE}s" if minutes else f"{whole}{_GLUE}s"


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
