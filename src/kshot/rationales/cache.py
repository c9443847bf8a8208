"""Answers on disk, one JSON file each, so that a killed run pays for nothing twice."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kshot.atomic import write_json
from kshot.model_source import cache_folder
from kshot.rationales.writer import Answer, Sampling


class AnswerCache:
    """Answers by writer, prompt and sampling settings.

    Args:
        folder: Made when the first answer is kept; `KSHOT_HOME/rationales` by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "rationales"

    def get(self, identity: Mapping[str, str], prompt: str, sampling: Sampling) -> Answer | None:
        """Return the kept answer; None where there is none or its file is damaged."""
        try:
            kept = json.loads(self._file(identity, prompt, sampling).read_text(encoding="utf-8"))
            return _answer(kept["answer"])
        except (OSError, ValueError, TypeError, KeyError):
            return None

    def put(self, identity: Mapping[str, str], prompt: str, sampling: Sampling, answer: Answer) -> None:
        """Keep an answer.

        Raises:
            RunFolderError: The folder cannot be written.
        """
        request = _request(identity, prompt, sampling)
        write_json(self._file(identity, prompt, sampling), {"request": request, "answer": asdict(answer)})

    def _file(self, identity: Mapping[str, str], prompt: str, sampling: Sampling) -> Path:
        request = json.dumps(_request(identity, prompt, sampling), sort_keys=True)
        return self.folder / f"{hashlib.sha256(request.encode()).hexdigest()}.json"


def _request(identity: Mapping[str, str], prompt: str, sampling: Sampling) -> dict[str, Any]:
    return {"writer": dict(identity), "prompt": prompt, "sampling": asdict(sampling)}


def _answer(fields: dict[str, Any]) -> Answer:
    answer = Answer(**fields | {"refused": tuple(fields["refused"])})
    if not isinstance(answer.text, str):
        raise TypeError("a text is a string")
    return answer
