"""One streamed pass over one corpus, and the vectors that are read from it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from diffing.activations.position_means import PositionMeans, position_means
from diffing.axes import Side
from diffing.errors import EmptyCorpus
from diffing.methods.base import Study
from diffing.text.corpus import Corpus
from diffing.text.windows import batches, chat_starts, token_sequences

SOURCES = ("difference", "base", "finetuned", "random")
"""What is read: the mean difference, and its controls."""


@dataclass(frozen=True)
class Window:
    """Which texts and tokens are read."""

    n_positions: int
    n_before: int
    """Tokens before the answer, of conversations."""
    max_texts: int
    max_prompt_tokens: int
    batch_size: int


@dataclass(frozen=True)
class Reading:
    """What was measured at one layer on one corpus, and the vectors that are read there."""

    corpus: str
    means: PositionMeans
    positions: Sequence[int]
    """Those that are read: among the wanted ones, those that texts reach and at which the mean difference is not 0."""
    vectors: Mapping[str, Float[Tensor, "pos d_model"]]
    """Per source of `SOURCES`, at those positions, in float32."""
    has_sink: bool
    """Whether position 0 is the first token of a text, on which most models rest their attention."""

    @property
    def differs(self) -> bool:
        return bool((self.means.norm_difference > 0).any())

    def row(self, position: int) -> int:
        """Of the means."""
        return position - self.means.first

    def shift(self, position: int) -> float:
        """Norm of the mean difference over the base's mean residual norm."""
        row = self.row(position)
        return float(self.means.difference[row].norm() / self.means.norm_base[row])

    @property
    def telling(self) -> int:
        """The position whose shift is largest for its residual norm; other than a sink if there is a choice."""
        candidates = [position for position in self.positions if position != 0 or not self.has_sink]
        return max(candidates or self.positions, key=self.shift)

    def scaled(self, source: str) -> Float[Tensor, "pos d_model"]:
        """The vectors of a source, rescaled to the mean residual norm of the finetuned model."""
        return torch.nn.functional.normalize(self.vectors[source], dim=-1) * self.means.residual_norm

    def at(self, source: str, position: int) -> Float[Tensor, " d_model"]:
        """One of them."""
        return self.scaled(source)[self.positions.index(position)]

    def labels(self, source: str) -> list[dict[str, object]]:
        """What each vector of a source is, as columns of the tables."""
        where = {"corpus": self.corpus, "layer": self.means.layer, "source": source}
        return [where | {"position": position} for position in self.positions]


def reader(source: str) -> Side:
    """Each side's mean is read by its own model; differences and random directions by the finetuned one."""
    return Side.BASE if source == "base" else Side.FINETUNED


def read(
    study: Study, corpus: Corpus, layers: Sequence[int], window: Window, positions: Sequence[int]
) -> Iterator[Reading]:
    """All layers in one pass. Texts are read from their start; conversations around the start of their first answer,
    and there the positions before it are read besides `positions`."""
    chat = corpus.spec.format == "chat"
    means = _means(study, corpus, layers, window, chat)
    wanted = [*range(-window.n_before, 0), *positions] if chat else positions
    for layer in layers:
        yield reading_of(corpus.spec.name, means[layer], wanted, study.seed, has_sink=not chat)


def _means(study: Study, corpus: Corpus, layers: Sequence[int], window: Window, chat: bool) -> dict[int, PositionMeans]:
    tokenizer, anchors = study.pair.tokenizer, None
    try:
        if chat:
            starts = list(
                chat_starts(
                    corpus, tokenizer, max_tokens=window.n_positions, max_prompt_tokens=window.max_prompt_tokens,
                    max_texts=window.max_texts,
                )
            )  # fmt: skip
            texts, anchors = [start.ids for start in starts], [start.anchor for start in starts]
        else:
            texts = list(token_sequences(corpus, tokenizer, max_tokens=window.n_positions, max_texts=window.max_texts))
        with study.progress.stage(f"activations of both sides on {corpus.spec.name}", len(texts)) as advance:
            padded = batches(texts, window.batch_size, pad_id=tokenizer.pad_token_id, side="right")
            return position_means(
                study.pair, padded, layers, window.n_positions, advance,
                anchors=anchors, n_before=window.n_before if chat else 0,
            )  # fmt: skip
    except EmptyCorpus as error:
        raise EmptyCorpus(f"corpus '{corpus.spec.name}': {error}") from error


def reading_of(corpus: str, means: PositionMeans, wanted: Sequence[int], seed: int, has_sink: bool) -> Reading:
    """The vectors at those of the wanted positions that texts reach."""
    reached = [position for position in wanted if position in means.positions]
    positions = [position for position in reached if means.difference[position - means.first].any()]
    rows = [position - means.first for position in positions]
    vectors = {key: getattr(means, key)[rows].float() for key in ("difference", "base", "finetuned")}
    generator = torch.Generator().manual_seed(seed)
    vectors["random"] = torch.randn(vectors["difference"].shape, generator=generator)
    return Reading(corpus, means, positions, vectors, has_sink)
