"""The vocabulary of every shape annotation, and the two sides of a pair.

Axis names used in `jaxtyping` annotations, always in this spelling:

    batch     sequences run together          layer    decoder blocks, counted from 0
    pos       positions within a sequence     d_model  width of the residual stream
    token     tokens of a flat stream         latent   units of a dictionary or components of a PCA
    side      base, finetuned (in this order) vocab    entries of the vocabulary
    top       entries kept of a ranking
"""

from enum import StrEnum


class Side(StrEnum):
    """One of the two models of a pair. A difference is always finetuned - base."""

    BASE = "base"
    FINETUNED = "finetuned"


class Stream(StrEnum):
    """What is read of both residual streams."""

    BASE = "base"
    FINETUNED = "finetuned"
    DIFFERENCE = "difference"
    """finetuned - base, in float32 or wider."""
