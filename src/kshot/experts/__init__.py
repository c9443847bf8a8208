"""Experts: score adapters on the shots, compare them, pick a group that is good and different."""

from kshot.experts.attach import attached
from kshot.experts.endpoint_base import ServedBase
from kshot.experts.endpoint_scoring import score_at_endpoint
from kshot.experts.expert_score import ExpertScore, Scores
from kshot.experts.halving import Halving, halve_experts
from kshot.experts.leaks import flag_leaks
from kshot.experts.row_experts import row_experts
from kshot.experts.score_store import ScoreStore
from kshot.experts.scoring import score_experts
from kshot.experts.screening import Screening, screen_experts
from kshot.experts.selection import ExpertSelection, select_experts
from kshot.experts.similarity import Similarity, adapter_similarity, fingerprint_similarity

__all__ = [
    "ExpertScore",
    "ExpertSelection",
    "Halving",
    "ScoreStore",
    "Scores",
    "Screening",
    "ServedBase",
    "Similarity",
    "adapter_similarity",
    "attached",
    "fingerprint_similarity",
    "flag_leaks",
    "halve_experts",
    "row_experts",
    "score_at_endpoint",
    "score_experts",
    "screen_experts",
    "select_experts",
]
