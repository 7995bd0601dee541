"""Counting of domain words in what is shown of latents, on tables whose counts are known."""

import math

import pandas as pd

from diffing.demo.latents import rows
from diffing.report import Report, Table
from diffing.specs import ModelSpec, PairSpec, VariantSpec

WORDS = ["tea", "glacier"]
TOP = {"layer": 1, "vector": "latent 7", "why": "top"}
RANDOM = {"layer": 1, "vector": "random direction", "why": "control"}


def table(*rows: dict[str, object]) -> Table:
    return Table(pd.DataFrame(rows), "planted", {column: column for column in rows[0]})


def planted() -> Report:
    window = TOP | {"band": "top"}
    return Report(
        method="sae_difference",
        pair=PairSpec(ModelSpec(name="m", id="owner/m"), VariantSpec(kind="identical"), "demo"),
        settings={},
        corpora=[],
        no_difference=False,
        tables={
            "logit_lens": table(
                *(TOP | {"direction": "promoted", "token": token} for token in (" tea", " team", " Glacier")),
                TOP | {"direction": "suppressed", "token": " tea"},
                RANDOM | {"direction": "promoted", "token": "x"},
            ),
            "patchscope": table(
                *(TOP | {"scale": 1.0, "token": token} for token in (" a", " b")),
                *(TOP | {"scale": 2.0, "token": token} for token in (" teas", " b")),
            ),
            "examples": table(
                window | {"tokens": [" a", " gl", "acier", "."], "values": [0.0, math.nan, 3.0, 1.0]},
                window | {"tokens": [" tea", " b"], "values": [1.0, 2.0]},
                window | {"tokens": [" tea"], "values": [1.0], "band": "0-25 %"},
            ),
            "contributions": table({"layer": 1, "latent": 7, "share": 0.125}),
        },
    )


def test_domain_words_are_counted_in_readouts_and_at_peaks() -> None:
    latent, control = rows("demo", planted(), WORDS)
    assert latent == {
        "organism": "demo", "layer": "1", "read": "latent 7", "why": "top", "KL removed": "12.5%", "logit lens": "2/3",
        "patchscope": "1/2", "peaks": "1/2",
    }  # fmt: skip
    assert (control["logit lens"], control["patchscope"], control["peaks"], control["KL removed"]) == (
        "0/1",
        "",
        "",
        "",
    )


def test_a_peak_is_the_whole_word_around_it() -> None:
    """` gl` + `acier` is a domain word though neither of its tokens is; the second window peaks beside one."""
    assert rows("demo", planted(), ["glacier"])[0]["peaks"] == "1/2"
    assert rows("demo", planted(), ["tea"])[0]["peaks"] == "0/2"
