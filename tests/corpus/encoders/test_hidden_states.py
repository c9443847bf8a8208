"""Hidden states: against a loop over single texts without padding."""

import numpy as np
import pytest
import torch

from kshot.corpus.encoders import HiddenStateEncoder
from kshot.corpus.encoders.background import BACKGROUND
from kshot.corpus.encoders.hidden_states import position_weighted_mean
from kshot.language_model import LanguageModel

TEXTS = ["What is the sum of two and three?\nfive", "yes", "no maybe 0 1 2 3\nThe answer is five.", "yes no"]


def _as_published(lm: LanguageModel, text: str) -> np.ndarray:
    """RDS+: one text, no padding, transformers' own hidden states."""
    ids = torch.tensor([lm.tokenizer(text)["input_ids"]])
    with torch.no_grad():
        hidden_TD = lm.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].double()
    weights_T = torch.arange(1, len(hidden_TD) + 1).double()
    mean_D = (weights_T / weights_T.sum()) @ hidden_TD
    return (mean_D / mean_D.norm()).numpy()


@pytest.mark.parametrize("tokens_per_batch", [1, 40, 4096])
def test_against_single_texts(tiny_lm: LanguageModel, tokens_per_batch: int) -> None:
    vectors_ND = HiddenStateEncoder(tiny_lm, tokens_per_batch=tokens_per_batch).encode(TEXTS)
    assert vectors_ND.dtype == np.float32
    background_ND = np.array([_as_published(tiny_lm, text) for text in BACKGROUND])
    scale_D = background_ND.std(axis=0)
    scale_D += np.median(scale_D) / 10
    for text, vector_D in zip(TEXTS, vectors_ND, strict=True):
        rest_D = (_as_published(tiny_lm, text) - background_ND.mean(axis=0)) / scale_D
        np.testing.assert_allclose(vector_D, rest_D / np.linalg.norm(rest_D), atol=1e-5)


def test_what_all_texts_share_is_taken_off(tiny_lm: LanguageModel) -> None:
    """A large direction of all hidden states makes all texts alike as published, and none here."""
    texts = ["yes no maybe", "What is the sum of two and three?\nfive", "0 1 2 3 0 1 2 3", "system user"]
    tiny_lm.model.model.norm.register_forward_hook(
        lambda module, inputs, output: output + 20 * torch.eye(32)[3]
    )
    as_published_ND = np.array([_as_published(tiny_lm, text) for text in texts])
    vectors_ND = HiddenStateEncoder(tiny_lm).encode([*texts, "yes no maybe."])
    apart = ~np.eye(4, dtype=bool)
    assert (as_published_ND @ as_published_ND.T)[apart].min() > 0.9
    cosines_NN = vectors_ND @ vectors_ND.T
    assert cosines_NN[:4, :4][apart].max() < 0.5
    assert cosines_NN[0, 4] > 0.6  # a near-copy stays one


def test_a_coordinate_that_never_changes_decides_nothing(tiny_lm: LanguageModel) -> None:
    """Its standard deviation over the background is what rounding leaves of 0."""
    with torch.no_grad():
        tiny_lm.model.model.norm.weight[3] = 0
    vectors_ND = HiddenStateEncoder(tiny_lm).encode(TEXTS)
    np.testing.assert_allclose(vectors_ND[:, 3], 0, atol=1e-6)
    assert np.isfinite(vectors_ND).all()


def test_other_background_texts_would_have_another_name(
    tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = HiddenStateEncoder(tiny_lm).name
    monkeypatch.setattr("kshot.corpus.encoders.hidden_states.BACKGROUND", BACKGROUND[:-1])
    assert HiddenStateEncoder(tiny_lm).name != before


def test_invariant_padding_counts_for_nothing() -> None:
    torch.manual_seed(0)
    hidden_BTD = torch.randn(1, 5, 3)
    mask_BT = torch.tensor([[0, 0, 1, 1, 1]])
    wanted_D = (hidden_BTD[0, 2] + 2 * hidden_BTD[0, 3] + 3 * hidden_BTD[0, 4]) / 6
    torch.testing.assert_close(position_weighted_mean(hidden_BTD, mask_BT)[0], wanted_D)
    hidden_BTD[0, :2] = 1e9
    torch.testing.assert_close(position_weighted_mean(hidden_BTD, mask_BT)[0], wanted_D)


def test_dropout_is_off_and_gradients_are_not_kept(tiny_lm: LanguageModel) -> None:
    tiny_lm.model.train()
    encoder = HiddenStateEncoder(tiny_lm)
    assert encoder.encode(TEXTS).tobytes() == encoder.encode(TEXTS).tobytes()
    assert not tiny_lm.model.training


def test_long_and_empty_texts(tiny_lm: LanguageModel) -> None:
    encoder = HiddenStateEncoder(tiny_lm)
    vectors_ND = encoder.encode(["yes " * 2_000, ""])  # the model reads 512 tokens
    np.testing.assert_allclose(np.linalg.norm(vectors_ND, axis=1), [1, 0], atol=1e-6)
    assert encoder.encode([]).shape == (0, 32)


def test_the_name_tells_weights_apart(tiny_lm: LanguageModel) -> None:
    before = HiddenStateEncoder(tiny_lm).name
    assert HiddenStateEncoder(tiny_lm).name == before
    with torch.no_grad():
        next(tiny_lm.model.parameters())[0, 0] += 1
    assert HiddenStateEncoder(tiny_lm).name != before


def test_the_output_embedding_is_left_as_it_was(tiny_lm: LanguageModel) -> None:
    HiddenStateEncoder(tiny_lm).encode(TEXTS)
    assert tiny_lm.model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.shape[1] == 4
