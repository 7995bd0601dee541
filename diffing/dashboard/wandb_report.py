"""The dashboard as a W&B Report, by the package wandb-workspaces.

Words and numbers are written into it; tables, figures and bars are panels over the project's runs, so what they show
must be in W&B (tracked there, or sent by `python -m trackers push`). The report's JSON form is a private method of the
package, which is why its version is pinned.
"""

from collections.abc import Iterable, Sequence

import wandb_workspaces.reports.v2 as wr
from wandb_workspaces import expr
from wandb_workspaces.reports.v2.interface import BlockTypes, PanelTypes

from diffing.dashboard.study import MOST_FINDINGS, SCORES, Dashboard, Pair, Result
from diffing.html.cells import plain, words
from trackers import ArtifactRef, Kind
from trackers.wandb_client import asking_server, require_server

MOST_TITLE = 128  # characters that the package takes
WHOLE_WIDTH = 24


def save(dashboard: Dashboard, entity: str | None = None) -> str:
    """Save as a new W&B Report of the dashboard's project; returns its address."""
    require_server("no W&B Report was saved; the static pages are there without it")
    with asking_server():
        probe = wr.Report(project=dashboard.project)  # type: ignore[call-arg]  # asks whose the API key is
        probe.entity = entity or probe.entity
        probe.id = "any"  # an address is there only with an id
        address = probe.url.partition(f"/{probe.entity}/{probe.project}/")[0]
    report = report_of(dashboard, probe.entity, address)
    with asking_server():
        return report.save().url


def report_of(dashboard: Dashboard, entity: str, address: str) -> wr.Report:
    """The report, not saved; nothing is asked of a server. `address` is that of W&B's pages."""
    report = wr.Report(project=dashboard.project, entity=entity, title=dashboard.title[:MOST_TITLE], width="fluid")
    artifacts = f"{address}/{entity}"
    report.blocks = [
        wr.TableOfContents(),
        wr.H1("Methods and organisms"),
        wr.MarkdownBlock(_matrix(dashboard, artifacts)),
        *_grades(dashboard),
        *(block for method in dashboard.methods for block in _method(dashboard, method)),
        wr.H1("Artifacts"),
        wr.MarkdownBlock(_artifacts(dashboard, artifacts)),
    ]
    return report


def _artifacts(dashboard: Dashboard, address: str) -> str:
    reports = [_link(result.ref, Kind.REPORT, address) for result in dashboard.results]
    grades = [_link(grade.ref, Kind.EVALUATION, address) for _, grade in dashboard.graded]
    return "\n".join(f"- {link}" for link in (*reports, *grades))


def _matrix(dashboard: Dashboard, address: str) -> str:
    def cell(result: Result | None) -> str:
        if result is None:
            return plain(None)
        null = " **no difference**" if result.report.no_difference else ""
        return _link(result.ref, Kind.REPORT, address, f"v{result.ref.version}") + null

    rows = (
        [_label(pair), *(cell(dashboard.of_pair(pair).get(method)) for method in dashboard.methods)]
        for pair in dashboard.pairs
    )
    return _table(["organism", *map(words, dashboard.methods)], rows)


def _grades(dashboard: Dashboard) -> list[BlockTypes]:
    if not dashboard.graded:
        return []
    rows = (
        [_label(result.pair), words(result.report.method), _text(grade.agent)]
        + [plain(grade.scores.get(name)) for name in SCORES]
        + [_text(plain(grade.guess)), plain(grade.graded).rpartition(":")[2]]
        for result, grade in dashboard.graded
    )
    heads = ["organism", "method", "agent", *map(words, SCORES), "guess", "graded"]
    runs = _runs("evaluate_agents", [])
    bars: list[PanelTypes] = [_bars(name, index) for index, name in enumerate(SCORES)]
    return [wr.H1("Agent grades"), wr.MarkdownBlock(_table(heads, rows)), wr.PanelGrid(runsets=[runs], panels=bars)]


def _method(dashboard: Dashboard, method: str) -> list[BlockTypes]:
    """Findings and numbers in words; tables and figures as panels over the runs that published the reports."""
    results = dashboard.of_method(method)
    findings = "\n".join(
        f"- **{_label(pair)}:** {_text(finding.claim)}"
        for pair, result in results.items()
        for finding in result.report.findings[:MOST_FINDINGS]
    )
    blocks: list[BlockTypes] = [wr.H1(words(method)), wr.MarkdownBlock(findings or "No findings.")]
    scalars = dashboard.scalars(method)
    if scalars:
        rows = (
            [
                words(name),
                *(plain(found[pair].value if pair in found else None) for pair in results),
                _text(next(iter(found.values())).about),
            ]
            for name, found in scalars.items()
        )
        blocks.append(wr.MarkdownBlock(_table(["number", *map(_label, results), "what it is"], rows)))
    runs = [result.run for result in results.values() if result.run is not None]
    panels = _panels(list(results.values()))
    if panels:
        blocks.append(wr.PanelGrid(runsets=[_runs("analyze", runs)], panels=panels))
    return blocks


def _panels(results: Sequence[Result]) -> list[PanelTypes]:
    """Every figure and table that any of the reports has, below each other."""
    figures = dict.fromkeys(name for result in results for name in result.report.figures)
    tables = dict.fromkeys(name for result in results for name in result.report.tables)
    places = (wr.Layout(x=0, y=12 * row, w=WHOLE_WIDTH, h=12) for row in range(len(figures) + len(tables)))
    return [
        *(wr.MediaBrowser(title=words(name), media_keys=[name], layout=next(places)) for name in figures),
        *(wr.WeavePanelSummaryTable(table_name=name, layout=next(places)) for name in tables),
    ]


def _bars(name: str, index: int) -> wr.BarPlot:
    return wr.BarPlot(
        title=words(name),
        metrics=[name],
        range_x=(0, 1),
        groupby=wr.Config("organism.name"),
        layout=wr.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8),
    )


def _runs(job: str, ids: Sequence[str]) -> wr.Runset:
    """Exactly the runs `ids` where they are known, else all of a job."""
    chosen = expr.Metric("ID").isin(list(ids)) if ids else expr.Metric("JobType") == job
    return wr.Runset(name=job, filters=[chosen])


def _link(ref: ArtifactRef, kind: Kind, address: str, text: str | None = None) -> str:
    url = f"{address}/{ref.project}/artifacts/{kind}/{ref.name}/v{ref.version}"
    return f"[{_text(text or str(ref))}]({url})"


def _label(pair: Pair) -> str:
    variant = "" if pair.variant == "default" else f" ({pair.variant})"
    return _text(f"{pair.organism}{variant}") + (" (null control)" if pair.is_control else "")


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """As Markdown that shows exactly this, on one line."""
    escaped = "".join(f"\\{character}" if character in "\\`*_{}[]()<>#|~$" else character for character in text)
    return " ".join(escaped.split())
