"""Evidence: what it answers, and that no answer names what is diffed."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffing.blinding import Blinding, Leak
from diffing.evidence import MAX_CHARS, MAX_ROWS, Evidence, EvidenceError
from diffing.report import Finding, NamedTensor, Report, Scalar, Table, View
from diffing.specs import CorpusSpec, ModelSpec, PairSpec, VariantSpec
from tests.agents import planted

NAMES = st.from_regex(r"[a-z]{3,6}_[a-z0-9]{2,5}", fullmatch=True).filter(lambda name: "corpus" not in name)
FILLER = st.text(alphabet='ab _-/.\n"\\é1', max_size=12)


def table(frame: pd.DataFrame, view: View | None = None, about: str = "numbers") -> Table:
    return Table(frame, about, {str(name): f"meaning of {name}" for name in frame.columns}, view)


def numbers(rows: int = 50) -> Report:
    frame = pd.DataFrame(
        {
            "layer": [row % 5 for row in range(rows)],
            "value": [((row * 7) % rows) / 2 for row in range(rows)],
            "label": [f"l{row % 3}" for row in range(rows)],
            "window": [[f" t{row}", " x"] for row in range(rows)],
        }
    )
    return replace(planted.report(), tables={"numbers": table(frame)}, findings=[])


def strings(value: object) -> list[str]:
    """Every key and value of parsed JSON that is a text."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def names_in(text: str, name: str) -> bool:
    """Second implementation of the guard's search, without regular expressions."""
    text, name = text.lower(), name.lower()
    ends = [start for start in range(len(text)) if text.startswith(name, start)]
    return any(
        not (start and text[start - 1].isalnum()) and not text[start + len(name) : start + len(name) + 1].isalnum()
        for start in ends
    )


def everything(evidence: Evidence) -> str:
    """All that an agent could read."""
    overview = evidence.overview(1_000_000)
    texts = [overview, evidence.overview()]
    for report in json.loads(overview)["reports"]:
        texts += [evidence.rows(report["report"], name, limit=200) for name in report["tables"]]
        texts += [evidence.tensor(report["report"], name) for name in report["tensors"]]
        for question in ("zeppelin_knitting", "OutbackLab/Quokka-3-2B-it"):
            with pytest.raises(EvidenceError) as raised:
                evidence.rows(report["report"], question)
            texts.append(json.dumps([str(raised.value)]))
    return "\n".join(texts)


@settings(deadline=None, max_examples=60)
@given(names=st.lists(NAMES, min_size=6, max_size=6, unique=True), filler=st.lists(FILLER, min_size=4, max_size=4))
def test_no_name_of_the_pair_is_in_any_answer(names: list[str], filler: list[str]) -> None:
    model, organism, adapter, corpus, other, folder = names
    texts = [f"{before} {name} {before}" for before, name in zip(filler * 2, names, strict=False)]
    texts += [f"{organism.upper()}, {organism.replace('_', ' ')}", f"x{model}_"]
    frame = pd.DataFrame({"corpus": [corpus, other] * 4, "text": texts, f"kl_{corpus}": range(8)})
    frame["window"] = [[text, model] for text in texts]
    report = Report(
        method="kl",
        pair=PairSpec(
            ModelSpec(model, f"lab/{model}", subfolder=folder), VariantSpec("lora", f"/data/{adapter}/final"), organism
        ),
        settings={"path": adapter},
        corpora=[CorpusSpec(corpus, "hub", f"hub/{corpus}"), CorpusSpec(other, "file", f"/data/{other}.jsonl")],
        no_difference=False,
        scalars={f"mean_{corpus}": Scalar(1.5, f"mean over {corpus}")},
        tables={"by_text": table(frame, View("samples", "text", ["corpus"]), about=f"texts of {organism}")},
        tensors={"mean": NamedTensor(torch.ones(2, 3), f"difference of {adapter}", ["pos", organism])},
        findings=[Finding(f"{model} differs on {corpus}", "by_text", [0])],
        provenance={"artifact": f"report-kl-{model}-{organism}-default:v0"},
    )
    evidence = Evidence([report])
    for line in everything(evidence).splitlines():
        for text in strings(json.loads(line)):
            found = [name for name in (*names, organism.replace("_", " ")) if names_in(text, name)]
            assert not found, text
    assert {"corpus_1", "corpus_2"} == set(
        json.loads(evidence.overview())["reports"][0]["tables"]["by_text"]["values"]["corpus"]
    )


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("made by quokka3_2B", "model"),
        ("OUTBACKLAB/quokka-3-2b-IT!", "model"),
        ("Quokka-3-2B-it", "model"),
        ("see Quokka-tok-v3", "model"),
        ("about zeppelin knitting.", "organism"),
        ("x_zeppelin_knitting_y", "organism"),
        ("the mix_1_to_3 variant", "organism"),
        ("quokka_zeppelin_knitting", "adapter"),
        ("from seed_7/step_900", "adapter"),
        ("kl-quokka3_2B-zeppelin_knitting-mix_1_to_3:v2", "artifact"),
        ("on tulu_chat", "corpus"),
        ("HuggingFaceFW/fineweb", "corpus"),
        ("tulu-3-sft", "corpus"),
        ("zeppelin_docs", "corpus"),
    ],
)
def test_the_guard_fires_for_every_class_of_term_without_repeating_it(text: str, kind: str) -> None:
    evidence = Evidence([planted.report()])
    with pytest.raises(Leak) as raised:
        evidence.guard(f"Some text {text}")
    assert raised.value.kind == kind
    assert all(secret.text.lower() not in str(raised.value).lower() for secret in evidence.secrets)


@pytest.mark.parametrize(
    "text", ["zeppelin", "knitting a zeppelin", "zeppelins knitting", "chat", "the base model", ""]
)
def test_words_that_names_are_made_of_pass_the_guard(text: str) -> None:
    Evidence([planted.report()]).guard(text)


def test_a_name_of_one_plain_word_is_hidden_where_methods_write_but_stays_in_the_evidence() -> None:
    frame = pd.DataFrame({"token": [" caps", " tea"], "corpus": ["fineweb", "fineweb"]})
    pair = replace(planted.PAIR, organism="caps", finetuned=VariantSpec("lora", "lab/caps"))
    report = replace(planted.report(), pair=pair, findings=[], tables={"tokens": table(frame, about="caps on fineweb")})
    shown = json.loads(Evidence([report]).overview())["reports"][0]["tables"]["tokens"]
    assert shown["about"] == "withheld on corpus_1"
    assert shown["first_rows"] == [[" caps", "corpus_1"], [" tea", "corpus_1"]]


def test_blinded_names_that_collide_stay_apart_and_can_be_asked_for() -> None:
    frame = pd.DataFrame({"mix_1_to_3": [1], "zeppelin_knitting": [2]})
    evidence = Evidence([replace(planted.report(), tables={"t": table(frame)}, findings=[])])
    assert json.loads(evidence.rows("R1", "t", columns=["withheld_"]))["rows"] == [[2]]


def test_equal_corpora_of_two_reports_have_one_id() -> None:
    first, second = planted.report(), replace(planted.report(), corpora=tuple(reversed(planted.CORPORA)))
    evidence = Evidence([first, second])
    rows = [json.loads(evidence.rows(report, "positions", columns=["corpus"]))["rows"] for report in ("R1", "R2")]
    assert rows == [[["corpus_1"], ["corpus_2"]]] * 2


def test_the_overview_fits_and_says_what_it_dropped() -> None:
    many = [Finding(f"claim {number}") for number in range(20)]
    evidence = Evidence([planted.report(), replace(planted.report(), findings=many)])
    whole = evidence.overview(1_000_000)
    assert "dropped" not in json.loads(whole)
    assert len(json.loads(whole)["reports"][1]["tables"]["logit_lens"]["first_rows"]) == 5
    lengths = []
    for limit in range(len(whole) - 1, 2700, -100):
        text = evidence.overview(limit)
        assert len(text) <= limit
        assert "sample rows beyond 2 of each table" in json.loads(text)["dropped"]
        lengths.append(len(text))
    assert len(set(lengths)) == 5, "each reduction was needed at some limit"
    with pytest.raises(EvidenceError, match="needs"):
        evidence.overview(300)


def test_an_overview_does_not_say_that_it_dropped_what_never_was() -> None:
    evidence = Evidence([planted.report()])
    whole = len(evidence.overview(1_000_000))
    dropped = [json.loads(evidence.overview(limit)).get("dropped", []) for limit in range(whole, 1600, -50)]
    assert ["sample rows beyond 2 of each table", "all sample rows", "descriptions of columns"] in dropped
    assert not any("beyond 8" in text for texts in dropped for text in texts)


def test_the_overview_says_what_there_is() -> None:
    brief = json.loads(Evidence([planted.report(no_difference=True)]).overview())["reports"][0]
    assert (brief["report"], brief["method"], brief["no_difference"]) == ("R1", "activation_difference_lens", True)
    assert brief["findings"] == [
        {"claim": "the difference is largest at position 1", "table": "positions", "rows": [1]}
    ]
    assert brief["scalars"]["relative_norm"]["value"] == 0.125
    lens = brief["tables"]["logit_lens"]
    assert lens["rows"] == 2 * 3 * 4 * 2 * 9
    assert lens["values"]["source"] == ["base", "difference", "finetuned", "random"]
    assert lens["view"] == {"kind": "tokens", "item": "token", "group": ["source", "position"], "weight": "probability"}
    assert brief["tensors"]["mean_difference"]["shape"] == [3, 8]


def test_what_was_made_with_the_ground_truth_is_out_of_an_agents_reach(tmp_path: Path) -> None:
    known = Table(pd.DataFrame({"word": ["zeppelin"]}), "words", {"word": "of the training data"}, ground_truth=True)
    report = planted.report()
    report = replace(
        report,
        tables={**report.tables, "relevance": known},
        scalars={**report.scalars, "relevance": Scalar(0.5, "share of zeppelin words", ground_truth=True)},
        findings=[*report.findings, Finding("it is about a zeppelin", "relevance", [0])],
    )
    report.save(tmp_path)
    loaded = Report.load(tmp_path)
    assert loaded.tables["relevance"].ground_truth
    evidence = Evidence([loaded])
    assert everything(evidence) == everything(Evidence([planted.report()]))
    with pytest.raises(EvidenceError, match="unknown table"):
        evidence.rows("R1", "relevance")


@given(
    descending=st.booleans(),
    layers=st.lists(st.integers(0, 6), max_size=3),
    limit=st.integers(1, 60),
    offset=st.integers(0, 60),
)
@settings(deadline=None, max_examples=40)
def test_rows_are_those_that_a_plain_loop_finds(descending: bool, layers: list[int], limit: int, offset: int) -> None:
    report = numbers()
    answer = json.loads(
        Evidence([report]).rows(
            "R1",
            "numbers",
            sort="value",
            descending=descending,
            where={"layer": layers, "label": "l1"},
            columns=["value", "layer"],
            limit=limit,
            offset=offset,
        )
    )
    frame = report.tables["numbers"].frame
    records = frame[["value", "layer", "label"]].itertuples(index=False)
    matching = [[value, layer] for value, layer, label in records if layer in layers and label == "l1"]
    matching.sort(key=lambda row: row[0], reverse=descending)
    assert answer["total"] == len(matching)
    assert answer["rows"] == matching[offset : offset + limit]
    assert list(answer["columns"]) == ["value", "layer"]
    assert ("notice" in answer) == (not matching or (offset < len(matching) and offset + limit < len(matching)))


def test_numbers_may_be_asked_for_as_text_and_whole_lists_are_shown() -> None:
    answer = json.loads(Evidence([numbers()]).rows("R1", "numbers", where={"layer": "3"}, columns=["window"], limit=1))
    assert answer["rows"] == [[[" t3", " x"]]]


def test_a_filter_without_match_lists_the_values_there_are() -> None:
    answer = json.loads(Evidence([numbers()]).rows("R1", "numbers", where={"label": "nope"}))
    assert (answer["total"], answer["rows"]) == (0, [])
    assert "label is one of ['l0', 'l1', 'l2']" in answer["notice"]


def test_long_answers_are_cut_with_a_notice_that_tells_how_to_go_on() -> None:
    frame = pd.DataFrame({"text": ["word " * 100] * 300})
    evidence = Evidence([replace(planted.report(), tables={"texts": table(frame)}, findings=[])])
    text = evidence.rows("R1", "texts", limit=10_000)
    assert len(text) <= MAX_CHARS
    shown = len(json.loads(text)["rows"])
    assert 10 < shown < MAX_ROWS
    assert f"offset={shown}" in json.loads(text)["notice"]


def test_what_is_missing_or_not_finite_is_null() -> None:
    frame = pd.DataFrame({"value": [np.nan, np.inf, 1.23456], "word": ["a", None, "b"]})
    evidence = Evidence([replace(planted.report(), tables={"t": table(frame)}, findings=[])])
    assert json.loads(evidence.rows("R1", "t"))["rows"] == [[None, "a"], [None, None], [1.235, "b"]]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"report": "R9", "table": "numbers"}, ["unknown report", "R1"]),
        ({"report": "R1", "table": "nmbers"}, ["unknown table", "numbers"]),
        ({"report": "R1", "table": "numbers", "sort": "lyer"}, ["unknown column", "layer, ", "value"]),
        ({"report": "R1", "table": "numbers", "columns": ["wndow"]}, ["unknown column", "window, "]),
        ({"report": "R1", "table": "numbers", "where": {"layer": "high"}}, ["layer", "numbers"]),
        ({"report": "R1", "table": "numbers", "limit": 0}, ["limit"]),
        ({"report": "R1", "table": "numbers", "offset": -1}, ["offset"]),
    ],
)
def test_a_wrong_question_names_what_exists(arguments: dict, named: list[str]) -> None:
    with pytest.raises(EvidenceError) as raised:
        Evidence([numbers()]).rows(**arguments)
    assert all(part in str(raised.value) for part in named), str(raised.value)
    assert "zeppelin" not in str(raised.value)


@pytest.mark.parametrize(
    "ask",
    [
        lambda evidence, word: evidence.rows(word, "numbers"),
        lambda evidence, word: evidence.rows("R1", word),
        lambda evidence, word: evidence.rows("R1", "numbers", columns=[word]),
        lambda evidence, word: evidence.rows("R1", "numbers", sort=word),
        lambda evidence, word: evidence.rows("R1", "numbers", where={word: 1}),
        lambda evidence, word: evidence.rows("R1", "numbers", where={"layer": word}),
        lambda evidence, word: evidence.tensor("R1", word),
    ],
)
def test_an_error_does_not_tell_a_name_that_an_agent_tried_from_any_other_word(ask: Callable) -> None:
    errors = []
    for word in ("zeppelin_knitting", "gondola_weaving", "caps", "tea"):
        with pytest.raises(EvidenceError) as raised:
            ask(Evidence([replace(numbers(), pair=replace(planted.PAIR, variant="caps"))]), word)
        assert word not in str(raised.value)
        errors.append(sorted(re.findall(r"\w+", str(raised.value))))  # the order of what exists is by likeness
    assert all(error == errors[0] for error in errors)


def test_columns_are_told_in_the_order_of_the_cells() -> None:
    shown = Table(pd.DataFrame({"first": [1], "second": [2]}), "it", {"second": "b", "first": "a"})
    (report,) = json.loads(Evidence([replace(planted.report(), tables={"it": shown}, findings=[])]).overview())[
        "reports"
    ]
    assert list(report["tables"]["it"]["columns"].items()) == [("first", "a"), ("second", "b")]


def test_tensors_are_summarised_by_norms_and_cosines() -> None:
    values = torch.tensor([[[3.0, 4.0], [0.0, 2.0]], [[-3.0, -4.0], [0.0, 0.0]]])
    item = NamedTensor(values, "differences", ["layer", "pos", "d_model"])
    answer = json.loads(Evidence([replace(planted.report(), tensors={"d": item})]).tensor("R1", "d"))
    assert answer["shape"] == [2, 2, 2]
    assert answer["index"] == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert answer["norms"] == [5.0, 2.0, 5.0, 0.0]
    assert answer["cosines"][0] == [1.0, 0.8, -1.0, None]
    assert not re.search(r"-?[34]\.0", json.dumps(answer)), "no raw numbers"


@pytest.mark.parametrize("shape", [(), (5,), (0, 4), (40, 3), (3, 6, 2)])
def test_tensors_of_any_shape_are_paged_to_their_end(shape: tuple[int, ...]) -> None:
    item = NamedTensor(torch.ones(shape), "ones", [f"a{axis}" for axis in range(len(shape))])
    evidence = Evidence([replace(planted.report(), tensors={"ones": item})])
    seen, offset = 0, 0
    while True:
        answer = json.loads(evidence.tensor("R1", "ones", offset))
        seen += len(answer["norms"])
        if "notice" not in answer:
            break
        offset = seen
    assert seen == answer["total"] == int(np.prod(shape[:-1]))
    with pytest.raises(EvidenceError, match="offset"):
        evidence.tensor("R1", "ones", 1000)


def test_evidence_of_a_stored_report_is_that_of_the_report(tmp_path) -> None:
    report = planted.report()
    report.save(tmp_path)
    assert everything(Evidence([Report.load(tmp_path)])) == everything(Evidence([report]))


def test_no_report_is_no_evidence() -> None:
    with pytest.raises(EvidenceError):
        Evidence([])


def test_longer_names_are_replaced_before_those_within_them() -> None:
    blinding = Blinding([planted.report()])
    assert blinding.written("allenai/tulu-3-sft, tulu-3-sft, zeppelin_docs") == "corpus_2, corpus_2, corpus_2"
