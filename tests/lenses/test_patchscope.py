"""The identity patchscope: closed-form properties and a planted reading."""

import pytest
import torch

from diffing.lenses.patchscope import IDENTITY_WORDS, identity_prompt, patchscope
from diffing.models.sites import editing
from tests import tiny

VECTORS = torch.randn(3, tiny.WIDTH, generator=torch.Generator().manual_seed(0)) * 5


def scores(intersection: int = tiny.VOCAB, layer: int = 1, **kwargs) -> torch.Tensor:
    return patchscope(tiny.model(), tiny.tokenizer(), VECTORS, layer, intersection, **kwargs)


def test_the_prompt_has_three_identities_and_a_blank() -> None:
    assert identity_prompt(IDENTITY_WORDS[0]) == "man -> man\n1135 -> 1135\nhello -> hello\n?"


def test_scores_sum_to_one_over_the_whole_vocabulary_and_to_less_below() -> None:
    torch.testing.assert_close(scores().sum(-1), torch.ones(3), rtol=1e-4, atol=1e-5)
    fewer = scores(20)
    assert (fewer.sum(-1) < 1).all()
    assert ((fewer > 0).sum(-1) <= 20).all()


def test_a_kept_token_is_in_every_top_list_and_keeps_its_score() -> None:
    whole, fewer = scores(), scores(40)
    kept = fewer > 0
    torch.testing.assert_close(fewer[kept], whole[kept])


def test_batching_changes_no_score() -> None:
    torch.testing.assert_close(scores(50, batch_size=1), scores(50, batch_size=3), rtol=1e-4, atol=1e-6)


def test_patching_the_last_block_reads_the_vector_with_the_logit_lens() -> None:
    from diffing.lenses.logit_lens import logit_lens

    promoted, _ = logit_lens(tiny.model(), VECTORS, 10)
    patched = scores(layer=tiny.LAYERS - 1)
    torch.testing.assert_close(patched.gather(1, promoted.ids), promoted.probabilities, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_only_the_blank_is_overwritten(layer: int) -> None:
    model, seen = tiny.model(), []
    ids = tiny.tokenizer()(identity_prompt(IDENTITY_WORDS[0]))["input_ids"]
    with editing(model, layer, lambda hidden: (seen.append(hidden.clone()), hidden)[1]):
        model(torch.tensor([ids]))
        patchscope(model, tiny.tokenizer(), VECTORS[:1], layer, 50)
    # The observing hook was registered first, so it sees the stream before the patch: equal to the unpatched one.
    torch.testing.assert_close(torch.cat(seen[1:3], dim=1), seen[0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_what_stands_before_the_blank_may_be_run_once(family: str) -> None:
    """The whole prompt, run with each vector in its place."""
    model, vectors, per_prompt = tiny.model(family), VECTORS, []
    for words in IDENTITY_WORDS:
        ids = torch.tensor([tiny.tokenizer()(identity_prompt(words))["input_ids"]]).expand(len(vectors), -1)
        with editing(model, 1, lambda hidden: torch.cat([hidden[:, :-1], vectors[:, None]], dim=1)):
            per_prompt.append(torch.softmax(model(ids, use_cache=False).logits[:, -1], -1))
    found = patchscope(model, tiny.tokenizer(), vectors, 1, tiny.VOCAB)
    torch.testing.assert_close(found, torch.stack(per_prompt).mean(0), rtol=1e-3, atol=1e-6)
