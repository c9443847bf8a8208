"""Text from tokens: whole characters, stop strings across tokens, white space."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kshot.language_model import LanguageModel
from kshot.serving.answer_text import AnswerText

from .conftest import Served


def pieces_of(lm: LanguageModel, text: str, *, stop: tuple[str, ...] = (), strip: bool = False) -> list[str]:
    """What is shown after each token, until a stop string."""
    answer = AnswerText(lm.tokenizer, stop, strip=strip)
    shown = []
    for token_id in lm.tokenizer(text)["input_ids"]:
        answer.add(token_id)
        shown.append(answer.take())
        if answer.stopped:
            return shown
    answer.finish()
    return [*shown, answer.take()]


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd<|"), max_size=20))
def test_roundtrip_pieces_add_up(served: Served, text: str) -> None:
    assert "".join(pieces_of(served.lm, text)) == text
    assert "".join(pieces_of(served.lm, text, strip=True)) == text.strip()


@settings(max_examples=100, deadline=None)
@given(
    text=st.text("ab \né", max_size=25),
    stop=st.lists(st.text("ab \né", min_size=1, max_size=4), min_size=1, max_size=3),
    strip=st.booleans(),
)
def test_invariant_text_ends_before_the_first_stop_string(
    served: Served, text: str, stop: list[str], strip: bool
) -> None:
    want = text
    for end in range(len(text) + 1):
        ends = [one for one in stop if text[:end].endswith(one)]
        if ends:
            want = text[: end - max(map(len, ends))]
            break
    shown = "".join(pieces_of(served.lm, text, stop=tuple(stop), strip=strip))
    assert want.startswith(shown) if not strip else want.strip().startswith(shown)
    if len(stop) == 1:
        assert shown == (want.strip() if strip else want)


def test_no_piece_shows_a_part_of_a_stop_string(served: Served) -> None:
    shown = pieces_of(served.lm, "yes STO no STOP more", stop=("STOP",))
    assert "".join(shown) == "yes STO no "
    assert not any(piece.endswith(("S", "ST", "STO")) and piece != "STO" for piece in shown[-4:])


def test_a_character_comes_whole(served: Served) -> None:
    ids = served.lm.tokenizer("é")["input_ids"]
    answer = AnswerText(served.lm.tokenizer, (), strip=False)
    assert len(ids) == 2
    assert [answer.add(one) for one in ids] == ["", "é"]


@pytest.mark.parametrize("strip", [False, True])
def test_a_broken_character_is_shown_at_the_end(served: Served, strip: bool) -> None:
    first = served.lm.tokenizer("é")["input_ids"][0]
    answer = AnswerText(served.lm.tokenizer, (), strip=strip)
    assert answer.add(first) == ""
    assert answer.take() == ""
    assert answer.finish() == "\ufffd"
    assert answer.take() == "\ufffd"


def test_special_tokens_are_no_text(served: Served) -> None:
    assert "".join(pieces_of(served.lm, "a<|endoftext|>b")) == "ab"
