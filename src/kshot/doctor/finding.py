"""One thing that was looked at, and what was found."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

State = Literal["ok", "absent", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What was found.

    Attributes:
        name: Of what was looked at.
        state: `absent` is what may be installed and is not; a `warning` slows or limits; with a `problem`
            kshot, or the task, does not run.
        found: What is there.
        advice: What to do about it, where there is something to do.
        details: The same for programs.
    """

    name: str
    state: State
    found: str
    advice: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON object."""
        return asdict(self)


def is_usable(findings: Iterable[Finding]) -> bool:
    """Whether nothing is in the way of a run."""
    return not any(finding.state == "problem" for finding in findings)
