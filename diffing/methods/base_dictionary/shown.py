"""How what is shown of some latents is laid out as tables: readouts, examples and steered answers, beside controls."""

from collections.abc import Mapping, Sequence

import pandas as pd
from transformers import PreTrainedTokenizerBase

from diffing.lenses import examples as max_activating
from diffing.lenses import readouts
from diffing.lenses.steering import SAMPLE_COLUMNS
from diffing.methods.base_dictionary.reading import Reading
from diffing.methods.base_dictionary.tables import LAYER
from diffing.report import Table, View

CONSTANT, BASE_MEAN, RANDOM = "constant part", "base mean", "random direction"
CHANGE = ", change"
"""After the name of a latent: its direction on the finetuned side less that on the base side."""
FRACTION = ", value "
"""Between the name of a latent and the fraction of its largest value."""
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
    """Windows of every layer in one table."""
    parts = [
        max_activating.example_table(
            reading.examples,
            tokenizer,
            "Texts on which each latent is largest, with what it adds on every token",
            labels={
                "layer": [reading.layer] * len(reading.shown),
                "vector": [named(latent) for latent in reading.shown],
                "why": ["top"] * len(reading.top) + ["drawn"] * len(reading.random),
            },
            columns=LAYER | {"vector": "the latent", "why": _VECTOR["why"].rsplit(";", 1)[0]},
            unit="length that the latent adds to the side on which it is longer (residual stream units)",
        )
        for reading in readings
    ]
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    return Table(frame, parts[0].about, parts[0].columns, parts[0].view)


def steering_table(rows: Sequence[Mapping[str, object]]) -> Table:
    columns = [*LAYER, *SAMPLE_COLUMNS, "strength", "length"]
    return Table(
        pd.DataFrame(rows, columns=columns),
        "Answers of the finetuned model, unsteered, with a latent added, and with a random direction added",
        LAYER
        | SAMPLE_COLUMNS
        | {
            "strength": "value of the added latent, in units of the largest value met (of the random direction: as "
            "long as the longest of the others)",
            "length": "L2 norm of the added vector (residual stream units)",
        },
        View("samples", "text", group=("prompt", "layer"), compare="condition"),
    )
