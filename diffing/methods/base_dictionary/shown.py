"""How what is shown of some latents is laid out as tables: readouts, examples and steered answers, beside controls."""

from collections.abc import Mapping, Sequence

from transformers import PreTrainedTokenizerBase

from diffing.lenses import examples as max_activating
from diffing.lenses import readouts, steering
from diffing.lenses.examples import Examples, stacked
from diffing.lenses.quantiles import BANDS
from diffing.methods.base_dictionary.reading import Reading
from diffing.methods.base_dictionary.tables import LAYER
from diffing.report import Table

CONSTANT, TOP = "constant part", "top"
CHANGE = ", change"
"""After the name of a latent: its direction on the finetuned side less that on the base side."""
_VECTOR = {
    **LAYER,
    "vector": "what was read: a latent's direction (on the side where it is longer); its change, finetuned - base, if "
    "it has a direction on both sides; the constant part of the difference, which no latent has; or a control (the "
    "base's own mean activation, a random direction)",
    "why": "top: among the latents that lower the KL most; drawn: drawn at random among those that are not dead; "
    "constant: what all tokens share; control: no latent",
}


def named(latent: int) -> str:
    return f"latent {latent}"


def logit_lens_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Logit lens: tokens that each latent's direction promotes and suppresses when read by the model's own head"
    group = ("vector", "direction", "layer")
    return readouts.logit_lens_table(rows, about, _VECTOR, group)


def patchscope_table(rows: Sequence[Mapping[str, object]]) -> Table:
    about = "Token-identity patchscope: tokens the model reads in each latent's direction when it stands in for a word"
    return readouts.patchscope_table(
        rows, about, _VECTOR, ("vector", "scale", "layer"), "root mean square norms of the residual stream"
    )


def example_table(readings: Sequence[Reading], tokenizer: PreTrainedTokenizerBase) -> Table:
    """Windows of every layer in one table: the largest, then those from each band."""
    parts = []
    for reading in readings:
        for found, bands in ((reading.examples, (TOP,)), (reading.banded, BANDS)):
            whys = ["top"] * len(reading.top) + ["drawn"] * len(reading.random)
            latents = [(latent, why, band) for latent, why in zip(reading.shown, whys, strict=True) for band in bands]
            labels: dict[str, list] = {
                "band": [band for _, _, band in latents],
                "layer": [reading.layer] * len(latents),
                "vector": [named(latent) for latent, _, _ in latents],
                "why": [why for _, why, _ in latents],
            }
            parts.append(_examples(found, tokenizer, labels))
    return stacked(parts)


def _examples(
    found: Mapping[str, Examples], tokenizer: PreTrainedTokenizerBase, labels: Mapping[str, Sequence[object]]
) -> Table:
    return max_activating.example_table(
        found,
        tokenizer,
        "Texts on which each latent is largest, and others from all over its range, with what it adds on every token",
        labels=labels,
        columns=LAYER
        | {
            "vector": "the latent",
            "why": _VECTOR["why"].rsplit(";", 1)[0],
            "band": f"{TOP}: the largest windows; otherwise the window around a token drawn at random from those on "
            "which the latent has so much of its largest value",
        },
        unit="length that the latent adds to the side on which it is longer (residual stream units)",
    )


def steering_table(rows: Sequence[Mapping[str, object]]) -> Table:
    return steering.steering_table(
        rows,
        "Answers of the finetuned model, unsteered, with a latent added, and with a random direction of its length",
        LAYER,
        direction="latent that steered the answers",
        strength="value of the latent, in units of the largest value met",
    )
