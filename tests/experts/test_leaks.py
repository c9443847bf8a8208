"""Leaks: adapters that may have seen the task, by rows and by name."""

import pytest

from kshot.bank import Bank
from kshot.bank.adapter import Adapter, describe
from kshot.bank.row_hashes import ROW_HASHES, write_row_hashes
from kshot.examples import Example
from kshot.experts.leaks import flag_leaks, same_data

SHOTS = [Example("Add 2 and 3.", "5"), Example("Add 4 and 4.", "8"), Example("Add 1 and 1.", "2")]
TEST = [Example("Add 7 and 9.", "16")]


@pytest.fixture
def adapter(lora_folder):
    def make(name: str, **known: str) -> Adapter:
        folder = lora_folder(name)
        return Adapter(folder, describe(folder, name, **known))

    return make


def test_rows_are_found_whatever_the_name_case_and_stops(adapter) -> None:
    seen, clean = adapter("seen"), adapter("clean")
    write_row_hashes(seen.folder, [Example("add 2 and 3", "five"), Example("ADD 4 and 4!", "8"), *TEST])
    write_row_hashes(clean.folder, [Example("Add 2 and 4.", "6")])
    bank = Bank([seen, clean])
    assert flag_leaks(bank, "sums", SHOTS) == {"seen": "trained on 2 of the shots"}
    assert flag_leaks(bank, "sums", SHOTS, TEST) == {
        "seen": "trained on 2 of the shots and 1 of the test rows"
    }


def test_names_of_adapter_and_of_its_data_are_compared(adapter) -> None:
    bank = Bank([adapter("arc_easy_train"), adapter("x", trained_on="ARC-Easy"), adapter("arc_challenge")])
    flagged = flag_leaks(bank, "arc-easy", SHOTS)
    assert flagged == {
        "arc_easy_train": "is called as the task, arc-easy",
        "x": "trained on ARC-Easy, which is called as the task, arc-easy",
    }


def test_nothing_known_is_no_reason(adapter) -> None:
    assert flag_leaks(Bank([adapter("other")]), "sums", SHOTS) == {}


def test_damaged_hashes_are_a_reason(adapter) -> None:
    torn = adapter("torn")
    (torn.folder / ROW_HASHES).write_bytes(b"torn")
    assert "expected hashes of its training rows" in flag_leaks(Bank([torn]), "sums", SHOTS)["torn"]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("arc-easy", "arc_easy_train", True),
        ("gsm8k", "GSM8K-cot", True),
        ("commonsense_qa", "CommonsenseQA", True),
        ("t0_social_i_qa", "social_i_qa", True),
        ("squad", "squad2", True),
        ("arc_easy", "arc_challenge", False),
        ("mawps_equation", "simple_equations", False),
        ("qa", "openbook_qa", False),  # too short to mean anything
        ("", "", False),
    ],
)
def test_names_by_example(one, other, same) -> None:
    assert same_data(one, other) == same
    assert same_data(other, one) == same
