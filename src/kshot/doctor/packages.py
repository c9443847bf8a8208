"""Versions that are installed, against those that kshot was declared to need."""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, metadata, requires, version

from packaging.requirements import Requirement

from kshot.doctor.finding import Finding

NAMED = ("torch", "transformers", "peft")  # with a line of their own; the others share one
FOR_DEVELOPERS = "dev"  # an extra that no user needs


def installed(package: str) -> str | None:
    """Return the version of a package; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def check_packages() -> list[Finding]:
    """Look at what kshot itself needs."""
    needed = [one for one in _requirements() if one.marker is None or one.marker.evaluate({"extra": ""})]
    found = [_check(one) for one in needed]
    named = [one for one in found if one.name in NAMED or one.state != "ok"]
    others = [one for one in found if one not in named]
    summary = Finding(
        "other packages",
        "ok",
        f"{len(others)}, all in range",
        details={one.name: one.details["installed"] for one in others},
    )
    return [Finding("kshot", "ok", version("kshot")), *sorted(named, key=_order), summary]


def check_extras() -> Iterator[Finding]:
    """Look at what may be installed besides."""
    by_extra: dict[str, list[Requirement]] = defaultdict(list)
    known = [one for one in metadata("kshot").get_all("Provides-Extra") or () if one != FOR_DEVELOPERS]
    for requirement in _requirements():
        for extra in known:
            marker = requirement.marker
            if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
                by_extra[extra].append(requirement)
    for extra in sorted(by_extra):
        yield _extra(extra, by_extra[extra])


def _requirements() -> list[Requirement]:
    return [Requirement(text) for text in requires("kshot") or ()]


def _check(requirement: Requirement) -> Finding:
    wanted, have = str(requirement.specifier), installed(requirement.name)
    details = {"installed": have, "wanted": wanted}
    if have is not None and requirement.specifier.contains(have, prereleases=True):
        return Finding(requirement.name, "ok", have, details=details)
    return Finding(
        requirement.name,
        "problem",
        f"{have or 'not installed'}, kshot needs {wanted or 'any version'}",
        f"pip install '{requirement.name}{wanted}'",
        details,
    )


def _extra(extra: str, needed: Iterable[Requirement]) -> Finding:
    checked = [_check(one) for one in needed]
    details = {one.name: one.details["installed"] for one in checked}
    missing = [one.name for one in checked if one.details["installed"] is None]
    wrong = [one for one in checked if one.state != "ok" and one.name not in missing]
    advice = f"pip install 'kshot[{extra}]'"
    if wrong:
        found = "; ".join(f"{one.name} {one.found}" for one in wrong)
        return Finding(f"extra {extra}", "warning", found, advice, details)
    if missing:
        return Finding(f"extra {extra}", "absent", f"without {', '.join(missing)}", advice, details)
    return Finding(
        f"extra {extra}", "ok", ", ".join(f"{one.name} {one.found}" for one in checked), "", details
    )


def _order(finding: Finding) -> int:
    return NAMED.index(finding.name) if finding.name in NAMED else len(NAMED)
