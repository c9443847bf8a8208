"""kshot: from K labelled examples to a task expert.

Importing it makes PEFT know the mixture of experts; everything else is imported when it is first used.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import kshot.mixture as mixture

if TYPE_CHECKING:
    from kshot.bank import Bank
    from kshot.corpus import select_data
    from kshot.evaluation import evaluate
    from kshot.examples import Example, read_examples
    from kshot.experts import adapter_similarity, score_experts, select_experts
    from kshot.language_model import LanguageModel
    from kshot.pipeline import run

__version__ = version("kshot")
__all__ = [
    "Bank",
    "Example",
    "LanguageModel",
    "adapter_similarity",
    "evaluate",
    "mixture",
    "read_examples",
    "run",
    "score_experts",
    "select_data",
    "select_experts",
]

_HOMES = {
    "Bank": "bank",
    "Example": "examples",
    "LanguageModel": "language_model",
    "adapter_similarity": "experts",
    "evaluate": "evaluation",
    "read_examples": "examples",
    "run": "pipeline",
    "score_experts": "experts",
    "select_data": "corpus",
    "select_experts": "experts",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kshot' has no attribute {name!r}")
    return getattr(import_module(f"kshot.{_HOMES[name]}"), name)
