"""Rationales: why the answer of an example is right, written by a model and kept where it leads there."""

from kshot.rationales.cache import AnswerCache
from kshot.rationales.endpoint import EndpointWriter
from kshot.rationales.local import LocalWriter
from kshot.rationales.prompt import RationalePrompt, Style
from kshot.rationales.result import RationaleResult
from kshot.rationales.write import write_rationales
from kshot.rationales.writer import Answer, Sampling, Writer

__all__ = [
    "Answer",
    "AnswerCache",
    "EndpointWriter",
    "LocalWriter",
    "RationalePrompt",
    "RationaleResult",
    "Sampling",
    "Style",
    "Writer",
    "write_rationales",
]
