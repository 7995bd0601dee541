import re
from dataclasses import replace
from pathlib import Path

import pytest

from diffing.dashboard.site import render, write_site
from diffing.report import Finding, Scalar
from tests.dashboard.conftest import Published
from tests.html.test_page import HOSTILE, Page


@pytest.fixture(scope="module")
def site(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(published.dashboard(), tmp_path_factory.mktemp("site"))


def test_every_link_leads_to_a_place_in_a_page_that_is_there(site: Path) -> None:
    links = Page(site.read_text("utf-8")).attributes("href")
    pages = {path.name: set(Page(path.read_text("utf-8")).attributes("id")) for path in site.parent.glob("*.html")}
    assert len(pages) == 4  # three reports and the index
    for link in links:
        name, _, place = link.partition("#")
        assert not place or place in pages[name or site.name], link
        assert not name or name in pages, link
    assert {link.partition("#")[0] for link in links} - {""} == set(pages) - {site.name}


def test_every_number_grade_and_finding_can_be_read(site: Path, published: Published) -> None:
    text = Page(site.read_text("utf-8")).text
    for result in published.dashboard().results:
        for scalar in result.report.scalars.values():
            assert scalar.about in text
        for finding in result.report.findings:
            assert finding.claim in text
        for grade in result.grades:
            assert grade.agent in text
            assert grade.guess in text
    assert "0.125" in text
    assert "0.5" not in text  # the older report's


def test_null_results_null_controls_and_grades_of_old_reports_are_marked(site: Path) -> None:
    page = Page(site.read_text("utf-8"))
    badges = [attrs["class"] for _, attrs in page.elements if attrs.get("class", "").startswith("badge")]
    assert "badge null" in badges
    assert "badge control" in badges
    (row,) = re.findall(r'<tr class="control">(.*?)</tr>', site.read_text("utf-8"), flags=re.DOTALL)
    assert "none" in row
    assert "no difference" in row
    assert page.text.count("v0, not the newest") == 1
    assert "None yet: python analyze.py diffing/method=kl organism=none" in page.attributes("title")


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_strings_add_no_element_and_no_attribute(hostile: str, published: Published) -> None:
    def saying(text: str) -> Page:
        dashboard = published.dashboard()
        result = dashboard.results[0]
        model = replace(result.report.pair.base, name=text)
        report = replace(
            result.report,
            method=text,
            pair=replace(result.report.pair, organism=text, variant=text, base=model),
            scalars={"scalar": Scalar(1.0, text)},
            findings=[Finding(text)],
            provenance={"uses": [text]},
        )
        grades = [replace(grade, agent=text, guess=text, outcomes={text: 1}) for grade in result.grades]
        changed = replace(result, report=report, grades=grades, run=text)
        return Page(render(replace(dashboard, title=text, results=[changed])))

    found, expected = saying(hostile), saying("harmless")
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in expected.elements]
    assert [sorted(attrs) for _, attrs in found.elements] == [sorted(attrs) for _, attrs in expected.elements]
    assert hostile in found.text
