import base64
import hashlib
import json
import os
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from diffing.html.page import render, write
from diffing.html.tables import MOST_ROWS
from diffing.report import Figure, Finding, NamedTensor, Report, Scalar, Table, View
from diffing.specs import CorpusSpec, ModelSpec, PairSpec, VariantSpec

VOID = {"meta", "input", "br", "img", "link", "hr"}
HOSTILE = [
    "</script><script>alert(1)</script>",
    "</script ><script >alert(1)</script >",
    "<!--<script >",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "--><!--</style></title></textarea>",
    "{0}{__class__}%s&lt;b&gt;",
    "javascript:alert(1)//http://example.com/x.js",
]


class Page(HTMLParser):
    """What a browser would see: elements with their attributes, text, and the contents of scripts and styles."""

    def __init__(self, html: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.text = self.style = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "script":
            self.scripts.append((dict(attrs).get("type") or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
        elif self.open[-1:] == ["style"]:
            self.style += data
        else:
            self.text += data

    def attributes(self, name: str) -> list[str]:
        return [attrs[name] for _, attrs in self.elements if name in attrs]

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


@pytest.fixture(scope="session")
def html(full_report: Report) -> str:
    return render(full_report)


@pytest.fixture(scope="session")
def page(html: str) -> Page:
    return Page(html)


def report_saying(text: str) -> Report:
    """Every place of a report that takes a string says `text`."""
    model = ModelSpec(text, text, text, text, text)
    frame = pd.DataFrame({text: [text, "b"], "other": [text, "b"], "number": [1.0, 2.0]})
    about = {text: text, "other": text, "number": text}
    heat = pd.DataFrame({"tokens": [[text]], "values": [[1.0]]})
    return Report(
        method=text,
        pair=PairSpec(model, VariantSpec("lora", text, text), text, text),
        settings={text: {text: [text]}},
        corpora=[CorpusSpec(text, "hub", text, subset=text)],
        no_difference=False,
        scalars={"scalar": Scalar(1.0, text)},
        tables={
            "plain": Table(frame, text, about),
            "lens": Table(frame, text, about, View("tokens", text, ("number", "other"), weight="number")),
            "picked": Table(frame, text, about, View("tokens", "other", ("number", "other", text))),
            "steering": Table(frame, text, about, View("samples", text, ("other",), compare="other")),
            "windows": Table(heat, text, {"tokens": text, "values": text}, View("heat", "tokens", weight="values")),
        },
        tensors={"tensor": NamedTensor(torch.ones(2), text, [text])},
        figures={"figure": Figure({"data": [{"type": "scatter", "name": text}], "layout": {"title": text}}, text)},
        findings=[Finding(text, "plain", [0, 1]), Finding(text)],
        provenance={text: text},
    )


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_strings_add_no_element_and_no_attribute(hostile: str) -> None:
    harmless = "x" * len(hostile)
    shape = [
        Counter((tag, *sorted(attrs)) for tag, attrs in Page(render(report_saying(text))).elements)
        for text in (hostile, harmless)
    ]
    for counted in shape:  # marks of white space are elements by intent
        del counted[("span", "class")]
    assert shape[0] == shape[1]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_strings_are_shown_exactly(hostile: str) -> None:
    page = Page(render(report_saying(hostile)))
    assert page.text.count(hostile) >= 30
    stored = next(text for kind, text in page.scripts if kind == "application/json")
    assert json.loads(stored)["layout"]["title"] == hostile
    assert "<" not in stored  # browsers end a script at less than Python's parser does


def test_only_scripts_of_the_package_can_run(page: Page) -> None:
    policy = next(attrs["content"] for _, attrs in page.elements if "http-equiv" in attrs)
    running = [text for kind, text in page.scripts if kind != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in running]
    assert sorted(re.findall("'sha256-(.*?)'", policy)) == sorted(hashes)
    assert "default-src 'none'" in policy
    assert "'unsafe-inline'" not in policy.split("script-src")[1]
    assert not [name for _, attrs in page.elements for name in attrs if name.startswith("on")]


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert page.attributes("src") == page.attributes("srcset") == page.attributes("action") == []
    assert all(link.startswith("#") for link in page.attributes("href"))
    assert not {"link", "iframe", "object", "embed", "base"} & {tag for tag, _ in page.elements}
    assert not re.search(r"url\(|@import|https?:", page.style)


def test_figures_offer_no_upload() -> None:
    assert "showSendToCloud: false" in render(report_saying("x"))


def test_everything_in_a_report_is_on_its_page(page: Page, full_report: Report) -> None:
    ids = set(page.attributes("id"))
    parts = {"table": full_report.tables, "figure": full_report.figures, "scalar": full_report.scalars}
    assert {f"{kind}-{name}" for kind, names in parts.items() for name in names} <= ids
    said = [table.about for table in full_report.tables.values()]
    said += [scalar.about for scalar in full_report.scalars.values()]
    said += [figure.about for figure in full_report.figures.values()]
    said += [tensor.about for tensor in full_report.tensors.values()]
    said += [finding.claim for finding in full_report.findings]
    said += ["patchscope.scales", "HuggingFaceFW/fineweb-edu", "4f1c2ab"]
    assert not [text for text in said if text not in page.text]
    drawn = [json.loads(text) for kind, text in page.scripts if kind == "application/json"]
    assert drawn == [figure.plotly for figure in full_report.figures.values()]


def test_every_cell_of_a_small_table_is_there_with_its_full_value(html: str, full_report: Report) -> None:
    rows = re.findall(r'<tr id="row-positions-\d+".*?</tr>', html)
    found = [[float(v) for v in re.findall('data-v="(.*?)"', row)] for row in rows]
    numbers = full_report.tables["positions"].frame.select_dtypes("number")
    assert found == [[v for v in row if not np.isnan(v)] for row in numbers.to_numpy().tolist()]


def test_links_lead_somewhere_and_ids_are_unique(page: Page) -> None:
    ids = Counter(page.attributes("id"))
    assert set(ids.values()) == {1}
    assert {link.removeprefix("#") for link in page.attributes("href")} <= set(ids)
    cited = {attrs["id"] for tag, attrs in page.elements if tag == "tr" and attrs.get("class") == "cited"}
    assert cited == {f"row-logit_lens-{row}" for row in (16, 17, 18)} | {"row-steering-2", "row-steering-3"}
    assert {f"#{row}" for row in cited} <= set(page.attributes("href"))


def test_headings_descend_one_level_at_a_time(page: Page) -> None:
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_headings_of_tables_have_a_scope_and_inputs_a_label(page: Page) -> None:
    assert all("scope" in attrs for tag, attrs in page.elements if tag == "th")
    labelled = set(page.attributes("for"))
    named = [attrs for tag, attrs in page.elements if tag in ("input", "select") and attrs.get("type") != "radio"]
    assert named
    assert all(attrs["id"] in labelled for attrs in named)


def test_column_descriptions_are_tooltips_of_their_heads(page: Page, full_report: Report) -> None:
    heads = [attrs.get("title") for tag, attrs in page.elements if tag == "th"]
    assert all(about in heads for table in full_report.tables.values() for about in table.columns.values())


def test_a_bare_report_is_a_small_page_without_plotly(bare_report: Report) -> None:
    html = render(bare_report)
    assert len(html) < 60_000
    assert "https://" not in html
    assert Page(html).text.count("cake_bake") >= 3


def test_tables_without_rows_or_columns_are_drawn_as_such(bare_report: Report) -> None:
    empty = pd.DataFrame({"token": pd.Series([], dtype=str)})
    tables = {
        "rows": Table(empty, "Nothing.", {"token": "a token"}, View("tokens", "token")),
        "columns": Table(pd.DataFrame(), "Nothing at all.", {}),
    }
    assert Page(render(replace(bare_report, tables=tables))).text.count("This table has no rows.") == 2


def test_a_huge_table_shows_its_first_rows_and_those_that_are_cited(bare_report: Report) -> None:
    table = Table(pd.DataFrame({"n": range(10_000)}), "Many rows.", {"n": "count"})
    html = render(replace(bare_report, tables={"many": table}, findings=[Finding("The last.", "many", [9_999])]))
    shown = [int(row) for row in re.findall(r'<tr id="row-many-(\d+)"', html)]
    assert shown == [*range(MOST_ROWS), 9_999]
    assert "501 of 10,000 rows" in html
    assert "9,499 hidden" in html


def test_rows_are_numbered_by_place_whatever_the_index_of_the_frame(bare_report: Report) -> None:
    frame = pd.DataFrame({"word": ["a", "b"]}, index=[7, 7])
    html = render(replace(bare_report, tables={"words": Table(frame, "Words.", {"word": "a word"})}))
    assert re.findall(r'id="row-words-(\d)".*?<td>(\w)</td>', html) == [("0", "a"), ("1", "b")]


def test_the_null_result_is_announced_and_no_other(bare_report: Report) -> None:
    assert "No difference." in Page(render(replace(bare_report, no_difference=True))).text
    assert "No difference." not in Page(render(bare_report)).text


def test_a_stored_report_renders_to_the_same_page(html: str, full_report: Report, tmp_path: Path) -> None:
    full_report.save(tmp_path)
    assert render(Report.load(tmp_path)) == html


def test_write_makes_the_folder_and_leaves_one_readable_file(bare_report: Report, tmp_path: Path) -> None:
    write(bare_report, tmp_path / "new" / "report.html")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["report.html"]
    assert (tmp_path / "new" / "report.html").read_text("utf-8") == render(bare_report)


def test_a_write_that_fails_leaves_the_old_page(
    bare_report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("old")

    def full_disk(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "fdopen", full_disk)
    with pytest.raises(OSError, match="no space"):
        write(bare_report, tmp_path / "report.html")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"report.html": "old"}


def test_text_that_is_no_valid_unicode_can_be_written(bare_report: Report, tmp_path: Path) -> None:
    write(replace(bare_report, findings=[Finding("torn \ud83d pair")]), tmp_path / "report.html")
    assert "torn &#55357; pair" in (tmp_path / "report.html").read_text("utf-8")
