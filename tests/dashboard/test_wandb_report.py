import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import wandb_workspaces.reports.v2 as wr
from wandb_workspaces.reports.v2 import internal

from diffing.dashboard.wandb_report import report_of, save
from diffing.report import Finding
from tests.dashboard.conftest import PROJECT, Published
from tests.trackers.conftest import no_wandb, wandb_server  # noqa: F401  # fixtures
from tests.wandb_server.server import WandbServer
from trackers import TrackerUnavailable

PAGES = "https://wandb.example"


def spec_of(report: wr.Report) -> str:
    return report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)


def values(found: object, key: str) -> Iterator[object]:
    """Of every entry `key`, however deep."""
    if isinstance(found, dict):
        yield from (value for name, value in found.items() if name == key)
    for each in found.values() if isinstance(found, dict) else found if isinstance(found, list) else ():
        yield from values(each, key)


def words_of(report: wr.Report) -> str:
    return "\n".join(block.text for block in report.blocks if isinstance(block, wr.MarkdownBlock))


def test_the_package_validates_the_spec_and_reads_the_same_report_back(published: Published) -> None:
    report = report_of(published.dashboard(), "local", PAGES)
    spec = spec_of(report)
    internal.Spec.model_validate_json(spec)
    read = wr.Report._from_model(report._to_model())
    assert [type(block) for block in read.blocks] == [type(block) for block in report.blocks]
    again = report._to_model()
    assert wr.Report._from_model(again).blocks[2] == report.blocks[2]
    assert not any(isinstance(block, wr.interface.UnknownBlock) for block in read.blocks)


def test_panels_show_exactly_what_the_runs_logged(published: Published) -> None:
    dashboard = published.dashboard()
    spec = json.loads(spec_of(report_of(dashboard, "local", PAGES)))
    index = published.store.index
    media = {key for keys in values(spec, "mediaKeys") for key in keys}
    assert media == {name for result in dashboard.results for name in index.media(result.run, "figure")}
    text = json.dumps(spec)
    for name in {name for result in dashboard.results for name in index.media(result.run, "table")}:
        assert f'"{name}"' in text
    metrics = {name for names in values(spec, "metrics") for name in names}
    grades = index.summary(index.version(published.refs["new grade"]).run)
    null_grades = index.summary(index.version(published.refs["null grade"]).run)
    assert metrics == {"fact_recall", "domain_recall", "correct_null", "false_null"}
    assert {"fact_recall", "domain_recall", "false_null"} <= set(grades) | set(null_grades)
    runs = {each for filters in values(spec, "filters") for each in values(filters, "value") if isinstance(each, list)
            for each in each}  # fmt: skip
    assert runs == {result.run for result in dashboard.results}


def test_links_name_the_versions_that_are_shown(published: Published) -> None:
    text = words_of(report_of(published.dashboard(), "local", PAGES))
    for key, kind in (("new", "report"), ("kl", "report"), ("null", "report"), ("new grade", "evaluation")):
        ref = published.refs[key]
        assert f"({PAGES}/local/{PROJECT}/artifacts/{kind}/{ref.name}/v{ref.version})" in text
    assert "**no difference**" in text
    assert "none (null control)" in text


@pytest.mark.parametrize("claim", ["a | b", "[x](http://example.com)", "two\n\n# lines", "<script>alert(1)</script>"])
def test_a_claim_is_shown_and_not_read_as_markdown(claim: str, published: Published) -> None:
    dashboard = published.dashboard()
    result = dashboard.results[0]
    changed = replace(result, report=replace(result.report, findings=[Finding(claim)]))
    text = words_of(report_of(replace(dashboard, results=[changed]), "local", PAGES))
    (line,) = [line for line in text.splitlines() if line.startswith("- **demo\\_nautical:**")]
    shown = line.removeprefix("- **demo\\_nautical:** ")
    assert claim not in shown
    assert "".join(shown.replace("\\", "").split()) == "".join(claim.split())


def test_the_report_is_saved_and_has_an_address(
    wandb_server: WandbServer,  # noqa: F811
    published: Published,
) -> None:
    wandb_server.state.add_project(PROJECT)  # as it is where runs were tracked
    address = save(published.dashboard())
    (saved,) = wandb_server.state.reports.values()
    assert (saved.project, saved.title) == (PROJECT, "Two methods")
    assert address.startswith(f"{wandb_server.url}/local/{PROJECT}/reports/Two-methods--")
    model = internal.Spec.model_validate_json(saved.spec)
    assert len(model.blocks) > 8
    assert f"{wandb_server.url}/local/{PROJECT}/artifacts/report/" in saved.spec
    assert wandb_server.refused == []


def test_without_a_server_a_message_says_what_is_left(
    published: Published,
    no_wandb: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(TrackerUnavailable, match="the static pages are there"):
        save(published.dashboard())
