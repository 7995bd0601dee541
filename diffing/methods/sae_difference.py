"""Sparse autoencoder of the activation differences: which few directions each token was moved along.

It sees only what changed. A latent has one direction; whether the base had it before is asked of the base's own
activations where the latent is active.
"""

from dataclasses import dataclass
from typing import ClassVar

from diffing.learners.dictionary import Dictionary
from diffing.learners.sae import SAE
from diffing.methods.base_dictionary import DictionaryMethod


@dataclass(frozen=True)
class SAEDifference(DictionaryMethod):
    """Settings of the autoencoder of finetuned - base."""

    name: ClassVar[str] = "sae_difference"
    kind: ClassVar[type[Dictionary]] = SAE
