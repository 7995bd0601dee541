"""The page of a report: what was found first, the numbers behind it next, how it was made last."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from diffing.html.cells import number, words
from diffing.html.figures import figure_section
from diffing.html.shell import Section, document, joined, page_header, write_whole
from diffing.html.tables import KNOWN, row_id, settings_table, simple_table, table_section, tensors_table
from diffing.report import Finding, Report

_MOST_LINKS = 12
_SPEC_FIELDS = ("name", "source", "id", "subset", "split", "format", "column", "max_documents", "revision", "digest")
_NULL = Markup(
    '<p class="banner"><strong>No difference.</strong> Nothing that this method looked at differs between the two '
    "sides: everything below is its null result, not a trace of finetuning.</p>"
)


def render(report: Report) -> str:
    """One self-contained HTML document."""
    pair = report.pair
    title = f"{words(report.method)}: {pair.organism} on {pair.base.name}"
    banner = _NULL if report.no_difference else Markup("")
    return document(title, _header(report) + banner, _sections(report), figures=bool(report.figures))


def write(report: Report, path: Path) -> None:
    """Render to `path`; its folder is made if needed. The file appears whole or not at all."""
    write_whole(render(report), path)


def _sections(report: Report) -> list[Section]:
    """Those that hold anything, in reading order."""
    cited = {name: _cited(report.findings, name) for name in report.tables}
    tables = joined(table_section(name, table, cited[name]) for name, table in report.tables.items())
    figures = joined(figure_section(name, figure) for name, figure in report.figures.items())
    every = [
        Section("findings", "Findings", _findings(report)),
        Section("scalars", "Numbers", _cards(report)),
        Section("figures", "Figures", figures, [(f"figure-{name}", words(name)) for name in report.figures]),
        Section("tables", "Tables", tables, [(f"table-{name}", words(name)) for name in report.tables]),
    ]
    return [section for section in every if section.body] + _folded(report)


def _folded(report: Report) -> list[Section]:
    pair = report.pair
    specs = [{**corpus.as_json(), "digest": corpus.digest} for corpus in report.corpora]
    corpora = simple_table(_SPEC_FIELDS, ([spec[field] for field in _SPEC_FIELDS] for spec in specs)) if specs else None
    parts = {
        "tensors": ("Tensors", tensors_table(report.tensors) if report.tensors else None),
        "settings": ("Settings", settings_table(report.settings) if report.settings else None),
        "corpora": ("Corpora", corpora),
        "pair": ("Models", settings_table({**pair.as_json(), "digest": pair.digest})),
        "provenance": ("Provenance", settings_table(report.provenance) if report.provenance else None),
    }
    return [Section(key, title, body, folded=True) for key, (title, body) in parts.items() if body]


def _header(report: Report) -> Markup:
    pair = report.pair
    facts = {"organism": pair.organism, "variant": pair.variant, "model": pair.base.name, "kind": pair.finetuned.kind}
    return page_header(words(report.method), facts.items())


def _cited(findings: Sequence[Finding], table: str) -> list[int]:
    return sorted({row for finding in findings if finding.table == table for row in finding.rows})


def _findings(report: Report) -> Markup:
    if not report.findings:
        return Markup("")
    items = joined(
        Markup("<li><p>{} {}</p>{}</li>").format(
            finding.claim,
            known_mark(finding, report),
            _evidence(finding),
        )
        for finding in report.findings
    )
    return Markup('<ul class="findings">{}</ul>').format(items)


def known_mark(finding: Finding, report: Report) -> Markup:
    """Says of a finding that it was made with the training data, if it was."""
    made = finding.table is not None and report.tables[finding.table].ground_truth
    return KNOWN if made else Markup("")


def _evidence(finding: Finding) -> Markup:
    if finding.table is None:
        return Markup("")
    links = joined(
        Markup(' <a href="#{}">{}</a>').format(row_id(finding.table, row), row) for row in finding.rows[:_MOST_LINKS]
    )
    more = len(finding.rows) - _MOST_LINKS
    rows = Markup(", rows{}{}").format(links, f" and {more} more" if more > 0 else "") if links else ""
    return Markup('<p class="evidence">See <a href="#table-{}">{}</a>{}</p>').format(
        finding.table, words(finding.table), rows
    )


def _cards(report: Report) -> Markup:
    if not report.scalars:
        return Markup("")
    return Markup('<dl class="cards">{}</dl>').format(
        joined(
            Markup('<div id="scalar-{}"><dt>{}</dt><dd title="{}">{}</dd><dd>{}</dd></div>').format(
                name, words(name), repr(scalar.value), number(float(scalar.value)), scalar.about
            )
            for name, scalar in report.scalars.items()
        )
    )
