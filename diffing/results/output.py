"""Results as text, as one HTML page, and as CSV files."""

from pathlib import Path

import pandas as pd
from markupsafe import Markup

from diffing.entry.console import markdown
from diffing.html.cells import plain, words
from diffing.html.figures import figure_section
from diffing.html.shell import Section, document, joined, page_header, write_whole
from diffing.html.tables import simple_table, table_section
from diffing.report import Table
from diffing.results.results import Results

ONLY_IN_FILES = ("cells", "levels", "model_failed")
"""Tables that are not printed: they are long, or must not be read as results."""


def text(results: Results) -> str:
    """Markdown: warnings first, then a section per table."""
    blocks = [f"**{warning}**" for warning in results.warnings]
    for name, table in results.tables.items():
        if name not in (*ONLY_IN_FILES, "model"):
            blocks.append(f"## {words(name).capitalize()}\n\n{table.about}\n\n{markdown(readable(table.frame))}")
    blocks.append(f"## Ordinal model\n\n{results.model}")
    if "model" in results.tables:
        table = results.tables["model"]
        blocks.append(f"{table.about}\n\n{markdown(readable(table.frame))}")
    return "\n\n".join(blocks)


def readable(frame: pd.DataFrame) -> pd.DataFrame:
    """Numbers to three decimals, or four significant digits where they are tiny; a dash for what is missing."""
    return frame.astype(object).map(
        lambda value: plain(round(value, 3) if isinstance(value, float) and abs(value) >= 0.01 else value)
    )


def page(results: Results, title: str) -> str:
    """One self-contained HTML document."""
    warnings = joined(Markup('<p class="banner"><strong>{}</strong></p>').format(each) for each in results.warnings)
    model = joined(Markup('<p class="note">{}</p>').format(line) for line in results.model.splitlines())
    figures = joined(figure_section(name, figure) for name, figure in results.figures.items())
    tables = joined(table_section(name, table, []) for name, table in results.tables.items())
    sources = simple_table(("evaluation",), ([source] for source in results.sources))
    sections = [
        Section("figures", "Figures", figures, [(f"figure-{name}", words(name)) for name in results.figures]),
        Section("tables", "Tables", tables, [(f"table-{name}", words(name)) for name in results.tables]),
        Section("ordinal_model", "Ordinal model", model),
        Section("sources", "Evaluations", sources, folded=True),
    ]
    header = page_header(title, [("evaluations", len(results.sources)), ("samples", _samples(results.tables["cells"]))])
    return document(
        title, header + warnings, [section for section in sections if section.body], figures=bool(results.figures)
    )


def write(results: Results, folder: Path, title: str) -> Path:
    """The page as `index.html`, each table as a CSV file beside it; returns the page, which comes last."""
    for name, table in results.tables.items():
        write_whole(table.frame.to_csv(index=False), folder / f"{name}.csv")
    index = folder / "index.html"
    write_whole(page(results, title), index)
    return index


def _samples(cells: Table) -> int:
    return int(cells.frame["samples"].sum())
