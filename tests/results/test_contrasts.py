"""The bootstrap over organisms: closed forms, coverage of a planted effect, and nominal false positives."""

import numpy as np
import pytest

from diffing.results.contrasts import FEWEST_CLUSTERS, Arms, contrast, contrasts_table, warnings_on
from tests.results import planted


def arms(rng: np.random.Generator, clusters: int, effect: float, effect_sd: float = 0.5, runs: int = 3) -> Arms:
    """Organisms of different ease and effect, with runs on one side twice as many as on the other."""
    found = {}
    for cluster in range(clusters):
        ease, own = rng.normal(3, 1), rng.normal(effect, effect_sd)
        found[f"organism{cluster}"] = [(ease + own + rng.normal(0, 0.7, 2 * runs), ease + rng.normal(0, 0.7, runs))]
    return found


def test_without_variation_the_interval_is_the_difference() -> None:
    found = contrast({f"o{number}": [(np.full(3, number + 2.0), np.full(2, number))] for number in range(6)})
    assert (found.difference, found.low, found.high) == (2.0, 2.0, 2.0)


def test_organisms_weigh_the_same_however_many_pairs_and_runs_they_have() -> None:
    one, many = [(np.array([5.0]), np.array([1.0]))], [(np.full(50, 2.0), np.full(9, 2.0))] * 7
    found = contrast({"a": one, "b": many})
    assert found.difference == 2.0
    assert (found.low, found.high) == (0.0, 4.0), "two organisms, each alone or both"


def test_the_interval_of_many_organisms_is_that_of_the_mean_of_their_differences() -> None:
    """Without noise within organisms, resampling them has variance (k - 1) / k of the sample's (Efron 1979)."""
    differences = np.random.default_rng(1).normal(0.5, 1, 60)
    found = contrast({str(n): [(np.array([d]), np.array([0.0]))] for n, d in enumerate(differences)}, resamples=5000)
    half = 1.96 * differences.std() / np.sqrt(60)
    assert found.low == pytest.approx(differences.mean() - half, abs=0.05)
    assert found.high == pytest.approx(differences.mean() + half, abs=0.05)


def test_the_runs_of_one_organism_vary_as_two_means_do() -> None:
    rng = np.random.default_rng(4)
    sides = rng.normal(1, 1, 40), rng.normal(0, 2, 80)
    found = contrast({"a": [sides]}, resamples=5000)
    half = 1.96 * np.sqrt(sum(side.var() / len(side) for side in sides))
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)


@pytest.mark.parametrize("effect", [0.0, 0.8])
def test_intervals_cover_the_planted_effect_nominally_null_or_not(effect: float) -> None:
    rng = np.random.default_rng(2)
    found = [contrast(arms(rng, 12, effect), resamples=400, seed=number) for number in range(300)]
    covered = np.mean([each.low <= effect <= each.high for each in found])
    assert 0.91 <= covered <= 0.99
    if effect:
        assert np.mean([each.low > 0 for each in found]) > 0.9, "and tell it from zero"


def test_drawing_runs_as_if_each_were_an_organism_would_cover_too_rarely() -> None:
    """The reason for clusters: where effects differ between organisms, intervals over runs are too narrow."""
    rng = np.random.default_rng(3)
    covered = []
    for seed in range(200):
        drawn = arms(rng, 12, 0.8, effect_sd=1.0, runs=8)
        pooled = [tuple(np.concatenate([pair[side] for (pair,) in drawn.values()]) for side in (0, 1))]
        found = contrast({"all": pooled}, resamples=300, seed=seed)  # type: ignore[dict-item]
        covered.append(found.low <= 0.8 <= found.high)
    assert np.mean(covered) < 0.85


def test_contrasts_are_within_agent_budget_and_pair_and_over_pairs_that_differ() -> None:
    study = planted.Study(effects={"kl": 2.0, "pca": 0.0}, organisms=7, nulls=2, repeats=6, failing=0.1, seed=1)
    found = planted.collected(study)
    table = contrasts_table(found.grades).frame
    assert set(table.organisms) == {7}
    every = table[table.interactions == "all"].set_index(["method", "measure"])
    assert every.loc[("kl", "level"), "low"] > 0
    assert every.loc[("kl", "success"), "low"] > 0
    assert every.loc[("pca", "level"), "low"] < 0 < every.loc[("pca", "level"), "high"]
    assert every.loc[("kl", "success"), "runs_method"] == 7 * 6 * 3, "failed samples count in success"
    assert every.loc[("kl", "level"), "runs_method"] < 7 * 6 * 3, "and have no level"
    of_five = found.grades[(found.grades.interactions == 5) & ~found.grades.null.astype(bool)]
    of_kl, without = (
        of_five[of_five.method == name].groupby("organism")["level"].mean() for name in ("kl", "no report")
    )
    row = table[(table.method == "kl") & (table.interactions == 5) & (table.measure == "level")].iloc[0]
    assert row.difference == pytest.approx(float((of_kl - without).mean()))


def test_budgets_and_agents_that_one_side_lacks_are_not_compared() -> None:
    grades = planted.collected(planted.Study(organisms=3, budgets=(5, 50))).grades
    lacking = grades[~((grades.access == "blackbox") & (grades.interactions == 50))]
    assert set(contrasts_table(lacking).frame.interactions) == {5}
    other = grades.assign(agent=grades.agent.where(grades.access == "method", "another"))
    assert contrasts_table(other).frame.empty


def test_intervals_of_few_organisms_are_marked() -> None:
    few = contrasts_table(planted.collected(planted.Study(organisms=FEWEST_CLUSTERS - 1)).grades)
    assert not few.frame.trusted.any()
    (warning,) = warnings_on(few)
    assert "have 4 organisms" in warning
    enough = contrasts_table(planted.collected(planted.Study(organisms=FEWEST_CLUSTERS)).grades)
    assert enough.frame.trusted.all()
    assert warnings_on(enough) == []
