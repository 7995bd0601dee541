"""The dashboard as a folder of HTML files: an index, and the page of each report beside it."""

from collections.abc import Sequence
from pathlib import Path

from markupsafe import Markup

from diffing.dashboard.study import MOST_FINDINGS, SCORES, Dashboard, Grade, Pair, Result
from diffing.html import page
from diffing.html.cells import MISSING, cell, words
from diffing.html.page import known_mark
from diffing.html.shell import Section, document, joined, page_header, write_whole
from diffing.report import Report

NULL = Markup('<span class="badge null" title="Nothing that was looked at differs between the two sides.">{}</span>')
CONTROL = Markup(
    '<span class="badge control" title="Nothing meaningful was finetuned: what is found here says what a method finds '
    'by itself.">null control</span>'
)


def write_site(dashboard: Dashboard, folder: Path) -> Path:
    """Write every page; returns the index. Pages appear before the index that links them."""
    for result in dashboard.results:
        page.write(result.report, folder / result.page)
    index = folder / "index.html"
    write_whole(render(dashboard), index)
    return index


def render(dashboard: Dashboard) -> str:
    """The index."""
    facts = {
        "project": dashboard.project,
        "pairs": len(dashboard.pairs),
        "methods": len(dashboard.methods),
        "reports": len(dashboard.results),
        "grades": len(dashboard.graded),
    }
    pairs = [(f"pair-{number}", pair.organism) for number, pair in enumerate(dashboard.pairs)]
    methods = [(f"numbers-{method}", words(method)) for method in dashboard.methods if dashboard.scalars(method)]
    sections = [
        Section("matrix", "Methods and organisms", _matrix(dashboard)),
        Section("grades", "Agent grades", _grades(dashboard)),
        Section("findings", "Findings", _findings(dashboard), pairs),
        Section("numbers", "Numbers", joined(_numbers(dashboard, each) for each in dashboard.methods), methods),
        Section("contents", "Tables and figures", joined(_contents(dashboard, each) for each in dashboard.methods)),
        Section("artifacts", "Artifacts", _artifacts(dashboard), folded=True),
    ]
    header = page_header(dashboard.title, facts.items())
    return document(dashboard.title, header, [section for section in sections if section.body])


def _matrix(dashboard: Dashboard) -> Markup:
    heads = joined(Markup('<th scope="col">{}</th>').format(words(method)) for method in dashboard.methods)
    rows = joined(
        Markup('<tr{}><th scope="row">{}</th>{}</tr>').format(
            Markup(' class="control"') if pair.is_control else "",
            _pair_label(dashboard, pair),
            joined(_matrix_cell(dashboard.of_pair(pair).get(method), method, pair) for method in dashboard.methods),
        )
        for pair in dashboard.pairs
    )
    return Markup(
        '<div class="scroll whole" tabindex="0" role="region" aria-label="Methods and organisms"><table class="matrix">'
        '<thead><tr><th scope="col">organism</th>{}</tr></thead><tbody>{}</tbody></table></div>'
        '<p class="note">Each cell is the newest report, its first finding, and how agents did who read it.</p>'
    ).format(heads, rows)


def _matrix_cell(result: Result | None, method: str, pair: Pair) -> Markup:
    if result is None:
        command = f"python analyze.py diffing/method={method} organism={pair.organism}"
        return Markup('<td title="None yet: {}">{}</td>').format(command, MISSING)
    report = result.report
    found = Markup("<p>{}</p>").format(report.findings[0].claim) if report.findings else ""
    grades = joined(Markup('<p class="grade">{}</p>').format(_grade_line(grade)) for grade in result.grades)
    return Markup('<td><a href="{}">v{}</a> {}{}{}</td>').format(
        result.page, result.ref.version, _null(report), found, grades
    )


def _null(report: Report) -> Markup:
    return NULL.format("no difference") if report.no_difference else Markup("")


def _grade_line(grade: Grade) -> str:
    """The score that matters most of those that are defined: recall of a finetune, or a null called one."""
    name = next((name for name in SCORES if name in grade.scores), None)
    return f"{grade.agent}: {f'{words(name)} {grade.scores[name]:.2f}' if name else ', '.join(grade.outcomes)}"


def _pair_label(dashboard: Dashboard, pair: Pair) -> Markup:
    """The organism, and what else tells it from the other rows."""
    several = {name for name in ("variant", "model") if len({getattr(each, name) for each in dashboard.pairs}) > 1}
    more = [getattr(pair, name) for name in ("variant", "model") if name in several]
    return Markup("{} {}{}").format(
        pair.organism,
        CONTROL if pair.is_control else "",
        joined(Markup("<small>{}</small>").format(text) for text in more),
    )


def _grades(dashboard: Dashboard) -> Markup:
    if not dashboard.graded:
        return Markup('<p class="note">None yet: python evaluate_agents.py diffing/method=... organism=...</p>')
    heads = [_head(name) for name in ("organism", "method", "agent")]
    heads += [_head(name, about, numeric=True) for name, about in SCORES.items()]
    rows = joined(
        Markup('<tr><th scope="row">{}</th><td><a href="{}">{}</a></td>{}</tr>').format(
            _pair_label(dashboard, result.pair), result.page, words(result.report.method), _grade_cells(result, grade)
        )
        for result, grade in dashboard.graded
    )
    return _table([*heads, _head("samples"), _head("guess"), _head("graded")], rows)


def _grade_cells(result: Result, grade: Grade) -> Markup:
    scores = joined(cell(grade.scores.get(name), numeric=True) for name in SCORES)
    outcomes = ", ".join(f"{count} {outcome.replace('_', ' ')}" for outcome, count in grade.outcomes.items())
    last = Markup("<td>{}</td>").format(_graded(result, grade))
    return cell(grade.agent) + scores + cell(outcomes) + cell(grade.guess) + last


def _graded(result: Result, grade: Grade) -> Markup:
    """Which version was read: grades of an older report do not speak of the one shown."""
    if grade.graded is None:
        return MISSING
    version = grade.graded.rpartition(":")[2]
    return Markup(version) if grade.graded == str(result.ref) else NULL.format(f"{version}, not the newest")


def _findings(dashboard: Dashboard) -> Markup:
    return joined(
        Markup('<section class="table" id="pair-{}"><h3 class="name">{}</h3>{}</section>').format(
            number,
            _pair_label(dashboard, pair),
            joined(_findings_of(result) for result in dashboard.of_pair(pair).values()),
        )
        for number, pair in enumerate(dashboard.pairs)
    )


def _findings_of(result: Result) -> Markup:
    findings = result.report.findings
    more = len(findings) - MOST_FINDINGS
    rest = Markup('<a href="{}#findings">and {} more</a>').format(result.page, more) if more > 0 else ""
    return Markup(
        '<div class="brief"><h4><a href="{}">{}</a> {}</h4><ul class="findings">{}</ul><p class="key">{}</p></div>'
    ).format(
        result.page,
        words(result.report.method),
        _null(result.report),
        joined(
            Markup("<li><p>{} {}</p></li>").format(finding.claim, known_mark(finding, result.report))
            for finding in findings[:MOST_FINDINGS]
        ),
        rest,
    )


def _numbers(dashboard: Dashboard, method: str) -> Markup:
    """Scalars downwards, organisms across: any number of scalars fits."""
    scalars, results = dashboard.scalars(method), dashboard.of_method(method)
    if not scalars:
        return Markup("")
    heads = [_pair_head(dashboard, result) for result in results.values()]
    rows = joined(
        Markup("<tr>{}{}</tr>").format(
            _explained(name, next(iter(found.values())).about),
            joined(cell(found[pair].value if pair in found else None, numeric=True) for pair in results),
        )
        for name, found in scalars.items()
    )
    return _titled(f"numbers-{method}", method, _table([_head("number"), *heads], rows))


def _pair_head(dashboard: Dashboard, result: Result) -> Markup:
    return Markup('<th scope="col" class="n">{} {}</th>').format(
        _pair_label(dashboard, result.pair), _null(result.report)
    )


def _contents(dashboard: Dashboard, method: str) -> Markup:
    """Where each table and figure is."""
    results = dashboard.of_method(method)
    names: dict[tuple[str, str], str] = {}
    for result in results.values():
        names |= {("figure", name): figure.about for name, figure in result.report.figures.items()}
        names |= {("table", name): table.about for name, table in result.report.tables.items()}
    if not names:
        return Markup("")
    heads = [Markup('<th scope="col">{}</th>').format(_pair_label(dashboard, pair)) for pair in results]
    rows = joined(
        Markup("<tr>{}{}</tr>").format(
            _explained(name, about), joined(_content_cell(result, kind, name) for result in results.values())
        )
        for (kind, name), about in names.items()
    )
    return _titled(f"contents-{method}", method, _table([_head("name"), *heads], rows))


def _content_cell(result: Result, kind: str, name: str) -> Markup:
    report = result.report
    if name not in (report.tables if kind == "table" else report.figures):
        return Markup("<td>{}</td>").format(MISSING)
    text = f"{len(report.tables[name].frame):,} rows" if kind == "table" else "figure"
    return Markup('<td><a href="{}#{}-{}">{}</a></td>').format(result.page, kind, name, text)


def _artifacts(dashboard: Dashboard) -> Markup:
    rows = []
    for result in dashboard.results:
        uses = result.report.provenance.get("uses") or []
        rows.append((str(result.ref), "report", uses, result.run))
        rows += [(str(grade.ref), "evaluation", [grade.graded or result.ref.name], None) for grade in result.grades]
    body = joined(
        Markup('<tr><th scope="row">{}</th>{}</tr>').format(ref, joined(map(cell, rest))) for ref, *rest in rows
    )
    note = Markup('<p class="note">python -m trackers get REF gives its files, lineage REF what it came from.</p>')
    return _table([_head(name) for name in ("artifact", "kind", "made from", "run")], body) + note


def _explained(name: str, about: str) -> Markup:
    """The head of a row, with what it is."""
    return Markup('<th scope="row" class="explained">{}<small>{}</small></th>').format(words(name), about)


def _titled(key: str, method: str, body: Markup) -> Markup:
    return Markup('<section class="table" id="{}"><h3>{}</h3>{}</section>').format(key, words(method), body)


def _head(name: str, about: str = "", numeric: bool = False) -> Markup:
    return Markup('<th scope="col"{}{}>{}</th>').format(
        Markup(' class="n"') if numeric else "", Markup(' title="{}"').format(about) if about else "", words(name)
    )


def _table(heads: Sequence[Markup], body: Markup) -> Markup:
    return Markup(
        '<div class="scroll" tabindex="0"><table class="data"><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>'
    ).format(joined(heads), body)
