"""What was measured on one corpus: the divergence after each token, flat, with where and after which token it is."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float64, Int64

from diffing.lenses.divergence import Changes, Divergence, TextDivergences, VocabularySums
from diffing.lenses.examples import Examples


@dataclass(frozen=True, eq=False)
class Measured:
    """All values in nats. Kinds of divergence are columns; the first is the one that is looked at more closely."""

    corpus: str
    kinds: Sequence[Divergence]
    n_texts: int
    """Texts read, with those that are too short to have a measured token."""
    values: Float64[np.ndarray, "token divergence"]
    text_means: Float64[np.ndarray, "text divergence"]
    """Mean over the measured tokens of each text that has any."""
    ids: Int64[np.ndarray, " token"]
    """The token after which the value is, the last of its context."""
    positions: Int64[np.ndarray, " token"]
    """Of that token in its text, counted from 0."""
    sums: VocabularySums
    """On the CPU."""
    examples: Examples
    changes: Changes
    """After the peaks of the windows that are ranked by their largest token."""

    @classmethod
    def of(
        cls,
        corpus: str,
        texts: Sequence[Sequence[int]],
        found: TextDivergences,
        examples: Examples,
        changes: Changes,
    ) -> "Measured":
        """The measured tokens of a text are its last ones."""
        starts = [len(text) - len(values) for text, values in zip(texts, found.values, strict=True)]
        counted = list(zip(texts, starts, strict=True))
        values = torch.cat(list(found.values)).double()
        return cls(
            corpus,
            found.kinds,
            len(texts),
            values.numpy(),
            torch.stack([each.double().mean(0) for each in found.values if len(each)]).numpy(),
            np.array([token for text, start in counted for token in text[start:]], dtype=np.int64),
            np.array([at for text, start in counted for at in range(start, len(text))], dtype=np.int64),
            found.sums.cpu(),
            examples,
            changes,
        )

    @property
    def main(self) -> Float64[np.ndarray, " token"]:
        """Values of the first kind."""
        return self.values[:, 0]

    @property
    def mean(self) -> float:
        """Of the first kind, over tokens."""
        return float(self.main.mean())
