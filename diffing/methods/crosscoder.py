"""Crosscoder: one dictionary of both sides, whose latents have a direction on each.

What the two models share is learned too, so that a latent can be said to be of one side only, by where its norm is or
by what is left of it in the other side's error (latent scaling, arXiv 2504.02922).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from diffing.errors import InvalidSetting
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import CODE_WEIGHTS, Dictionary, Sparsity
from diffing.methods.base_dictionary import DictionaryMethod
from diffing.specs import JSON


@dataclass(frozen=True)
class CrosscoderDiffing(DictionaryMethod):
    """Settings of the crosscoder."""

    name: ClassVar[str] = "crosscoder"
    kind: ClassVar[type[Dictionary]] = Crosscoder

    expansion: float | int = 32.0
    code_weight: str = "l1"
    """What latents compete by besides their value: the sum of their norms (l1), the joint norm (l2), or none."""
    dedicated: Sequence[float] = (0.0, 0.0)
    """Shares of the latents that write to the base alone and to the finetuned side alone, by construction."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.code_weight not in CODE_WEIGHTS:
            raise InvalidSetting(f"code_weight={self.code_weight}; expected one of {', '.join(CODE_WEIGHTS)}")
        if len(self.dedicated) != 2 or min(self.dedicated) < 0 or sum(self.dedicated) > 1:
            raise InvalidSetting(
                f"dedicated={list(self.dedicated)}; expected two shares of the latents, base-only and finetuned-only, "
                "of 0 or more that add up to 1 at most"
            )

    def learner_settings(self) -> Mapping[str, JSON]:
        return {**super().learner_settings(), "code_weight": self.code_weight, "dedicated": list(self.dedicated)}

    def particular(self, sparsity: Sparsity) -> Mapping[str, Any]:
        n_base, n_finetuned = (int(share * sparsity.n_latents) for share in self.dedicated)
        shared = sparsity.n_latents - n_base - n_finetuned
        partition = [n_base, shared, n_finetuned] if n_base or n_finetuned else None
        return {"code_weight": self.code_weight, "partition": partition}
