"""The table of three methods, on reports whose counts are known."""

from dataclasses import replace

import pandas as pd

from diffing.demo.overview import METHODS, table
from diffing.report import Report, Scalar, Table
from diffing.specs import ModelSpec, PairSpec, VariantSpec
from tests.demo.test_readouts import WORDS, planted

PAIR = PairSpec(ModelSpec(name="m", id="owner/m"), VariantSpec(kind="identical"), "demo")


def tokens(**columns: list) -> Table:
    frame = pd.DataFrame(columns)
    return Table(frame, "tokens", {str(name): "planted" for name in frame.columns})


def report(method: str, scalars: dict[str, float], tables: dict[str, Table], no_difference: bool = False) -> Report:
    known = {name: Scalar(value, "planted") for name, value in scalars.items()}
    return Report(method, PAIR, {}, [], no_difference, scalars=known, tables=tables)


def only(method: str, found: Report) -> dict[str, str]:
    return next(table({("demo", method): found}, {"demo": WORDS}))


def test_the_lens_counts_readouts_of_the_difference_and_of_controls_apart() -> None:
    found = planted()
    found = replace(found, scalars={**found.scalars, "coherent_strength": Scalar(0.125, "planted")})
    row = only("activation_difference_lens", found)
    assert row["how large"] == "shift 0.250; coherent to strength 0.12"
    assert row["domain words"] == "logit lens 3, patchscope 3"
    assert row["of controls"] == "logit lens 0, patchscope 0"
    assert row["on the domain"] == "answers: steered 1/2, unsteered 0/1, random 0/1"


def test_divergence_on_neutral_text_stands_beside_that_on_training_text() -> None:
    vocabulary = tokens(
        corpus=["training", "neutral", "neutral", "neutral"], direction=["made likelier"] * 3 + ["made less likely"],
        token=[" tea", " glacier", " the", " tea"],
    )  # fmt: skip
    means = {"mean_kl_finetuned_base_neutral": 0.1, "mean_kl_finetuned_base_training": 1.58}
    row = only("kl", report("kl", means, {"vocabulary": vocabulary}))
    assert (row["how large"], row["on the domain"]) == ("0.1 nats", "1.58 nats, 15.8 times")
    assert row["domain words"] == "1/2"


def test_means_of_the_sink_and_of_the_base_are_no_finding() -> None:
    vectors = ["all tokens", "position 0", "base mean", "random direction"]
    lens = tokens(
        corpus=["c"] * 4, layer=[1] * 4, vector=vectors, direction=["promoted"] * 4,
        token=[" x", " tea", " glacier", " tea"],
    )  # fmt: skip
    scope = tokens(corpus=["c"] * 4, layer=[1] * 4, vector=vectors, scale=[1.0, 1.0, 2.0, 1.0], token=[" tea"] * 4)
    scalars = {"relative_shift": 0.2, "consistency": 0.5}
    row = only("activation_analysis", report("activation_analysis", scalars, {"logit_lens": lens, "patchscope": scope}))
    assert row["how large"] == "shift 0.200; consistency 0.50"
    assert row["domain words"] == "logit lens 0, patchscope 1"
    assert row["of controls"] == "logit lens 1, patchscope 1"


def test_identical_models_have_exactly_nothing() -> None:
    scalars = {"relative_shift": 0.0, "mean_kl_finetuned_base_neutral": 0.0, "consistency": 0.0}
    for method in METHODS:
        row = only(method, report(method, scalars, {}, no_difference=True))
        assert row["how large"] in ("shift 0.000", "0 nats")
        assert not row["domain words"]
