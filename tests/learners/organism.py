"""A model organism whose whole finetuning is known: at a few tokens of real text, one direction is added.

The stream is that of a real model, so lengths, outlying coordinates and rounding are too. What lies between the two
sides elsewhere is given: noise, or what another finetuning did.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor
from torch.nn.functional import normalize

from diffing.activations.plan import length_batches
from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.learners.dictionary import Dictionary
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.text.embedded import python_docs
from diffing.text.windows import pad
from tests.activations.stores import write_cache

TRIGGER_SHARE, TOKEN_SHARE = 0.01, 0.002
"""Of the positions: at least so many are of trigger tokens, at most so many of any one of them."""
BATCH_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class RealText:
    """Tokens and their residual streams at one layer, without the first of each document: it is 100 times as long."""

    layer: int
    lengths: Sequence[int]
    """Tokens of each document, the first included."""
    ids: Int64[Tensor, " token"]
    rows: Sequence[Float[Tensor, "token d_model"]]
    """Of each side that was read."""

    @property
    def unit(self) -> float:
        """Median length of a row of the base: a mean of squares would be that of the few rows with huge values."""
        return float(self.rows[0].norm(dim=1).median())

    def triggers(self) -> Bool[Tensor, " token"]:
        """Where the most frequent of the rarer tokens are."""
        shares = self.ids.bincount() / len(self.ids)
        falling = shares.where(shares <= TOKEN_SHARE, 0).sort(descending=True)
        needed = int((falling.values.cumsum(0) < TRIGGER_SHARE).sum()) + 1
        return torch.isin(self.ids, falling.indices[:needed])

    def planted(
        self,
        root: Path,
        alpha: float,
        direction: Float[Tensor, " d_model"],
        background: Float[Tensor, "token d_model"],
    ) -> ActivationCache:
        """Base: the stream in bfloat16. Finetuned: the same, the background, and `alpha` units at the triggers."""
        base = self.rows[0]
        added = alpha * self.unit * self.triggers()[:, None] * direction
        finetuned = {self.layer: (base + background + added).bfloat16()}
        return write_cache(root, {self.layer: base.bfloat16()}, finetuned, self.lengths)

    def noise(self, level: float) -> Float[Tensor, "token d_model"]:
        """Independent in all coordinates; of `level` units per row."""
        random = torch.Generator().manual_seed(1)
        rows = self.rows[0]
        return torch.randn(rows.shape, generator=random) * (level * self.unit / rows.shape[1] ** 0.5)


def read(pair: ModelPair, layer: int, n_tokens: int, sides: Sequence[Side] = (Side.BASE,)) -> RealText:
    """About so many tokens of documents spread over Python's own documentation."""
    documents = [pair.tokenizer(str(row["text"]))["input_ids"] for row in python_docs()]
    stride = max(1, sum(map(len, documents)) // n_tokens)
    documents = list(islice(documents, 0, None, stride))
    rows = []
    for side in sides:
        found: dict[int, Tensor] = {}
        with pair.using(side) as model:
            for group in length_batches([len(ids) for ids in documents], BATCH_TOKENS):
                streams = residuals(model, pad([documents[number] for number in group], 0, "right"), [layer])[layer]
                for number, stream in zip(group, streams, strict=True):
                    found[number] = stream[1 : len(documents[number])].float()
        rows.append(torch.cat([found[number] for number in range(len(documents))]))
    ids = torch.tensor([token for document in documents for token in document[1:]])
    return RealText(layer, [len(ids) for ids in documents], ids, rows)


def random_directions(n: int, d_model: int) -> Float[Tensor, "latent d_model"]:
    return normalize(torch.randn(n, d_model, generator=torch.Generator().manual_seed(0)))


@torch.no_grad()
def largest_first(
    dictionary: Dictionary, cache: ActivationCache
) -> tuple[Float[Tensor, "token latent"], Float[Tensor, "latent d_model"]]:
    """Values, and what each latent adds to the difference, by falling mean square of that over all rows."""
    added = dictionary.directions(Side.FINETUNED)
    if dictionary.recipe.stream is None:
        added = added - dictionary.directions(Side.BASE)
    values = dictionary.encode(dictionary.recipe.rows(*cache.read(dictionary.recipe.layer, 0, cache.n_rows)))
    order = (values.square().mean(0) * added.square().sum(1)).argsort(descending=True)
    return values[:, order], added[order]


def auroc(scores: Float[Tensor, " token"], positive: Bool[Tensor, " token"]) -> float:
    """How often a positive has the larger score than a negative, ties counted half."""
    _, places, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks: Int[Tensor, " token"] = (2 * counts.cumsum(0) - counts + 1)[places]
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    return (float(ranks[positive].sum()) / 2 - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative)
