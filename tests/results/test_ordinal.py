"""The model: what goes in, which terms it has, what its priors say, and planted effects come out again."""

import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from diffing.errors import MissingInput
from diffing.results import ordinal
from diffing.results.collect import Collected
from diffing.results.ordinal import Design, Sampling, design, failed_gates, fit, observations
from tests.results import planted

QUICK = Sampling(draws=250, tune=350, chains=2, target_accept=0.9, cores=1)
PLANTED = {"kl against blackbox": 1.5, "pca against blackbox": 0.0, "log(1 + interactions)": 0.3}
STUDY = planted.Study(
    effects={"kl": 1.5, "pca": 0.0}, slope=0.3, organisms=8, nulls=1, budgets=(0, 50), repeats=3, failing=0.15, seed=1
)
"""Unbalanced: samples fail at random, and there are twice as many without a report as with either."""


def rows_of(found: Collected) -> pd.DataFrame:
    return observations(found.grades, found.verdicts)


def test_each_level_of_each_judge_is_a_row_and_null_pairs_and_failed_samples_are_not() -> None:
    found = planted.collected(STUDY)
    rows, graded = rows_of(found), found.grades[found.grades.level.notna() & ~found.grades.null.astype(bool)]
    assert len(graded) < len(found.grades)
    assert len(rows) == 2 * len(graded)
    assert set(rows.run) == set(graded.run)
    assert set(rows.grader) == {"strict", "lenient"}
    assert set(rows.condition) == {"blackbox", "kl", "pca"}


def test_a_claim_that_nothing_differs_is_as_low_for_every_judge() -> None:
    """Were it one row of another grader, that grader's severity would explain it away."""
    found = planted.collected(replace(STUDY, effects={"kl": 0.0}, organisms=2, failing=0.0))
    silent = found.grades.run.iloc[:5]
    grades = found.grades.assign(level=found.grades.level.mask(found.grades.run.isin(silent), 1))
    rows = observations(grades, found.verdicts[~found.verdicts.run.isin(silent)])
    assert len(rows) == len(rows_of(found))
    ruled = rows[rows.run.isin(silent)]
    assert set(ruled.level) == {1}
    assert ruled.groupby("run").grader.agg(set).map(lambda each: each == {"strict", "lenient"}).all()


def test_terms_with_a_single_level_are_dropped_and_said() -> None:
    found = planted.collected(replace(STUDY, effects={"kl": 1.0}, budgets=(5,), graders={"only": 0.0}))
    made = design(rows_of(found))
    assert list(made.columns.values()) == ["kl against blackbox"]
    assert list(made.groups) == ["pair"]
    assert [line.split(":")[0] for line in made.dropped] == [
        "log(1 + interactions)", "log(1 + interactions), kl against blackbox", "variation between runs",
        "variation between graders",
    ]  # fmt: skip
    assert "the same everywhere" in made.dropped[0]


def test_a_budget_that_only_one_condition_has_is_not_told_from_it() -> None:
    rows = rows_of(planted.collected(replace(STUDY, effects={"kl": 1.0})))
    apart = rows[(rows.condition == "kl") == (rows.interactions == 50)]
    made = design(apart)
    assert list(made.columns.values()) == ["kl against blackbox"]
    assert "cannot be told from" in made.dropped[0]


def test_agents_are_compared_too_and_budgets_are_centred() -> None:
    found = planted.collected(replace(STUDY, effects={"kl": 1.0}))
    other = found.grades.assign(agent="b", run=found.grades.run + "b")
    both = pd.concat([found.grades.assign(agent="a"), other], ignore_index=True)
    verdicts = pd.concat([found.verdicts, found.verdicts.assign(run=found.verdicts.run + "b")], ignore_index=True)
    made = design(observations(both, verdicts))
    assert list(made.columns.values())[-1] == "b against a"
    budget = made.rows[next(name for name, label in made.columns.items() if label == "log(1 + interactions)")]
    assert budget.mean() == pytest.approx(0)
    assert np.ptp(budget) == pytest.approx(np.log(51))


def test_without_anything_to_compare_there_is_no_model() -> None:
    found = planted.collected(planted.Study(organisms=2, budgets=(5,)))
    rows = rows_of(found)
    for lacking in (rows.iloc[:0], rows[rows.condition == "blackbox"]):
        with pytest.raises(MissingInput, match="two conditions"):
            design(lacking)


def test_priors_leave_every_level_open() -> None:
    """Drawn apart from the library, in the order that cutpoints have: no level takes most of the mass, nor none."""
    rng, draws = np.random.default_rng(0), 200_000
    cuts = rng.normal(ordinal.CUTPOINTS, ordinal.CUTPOINT_SD, (draws, 4))
    cuts = cuts[(np.diff(cuts, axis=1) > 0).all(axis=1)]
    spreads = np.abs(rng.normal(0, ordinal.SPREAD_SD, (3, len(cuts))))
    eta = (spreads * rng.normal(size=spreads.shape)).sum(axis=0)
    eta += rng.normal(0, ordinal.CONTRAST_SD, len(cuts)) + 2 * rng.normal(0, ordinal.SLOPE_SD, len(cuts))
    levels = 1 + (eta[:, None] + rng.logistic(size=(len(cuts), 1)) > cuts).sum(axis=1)
    shares = np.bincount(levels, minlength=6)[1:] / len(levels)
    assert shares.min() > 0.1
    assert shares.max() < 0.35
    assert shares[0] == pytest.approx(shares[4], abs=0.02)
    assert shares[1] == pytest.approx(shares[3], abs=0.02)


def test_gates_name_what_is_wrong_and_what_was_expected() -> None:
    effects = pd.DataFrame({
        "effect": ["one", "two"], "rhat": [1.0, 1.004], "ess_bulk": [900.0, 800.0], "ess_tail": [700.0, 400.0]
    })  # fmt: skip
    assert failed_gates(effects, 0, chains=4) == []
    assert "3 divergent" in failed_gates(effects, 3, chains=4)[0]
    assert "R-hat of 1.020 (two)" in failed_gates(effects.assign(rhat=[1.0, 1.02]), 0, 4)[0]
    assert "expected 500" in failed_gates(effects, 0, chains=5)[0]
    assert failed_gates(effects.assign(rhat=float("nan")), 0, 4), "what is not known is not passed"


@pytest.fixture(scope="module")
def fitted() -> ordinal.Fit:
    return fit(design(rows_of(planted.collected(STUDY))), QUICK)


def test_planted_effects_are_covered_and_told_from_nothing(fitted: ordinal.Fit) -> None:
    effects = fitted.effects.frame.set_index("effect")
    for name, true in PLANTED.items():
        assert effects.low[name] <= true <= effects.high[name], name
    assert effects.low["kl against blackbox"] > 0
    assert effects.low["log(1 + interactions)"] > 0
    assert effects.low["pca against blackbox"] < 0 < effects.high["pca against blackbox"]
    assert list(effects.index)[-4:] == ["cutpoint 1", "cutpoint 2", "cutpoint 3", "cutpoint 4"]
    assert effects["mean"].iloc[-4:].is_monotonic_increasing
    spreads = {"spread of pairs": STUDY.organism_sd, "spread of runs": STUDY.run_sd}
    for name, true in spreads.items():
        assert effects.low[name] <= true <= effects.high[name], name


def test_a_level_that_nobody_gave_keeps_its_place(fitted: ordinal.Fit) -> None:
    """The library would else take the highest of four levels for the fourth of four."""
    rows = fitted.design.rows[fitted.design.rows.level != 4]
    model = ordinal.build(replace(fitted.design, rows=rows))
    assert set(model.response_component.term.data) == {0, 1, 2, 4}
    assert "threshold ~ Normal(mu: [-1.3863 -0.4055  0.4055  1.3863], sigma: 1.5, transform: ordered)" in str(model)


def test_without_the_library_the_message_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bambi", None)
    with pytest.raises(MissingInput, match=r"pip install -e \.\[statistics\]"):
        fit(Design(pd.DataFrame(), {}, {}, [], "", []), QUICK)


@pytest.mark.slow
def test_intervals_cover_planted_effects_over_several_studies_and_every_fit_converges() -> None:
    """12 intervals that cover with probability 0.95: 8 or fewer would come once in 300 times."""
    covered, false_positives = [], 0
    for seed in range(4):
        found = planted.collected(replace(STUDY, seed=100 + seed))
        made = fit(design(rows_of(found)), Sampling(draws=2000, chains=2, cores=2))
        assert made.failures == []
        effects = made.effects.frame.set_index("effect")
        covered += [effects.low[name] <= true <= effects.high[name] for name, true in PLANTED.items()]
        false_positives += not effects.low["pca against blackbox"] <= 0 <= effects.high["pca against blackbox"]
    assert sum(covered) >= 9
    assert false_positives <= 1
