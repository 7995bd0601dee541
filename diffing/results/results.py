"""Everything that is to say about some samples, computed once; every form of it is drawn from this."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from diffing.errors import MissingInput
from diffing.report import Figure, Table
from diffing.results import contrasts, figures, ordinal, rates, tables
from diffing.results.agreement import agreement_table
from diffing.results.collect import Collected, differing

NOT_FITTED = "not fitted; add --model (minutes, and it needs pip install -e .[statistics])"


@dataclass(frozen=True)
class Results:
    """Tables and figures by name. `warnings` are what a reader must not overlook, `model` says what became of it."""

    sources: Sequence[str]
    warnings: Sequence[str]
    model: str
    tables: Mapping[str, Table]
    figures: Mapping[str, Figure] = field(default_factory=dict)


def compute(found: Collected, sampling: ordinal.Sampling | None = None, resamples: int = 2000) -> Results:
    """Without `sampling` no model is fitted. What a model lacks becomes a line, not an error: the rest stands alone."""
    cells, contrast = tables.cells_table(found.grades), contrasts.contrasts_table(found.grades, resamples)
    spread = tables.spread_table(found.grades)
    every = {
        "methods_by_organisms": tables.matrix_table(cells.frame),
        "rates": rates.rates_table(found.grades),
        "contrasts": contrast,
        "agreement": agreement_table(found.verdicts),
        "costs": tables.costs_table(found.grades, found.verdicts),
        "levels": spread,
        "cells": cells,
    }
    drawn = {"mean_level": figures.heat_map(cells.frame), "levels": figures.spread_figure(spread.frame)}
    drawn |= figures.contrasts_figures(contrast.frame)
    warnings = [*found.notes, *rates.warnings_on(found.grades), *contrasts.warnings_on(contrast)]
    model = NOT_FITTED
    if sampling is not None:
        try:
            fitted = ordinal.fit(ordinal.design(ordinal.observations(found.grades, found.verdicts)), sampling)
        except MissingInput as error:
            model = f"not fitted: {error}"
        else:
            model = described(fitted, found)
            every["model_failed" if fitted.failures else "model"] = fitted.effects
            if fitted.failures:
                warnings.append(f"THE MODEL FAILED: {'; '.join(fitted.failures)}")
            else:
                drawn["effects"] = figures.effects_figure(fitted.effects)
    return Results(
        sources=found.sources, warnings=warnings, model=model,
        tables={name: table for name, table in every.items() if len(table.frame)},
        figures={name: figure for name, figure in drawn.items() if figure is not None},
    )  # fmt: skip


def described(fitted: ordinal.Fit, found: Collected) -> str:
    """What the model is of, what is not in it, and whether its draws may be read."""
    rows, there = fitted.design.rows, differing(found.grades)
    left_out = int(there["level"].isna().sum())
    counts = ", ".join(f"{rows[group].nunique()} {plural}" for group, plural in ordinal.GROUPS.items())
    lines = [
        f"{len(rows)} levels of {counts}; {left_out} of {len(there)} samples have no level and are not in it",
        *(f"dropped: {each}" for each in fitted.design.dropped),
        "FAILED, its effects must not be read: " + "; ".join(fitted.failures) + "; try --draws or --chains"
        if fitted.failures else "converged: no divergence, R-hat and effective draws within their gates",
    ]  # fmt: skip
    return "\n".join(lines)
