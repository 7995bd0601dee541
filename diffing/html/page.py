"""The page of a report: what was found first, the numbers behind it next, how it was made last.

The file needs no network and its content policy forbids one. The only scripts that run are those this package brings:
the policy names them by hash, so that even a mistake in escaping could not run what a report holds.
"""

import base64
import hashlib
import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from diffing.html.cells import number, words
from diffing.html.figures import figure_section, plotly_script
from diffing.html.tables import KNOWN, row_id, settings_table, simple_table, table_section, tensors_table
from diffing.report import Finding, Report

_MOST_LINKS = 12
_EARLY = Markup('document.documentElement.classList.add("js")')
_SPEC_FIELDS = ("name", "source", "id", "subset", "split", "format", "column", "max_documents", "revision", "digest")
_NULL = Markup(
    '<p class="banner"><strong>No difference.</strong> Nothing that this method looked at differs between the two '
    "sides: everything below is its null result, not a trace of finetuning.</p>"
)


@dataclass(frozen=True)
class _Section:
    """A part of the page. `entries` are ids and labels that the contents list below it."""

    key: str
    title: str
    body: Markup
    entries: Sequence[tuple[str, str]] = ()
    folded: bool = False

    def html(self) -> Markup:
        if self.folded:
            frame = '<details class="fold" id="{}"><summary><h2>{}</h2></summary>{}</details>'
        else:
            frame = '<section id="{}"><h2>{}</h2>{}</section>'
        return Markup(frame).format(self.key, self.title, self.body)

    def link(self) -> Markup:
        below = _joined(Markup('<li><a href="#{}">{}</a></li>').format(*entry) for entry in self.entries)
        nested = Markup("<ul>{}</ul>").format(below) if self.entries else ""
        return Markup('<li><a href="#{}">{}</a>{}</li>').format(self.key, self.title, nested)


def render(report: Report) -> str:
    """One self-contained HTML document. Plotly's script is part of it only if there are figures."""
    sections = _sections(report)
    style, script = (
        Markup(files("diffing.html").joinpath(name).read_text("utf-8")) for name in ("page.css", "page.js")
    )
    scripts = [_EARLY, script, *([plotly_script()] if report.figures else [])]
    pair = report.pair
    page = Markup(
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><title>{title}</title>'
        "<style>{style}</style><script>{early}</script></head>"
        '<body><a class="skip" href="#content">Skip to the results</a><nav aria-label="Contents"><p>Contents</p>'
        '<ul>{links}</ul></nav><main id="content">{header}{banner}{body}</main>{scripts}</body></html>\n'
    ).format(
        policy=_policy(scripts, evaluates=bool(report.figures)),
        title=f"{words(report.method)}: {pair.organism} on {pair.base.name}",
        style=style,
        early=_EARLY,
        links=_joined(section.link() for section in sections),
        header=_header(report),
        banner=_NULL if report.no_difference else "",
        body=_joined(section.html() for section in sections),
        scripts=_joined(Markup("<script>{}</script>").format(text) for text in reversed(scripts[1:])),
    )
    return str(page)


def write(report: Report, path: Path) -> None:
    """Render to `path`; its folder is made if needed. The file appears whole or not at all."""
    text = render(report).encode("utf-8", "xmlcharrefreplace")
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
        Path(partial).chmod(0o644)
        Path(partial).replace(path)
    finally:
        Path(partial).unlink(missing_ok=True)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("").join(parts)


def _policy(scripts: Sequence[str], evaluates: bool) -> str:
    """Nothing is loaded, and only `scripts` run. `evaluates` is what Plotly's WebGL traces need."""
    digests = (base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in scripts)
    allowed = " ".join([*(f"'sha256-{digest}'" for digest in digests), *(["'unsafe-eval'"] if evaluates else [])])
    return (
        "default-src 'none'; base-uri 'none'; form-action 'none'; style-src 'unsafe-inline'; img-src data: blob:; "
        f"script-src {allowed}"
    )


def _sections(report: Report) -> list[_Section]:
    """Those that hold anything, in reading order."""
    cited = {name: _cited(report.findings, name) for name in report.tables}
    tables = _joined(table_section(name, table, cited[name]) for name, table in report.tables.items())
    figures = _joined(figure_section(name, figure) for name, figure in report.figures.items())
    every = [
        _Section("findings", "Findings", _findings(report)),
        _Section("scalars", "Numbers", _cards(report)),
        _Section("figures", "Figures", figures, [(f"figure-{name}", words(name)) for name in report.figures]),
        _Section("tables", "Tables", tables, [(f"table-{name}", words(name)) for name in report.tables]),
    ]
    return [section for section in every if section.body] + _folded(report)


def _folded(report: Report) -> list[_Section]:
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
    return [_Section(key, title, body, folded=True) for key, (title, body) in parts.items() if body]


def _header(report: Report) -> Markup:
    pair = report.pair
    facts = {"organism": pair.organism, "variant": pair.variant, "model": pair.base.name, "kind": pair.finetuned.kind}
    return Markup("<header><h1>{}</h1><dl>{}</dl></header>").format(
        words(report.method),
        _joined(Markup("<div><dt>{}</dt><dd>{}</dd></div>").format(name, text) for name, text in facts.items()),
    )


def _cited(findings: Sequence[Finding], table: str) -> list[int]:
    return sorted({row for finding in findings if finding.table == table for row in finding.rows})


def _findings(report: Report) -> Markup:
    if not report.findings:
        return Markup("")
    items = _joined(
        Markup("<li><p>{} {}</p>{}</li>").format(
            finding.claim,
            KNOWN if finding.table is not None and report.tables[finding.table].ground_truth else "",
            _evidence(finding),
        )
        for finding in report.findings
    )
    return Markup('<ul class="findings">{}</ul>').format(items)


def _evidence(finding: Finding) -> Markup:
    if finding.table is None:
        return Markup("")
    links = _joined(
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
        _joined(
            Markup('<div id="scalar-{}"><dt>{}</dt><dd title="{}">{}</dd><dd>{}</dd></div>').format(
                name, words(name), repr(scalar.value), number(float(scalar.value)), scalar.about
            )
            for name, scalar in report.scalars.items()
        )
    )
