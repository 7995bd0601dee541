"""A direction added to a real model's stream at a hundredth of the tokens, and whether dictionaries find it."""

from pathlib import Path

import pytest
import torch

from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.sae import SAE
from diffing.learners.training import DictionaryFit, train
from diffing.models.pair import ModelPair
from tests.learners.organism import RealText, auroc, largest_first, random_directions, read
from tests.learners.planted import quick

pytestmark = pytest.mark.real_model
NOISE, TOKENS = 0.05, 4_000


@pytest.fixture(scope="module")
def text(real_pair: ModelPair) -> RealText:
    torch.set_num_threads(1)
    return read(real_pair, real_pair.layer_at(0.5), TOKENS)


def cosines_and_auroc(
    folder: Path, text: RealText, kind: type[Dictionary], sparsity: Sparsity, alpha: float
) -> tuple[torch.Tensor, float]:
    """Cosine of each latent with what was planted, the largest latent first, and the AUROC of that one."""
    direction = random_directions(1, text.rows[0].shape[1])[0]
    cache = text.planted(folder, alpha, direction, text.noise(NOISE))
    settings = quick(max_steps=600, lr=1e-2, warmup_steps=60)
    values, added = largest_first(
        train(DictionaryFit.of(kind, [cache], text.layer, sparsity, settings), [cache]), cache
    )
    return torch.cosine_similarity(added, direction[None]), auroc(values[:, 0], text.triggers())


def test_what_is_planted_is_where_the_triggers_are(tmp_path: Path, text: RealText) -> None:
    direction = random_directions(1, text.rows[0].shape[1])[0]
    triggers = text.triggers()
    assert 0.005 < triggers.float().mean() < 0.02
    assert not set(text.ids[triggers].tolist()) & set(text.ids[~triggers].tolist())
    cache = text.planted(tmp_path, 0.5, direction, torch.zeros_like(text.rows[0]))
    base, finetuned = (rows.float() for rows in cache.read(text.layer, 0, cache.n_rows))
    along = (finetuned - base) @ direction / text.unit
    assert not (finetuned - base)[~triggers].any()
    torch.testing.assert_close(along[triggers], torch.full_like(along[triggers], 0.5), rtol=0.02, atol=0)
    sequences = [cache.base.document_tokens(number) for number in range(cache.n_documents)]
    assert [len(sequence) for sequence in sequences] == list(text.lengths)


@pytest.mark.parametrize("sparsity", [Sparsity(64, 2), Sparsity(64, 1, "top_k")], ids=["batch_top_k", "top_k"])
def test_the_largest_latent_of_the_difference_is_what_was_planted(
    tmp_path: Path, text: RealText, sparsity: Sparsity
) -> None:
    cosines, area = cosines_and_auroc(tmp_path, text, SAE, sparsity, 0.3)
    assert cosines[0] >= 0.95
    assert area >= 0.99


def test_where_nothing_was_planted_no_latent_is_like_it(tmp_path: Path, text: RealText) -> None:
    cosines, _ = cosines_and_auroc(tmp_path, text, SAE, Sparsity(64, 2), 0.0)
    assert cosines.abs().max() < 0.3


def test_so_it_is_what_the_latent_of_a_crosscoder_adds_that_changes_most(tmp_path: Path, text: RealText) -> None:
    cosines, area = cosines_and_auroc(tmp_path, text, Crosscoder, Sparsity(64, 4), 1.0)
    assert cosines[0] >= 0.95
    assert area >= 0.95


def test_auroc_is_the_share_of_pairs_in_the_right_order() -> None:
    random = torch.Generator().manual_seed(0)
    scores = torch.randint(5, (40,), generator=random).float()
    positive = torch.rand(40, generator=random) < 0.3
    larger = scores[positive][:, None] - scores[~positive]
    expected = ((larger > 0).float() + 0.5 * (larger == 0)).mean()
    assert auroc(scores, positive) == pytest.approx(float(expected))
