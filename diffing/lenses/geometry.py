"""How like one another tokens are, by the rows of the output embedding that write them: it needs no corpus and no model
call.

Rows are centred and partly whitened, since a few directions, that of frequency first, hold most of their variance and
make any two tokens alike. Ids stand in for frequency: vocabularies are made by merging the most frequent pairs first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

COMMON = 256
"""Ids up to here, of single bytes and special tokens, have no rarity."""
SHRINKAGE = 1.0
"""Of the whitening: each variance is raised by so many mean variances."""


def folded(token: str) -> str:
    """What two tokens are compared by: without outer white space and case."""
    return token.strip().casefold()


@dataclass(frozen=True)
class TokenGeometry:
    """Unit vectors of tokens, without what they share with those of some words."""

    weight: Float[Tensor, "vocab d_model"]
    """The output embedding, as the model has it."""
    mean: Float[Tensor, " d_model"]
    whitening: Float[Tensor, "d_model d_model"]
    left_out: Float[Tensor, "d_model rank"]
    """Orthonormal directions that are taken out of the unit vectors."""

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        without: Iterable[str] = (),
        chunk: int = 32_768,
    ) -> "TokenGeometry":
        """`without` are words whose tokens, and what is like them, should make nothing coherent.

        In float32, with float64 sums over the vocabulary, `chunk` rows at a time.
        """
        weight = model.get_output_embeddings().weight
        parts = [weight[start : start + chunk] for start in range(0, len(weight), chunk)]
        mean = torch.stack([part.double().sum(0) for part in parts]).sum(0) / len(weight)
        products = torch.stack([(part.double() - mean).T @ (part.double() - mean) for part in parts]).sum(0)
        variances, axes = torch.linalg.eigh(products / len(weight))
        whitening = (axes / torch.sqrt(variances.clamp_min(0) + SHRINKAGE * variances.mean())).float()
        plain = cls(weight, mean.float(), whitening, whitening.new_zeros(len(whitening), 0))
        ids = {id for word in without for form in (word, f" {word}") for id in _whole(tokenizer, form)}
        if not ids:
            return plain
        return cls(weight, mean.float(), whitening, torch.linalg.qr(plain._unit(sorted(ids)).T).Q)

    @torch.no_grad()
    def vectors(self, ids: Sequence[int]) -> Float[Tensor, "top d_model"]:
        """On the CPU; shorter than 1 by as much as was taken out."""
        unit = self._unit(ids)
        return (unit - unit @ self.left_out @ self.left_out.T).cpu()

    def rarity(self, ids: Sequence[int]) -> Float[Tensor, " top"]:
        """From 0 for the most frequent tokens to 1 for the rarest, linear in the logarithm of the id."""
        ranks = torch.tensor(ids, dtype=torch.float32).clamp_min(COMMON)
        return torch.log(ranks / COMMON) / torch.log(torch.tensor(max(len(self.weight), COMMON + 1) / COMMON))

    def _unit(self, ids: Sequence[int]) -> Float[Tensor, "top d_model"]:
        rows = self.weight[torch.tensor(ids, dtype=torch.long, device=self.weight.device)].float() - self.mean
        return torch.nn.functional.normalize(rows @ self.whitening, dim=1)


def _whole(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of a text that hold a letter or digit."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return [id for id in ids if any(map(str.isalnum, tokenizer.decode([id])))]
