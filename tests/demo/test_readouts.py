"""Counting of domain words, on a report whose counts are known."""

import pandas as pd

from diffing.demo.readouts import SOURCES, domain_words, markdown, most_domain_tokens, rows, share_of_samples
from diffing.methods.activation_difference_lens.tables import logit_lens_table, patchscope_table, samples_table
from diffing.report import Report, Scalar
from diffing.specs import ModelSpec, PairSpec, VariantSpec

PAIR = PairSpec(ModelSpec(name="m", id="owner/m"), VariantSpec(kind="identical"), "demo")
WORDS = ["tea", "glacier"]
TOKENS = {
    "difference": [" Tea", " teas", " team", " glacier"],
    "base": [" the"],
    "finetuned": [" tea"],
    "random": ["x"],
}


def planted(no_difference: bool = False) -> Report:
    where = {"corpus": "c", "layer": 1, "position": 1}
    lens = [
        {**where, "source": source, "direction": "promoted", "rank": rank, "token": token, "probability": 0.1}
        for source, tokens in TOKENS.items()
        for rank, token in enumerate(tokens, 1)
    ]
    sink = [{**row, "position": 0, "token": " tea"} for row in lens]
    answers = {"steered": ["Tea time.", "A team."], "unsteered": ["Hello."], "random": ["No."]}
    samples = [
        {
            **where,
            "prompt": "p",
            "condition": kind,
            "kind": kind,
            "strength": 1.0,
            "sample": index,
            "text": text,
            "direction": "d",
            "where": "all",
            "length": 1.0,
        }
        for kind, texts in answers.items()
        for index, text in enumerate(texts)
    ]
    scope = [{key: value for key, value in row.items() if key != "direction"} for row in lens]
    scope = [row | {"scale": 2.0, "read_at": "chosen scale", "chosen": True, "selected": False} for row in scope]
    unchosen = [row | {"scale": 1.0, "chosen": False, "token": " tea"} for row in scope]
    return Report(
        method="activation_difference_lens",
        pair=PAIR,
        settings={},
        corpora=[],
        no_difference=no_difference,
        scalars={"relative_shift": Scalar(0.25, "shift")},
        tables={
            "logit_lens": logit_lens_table(lens + sink),
            "patchscope": patchscope_table(scope + unchosen),
            "steering": samples_table(samples),
        },
    )


def test_domain_words_are_counted_per_source_and_the_sink_is_left_out() -> None:
    counted = {row["read from"]: row for row in rows("demo", planted(), WORDS)}
    assert list(counted) == list(SOURCES)
    assert counted["difference"]["logit lens"] == "3/4"  # " team" is no tea
    assert counted["base"]["logit lens"] == "0/1"
    assert counted["finetuned"]["patchscope"] == "1/1"
    assert (counted["difference"]["samples"], counted["finetuned"]["samples"]) == ("1/2", "0/1")


def test_the_best_setting_is_the_one_with_most_domain_words() -> None:
    frame = pd.DataFrame({"layer": [1, 1, 2, 2], "token": [" tea", " x", " tea", " glacier"]})
    assert most_domain_tokens(frame, WORDS) == "2/2"
    assert share_of_samples(pd.DataFrame({"text": ["Glaciers melt.", "So."]}), WORDS) == "1/2"


def test_a_pair_without_a_difference_has_one_row() -> None:
    assert [row["read from"] for row in rows("none", planted(no_difference=True), WORDS)] == [
        "no difference: nothing to read"
    ]


def test_null_pairs_are_searched_for_all_words() -> None:
    words = domain_words()
    assert words["none"] == words["demo_control"]
    assert set(words["demo_glacier_tea"]) | set(words["demo_nautical"]) <= set(words["none"])


def test_the_table_is_markdown() -> None:
    lines = markdown(pd.DataFrame({"a": ["x"], "long name": [1]})).splitlines()
    assert lines == ["| a | long name |", "|---|-----------|", "| x | 1         |"]
