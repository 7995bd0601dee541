"""The logit lens against the model's own output, and its invariances."""

import pytest
import torch

from diffing.lenses.logit_lens import logit_lens, top_tokens
from diffing.models.sites import residuals
from diffing.text.windows import pad
from tests import tiny

VECTORS = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_lens_on_the_last_block_is_the_next_token_distribution(family: str) -> None:
    model, ids = tiny.model(family), [5, 8, 13, 21, 34]
    last = residuals(model, pad([ids], 0, "right"), [tiny.LAYERS - 1])[tiny.LAYERS - 1][:, -1]
    expected = torch.softmax(model(torch.tensor([ids])).logits[0, -1].float(), -1)
    promoted, _ = logit_lens(model, last, tiny.VOCAB)
    torch.testing.assert_close(promoted.probabilities[0], expected[promoted.ids[0]], rtol=1e-3, atol=1e-6)
    assert promoted.ids[0, 0] == expected.argmax()


def test_a_planted_token_direction_is_read_first() -> None:
    model = tiny.model()
    model.model.norm.weight.fill_(1.0)
    rows = model.lm_head.weight[[17, 99]]
    promoted, suppressed = logit_lens(model, rows, 5)
    assert promoted.ids[:, 0].tolist() == [17, 99]
    assert 17 not in suppressed.ids[0]


def test_suppressed_tokens_are_those_the_negated_vector_promotes() -> None:
    model = tiny.model()  # RMSNorm: odd, so the two coincide
    _, suppressed = logit_lens(model, VECTORS, 10)
    promoted, _ = logit_lens(model, -VECTORS, 10)
    assert torch.equal(suppressed.ids, promoted.ids)
    torch.testing.assert_close(suppressed.probabilities, promoted.probabilities)


def test_rescaling_a_vector_changes_no_readout() -> None:
    model = tiny.model()
    assert torch.equal(logit_lens(model, VECTORS, 20)[0].ids, logit_lens(model, 50 * VECTORS, 20)[0].ids)


def test_bf16_weights_are_read_in_float32() -> None:
    model = tiny.model().to(torch.bfloat16)
    promoted, _ = logit_lens(model, VECTORS.to(torch.bfloat16), tiny.VOCAB)
    assert promoted.probabilities.dtype == torch.float32
    assert len(promoted.probabilities[0].unique()) > tiny.VOCAB * 0.95  # bf16 would tie a large share of them
    torch.testing.assert_close(promoted.probabilities.sum(-1), torch.ones(3))


def test_ties_go_to_the_smaller_token() -> None:
    assert top_tokens(torch.tensor([[0.2, 0.3, 0.3, 0.2]]), 4).ids.tolist() == [[1, 2, 0, 3]]
