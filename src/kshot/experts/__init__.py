"""Experts: score adapters on the shots, compare them, pick a group that is good and different."""

from kshot.experts.attach import attached
from kshot.experts.scoring import ExpertScore, score_experts
from kshot.experts.selection import ExpertSelection, select_experts
from kshot.experts.similarity import Similarity, adapter_similarity

__all__ = [
    "ExpertScore",
    "ExpertSelection",
    "Similarity",
    "adapter_similarity",
    "attached",
    "score_experts",
    "select_experts",
]
