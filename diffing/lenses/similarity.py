"""How like texts are to others, in the space of an embedding model: do steered samples resemble the training data?

The statistic is the mean cosine over all pairs of two sets of texts, which is the dot product of the centroids of their
unit vectors. Within one set the pairs of a text with itself are left out: they would add (1 - mean) / n.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn
from transformers import PreTrainedModel

from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting, MissingInput
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.models.sources import model_source
from diffing.specs import ModelSpec
from diffing.text.windows import TokenBatch, batches

INTERVAL = (0.025, 0.975)


@runtime_checkable
class Embedder(Protocol):
    """Texts to vectors, each for itself. A text with nothing to embed gets a row of NaN."""

    anisotropic: ClassVar[bool]
    """Whether the vectors share a large common part, to be subtracted before cosines are taken."""

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        """In float32, on the CPU."""


@dataclass(frozen=True)
class BaseModelEmbedder:
    """The base model of a pair, which needs no download: `mean_pooled` over the first tokens of a text."""

    pair: ModelPair
    layer: int
    max_tokens: int = 128
    batch_size: int = 16
    anisotropic: ClassVar[bool] = True

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        tokenizer = self.pair.tokenizer
        sequences = [ids[: self.max_tokens] for ids in tokenizer(list(texts), verbose=False)["input_ids"]]
        rows = torch.full((len(texts), self.pair.d_model), torch.nan)
        kept = [row for row, ids in enumerate(sequences) if len(ids) > 1]
        if kept:
            padded = batches((sequences[row] for row in kept), self.batch_size, tokenizer.pad_token_id, "right")
            with self.pair.using(Side.BASE) as model:
                rows[kept] = torch.cat([mean_pooled(model, batch, self.layer).cpu() for batch in padded])
        return rows


class SentenceEmbedder:
    """Any model of the sentence-transformers library: a hub id, a folder, or `package://module/path`."""

    anisotropic: ClassVar[bool] = False

    def __init__(self, id: str, device: torch.device, batch_size: int = 32):
        """Raises MissingInput without the library or the model."""
        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise MissingInput(
                f"the embedding model {id} needs the package sentence-transformers: pip install -c constraints.txt "
                "-e .[embeddings], or embed with the base model"
            ) from error
        self._model = SentenceTransformer(str(model_source(ModelSpec(name=id, id=id)).folder), device=str(device))
        self._batch_size = batch_size

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        found = self._model.encode(
            list(texts), batch_size=self._batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        blank = torch.tensor([not text.strip() for text in texts])
        return found.float().cpu().masked_fill(blank[:, None], torch.nan)


@dataclass(frozen=True)
class Similarity:
    """Of two sets of texts, or of one to itself where both names are the same."""

    first: str
    second: str
    mean: float
    """Mean cosine over all pairs of two different texts."""
    low: float
    """2.5th percentile over resamples of the texts of both sets."""
    high: float
    """97.5th percentile."""
    n_first: int
    """Texts compared; those with nothing to embed are not among them."""
    n_second: int


def similarities(
    embed: Embedder,
    samples: Mapping[str, Sequence[str]],
    training: Sequence[str],
    unrelated: Sequence[str],
    *,
    n_resamples: int = 1000,
    seed: int = 0,
) -> list[Similarity]:
    """Of each set of samples to `training` and to `unrelated`; then of `training` to itself, the highest that samples
    could be expected to reach, and to `unrelated`.

    From vectors of an anisotropic embedder the midpoint of the means of `training` and `unrelated` is subtracted, never
    anything of the samples: 0 is then as like the one as the other. Raises EmptyCorpus if a set has nothing to compare,
    InvalidSetting for a set of samples with the name of a reference or fewer than 2 resamples.
    """
    if clash := {"training", "unrelated"} & set(samples):
        raise InvalidSetting(f"samples named {sorted(clash)}, as a reference is; give other names")
    if n_resamples < 2:
        raise InvalidSetting(f"an interval of {n_resamples} resamples; expected 2 or more")
    sets = {"training": training, "unrelated": unrelated, **samples}
    embedded = {name: _embedded(embed, name, texts) for name, texts in sets.items()}
    if embed.anisotropic:
        origin = (embedded["training"].mean(dim=0) + embedded["unrelated"].mean(dim=0)) / 2
        embedded = {name: rows - origin for name, rows in embedded.items()}
    units = {name: nn.functional.normalize(rows, dim=-1) for name, rows in embedded.items()}
    pairs = [(name, reference) for name in samples for reference in ("training", "unrelated")]
    pairs += [("training", "training"), ("training", "unrelated")]
    return [_similarity(units, first, second, n_resamples, seed) for first, second in pairs]


@torch.no_grad()
def mean_pooled(model: PreTrainedModel, batch: TokenBatch, layer: int) -> Float[Tensor, "batch d_model"]:
    """Mean of the residual stream over the real tokens of a sequence but its first; NaN where there are no others.

    The first token is an attention sink, many times as long as the others and nearly the same in all texts: a mean with
    it would say, before all else, how short a text is.
    """
    hidden = residuals(model, batch, [layer])[layer].double()
    pooled = (batch.mask & (batch.position_ids > 0)).to(hidden.device)[..., None]
    return (hidden.masked_fill(~pooled, 0.0).sum(dim=1) / pooled.sum(dim=1)).float()


def mean_cosine(first: Float[Tensor, "text dim"], second: Float[Tensor, "other dim"]) -> float:
    """Over all pairs of a row of the one and a row of the other."""
    centroids = [nn.functional.normalize(rows.double(), dim=-1).mean(dim=0) for rows in (first, second)]
    return float(centroids[0] @ centroids[1])


def mean_self_cosine(rows: Float[Tensor, "text dim"]) -> float:
    """Over all pairs of two different rows; NaN for a single row."""
    units = nn.functional.normalize(rows.double(), dim=-1)
    return float(_within(units, torch.ones(1, len(units), dtype=torch.float64))[0])


def _embedded(embed: Embedder, name: str, texts: Sequence[str]) -> Float64[Tensor, "text dim"]:
    rows = embed(texts).double() if len(texts) else torch.empty(0, 1, dtype=torch.float64)
    rows = rows[rows.isfinite().all(dim=1)]
    needed = 2 if name == "training" else 1
    if len(rows) < needed:
        raise EmptyCorpus(
            f"{len(rows)} of {len(texts)} texts of '{name}' have something to embed; expected {needed} or more"
        )
    return rows


def _similarity(units: Mapping[str, Tensor], first: str, second: str, n_resamples: int, seed: int) -> Similarity:
    draw = torch.Generator().manual_seed(seed)
    if first == second:
        mean = mean_self_cosine(units[first])
        resampled = _within(units[first], _resamples(len(units[first]), n_resamples, draw))
    else:
        mean = mean_cosine(units[first], units[second])
        centroids = [
            _resamples(len(units[name]), n_resamples, draw) @ units[name] / len(units[name]) for name in (first, second)
        ]
        resampled = (centroids[0] * centroids[1]).sum(dim=1)
    low, high = resampled.nanquantile(torch.tensor(INTERVAL, dtype=torch.float64)).tolist()
    return Similarity(first, second, mean, low, high, len(units[first]), len(units[second]))


def _resamples(n_texts: int, n_resamples: int, draw: torch.Generator) -> Float64[Tensor, "resample text"]:
    """How often each text is drawn, of as many draws with replacement as there are texts."""
    drawn = torch.randint(n_texts, (n_resamples, n_texts), generator=draw)
    counts = torch.zeros(n_resamples, n_texts, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(counts))


def _within(
    units: Float64[Tensor, "text dim"], counts: Float64[Tensor, "resample text"]
) -> Float64[Tensor, " resample"]:
    """Mean cosine of two different texts, each as often as it counts: a text is not compared to a copy of itself. NaN
    where one text has all counts."""
    squares = counts.square()
    own = squares @ units.square().sum(dim=1)
    return ((counts @ units).square().sum(dim=1) - own) / (counts.sum(dim=1).square() - squares.sum(dim=1))
