"""An ordinal hierarchical model of levels: what a report, and live models, add, apart from who is easy or strict.

logit P(level <= k) = c_k - (X b + u_pair + u_run + u_grader), k = 1..4: a cumulative model (McCullagh 1980, JRSS B
42; Buerkner and Vuorre 2019, AMPPS 2), fitted by bambi. One row is one level that one judge gave once, so repeats of a
judge and of a sample are no independent evidence. Only intercepts vary: how much the effect of a report varies between
organisms is what the cluster bootstrap of `contrasts` counts in. Only pairs that differ and samples with a level are in
it; failed samples are reported beside it.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd

from diffing.agents.rubrics import LEVELS
from diffing.agents.task import Access
from diffing.errors import MissingInput
from diffing.report import Table
from diffing.results.agreement import levels_given
from diffing.results.collect import differing

CUTPOINTS = [float(np.log(k / (5 - k))) for k in (1, 2, 3, 4)]
"""Centres of the priors of c_k: without anything else, all five levels are equally likely."""
CUTPOINT_SD = 1.5
CONTRAST_SD = 1.0
"""Of the log odds between two conditions, agents or methods."""
SLOPE_SD = 0.5
"""Of the log odds per unit of log(1 + interactions), and of differences between such slopes."""
SPREAD_SD = 1.0
"""Scale of the half-normal priors of the standard deviations of random intercepts."""
GROUPS = {"pair": "pairs", "run": "runs", "grader": "graders"}
LARGEST_RHAT = 1.01
ESS_PER_CHAIN = 100
"""Both as Vehtari, Gelman, Simpson, Carpenter and Buerkner (2021, Bayesian Analysis 16) recommend."""
RULE = "rule"
COLUMNS = {
    "effect": "what changes; conditions and agents against the first",
    "mean": "posterior mean, in log odds of a higher level; of a spread, the standard deviation",
    "low": "lower end of the 95 % interval of highest posterior density",
    "high": "its upper end",
    "rhat": "split R-hat over chains",
    "ess_bulk": "effective number of draws for the mean",
    "ess_tail": "effective number of draws for the tails",
}


@dataclass(frozen=True)
class Sampling:
    """How the posterior is drawn."""

    draws: int = 1000
    tune: int = 1000
    chains: int = 4
    target_accept: float = 0.98
    seed: int = 0
    cores: int | None = None
    progress: bool = False


@dataclass(frozen=True)
class Design:
    """Rows, columns of X with what they mean, groups that have an intercept, and what was dropped and why."""

    rows: pd.DataFrame
    columns: Mapping[str, str]
    priors: Mapping[str, float]
    groups: Sequence[str]
    reference: str
    dropped: Sequence[str]

    @property
    def formula(self) -> str:
        return "level ~ 0 + " + " + ".join([*self.columns, *(f"(1|{group})" for group in self.groups)])


@dataclass(frozen=True)
class Fit:
    """`effects` may be read only if there are no `failures`."""

    effects: Table
    design: Design
    failures: Sequence[str]


def observations(grades: pd.DataFrame, verdicts: pd.DataFrame) -> pd.DataFrame:
    """One row per level of each judge and repeat, on pairs that differ. What the rule decides (a claim that nothing
    differs is level 1) is there once per judge and repeat of its evaluation: each of them would be bound by it."""
    kept = differing(grades).dropna(subset=["level"])
    given = levels_given(verdicts)
    given = given[given["run"].isin(kept["run"])]
    ruled = kept[~kept["run"].isin(given["run"])]
    panels = given[["source", "judge", "judge_repeat"]].drop_duplicates()
    alone = pd.DataFrame({"judge": [RULE], "judge_repeat": [1]})
    anyone = panels[["judge", "judge_repeat"]].drop_duplicates() if len(panels) else alone
    rows = [given[["run", "judge", "level"]]]
    for source, found in ruled.groupby("source"):
        panel = panels.loc[panels["source"] == source, ["judge", "judge_repeat"]]
        rows.append(
            found[["run", "level"]].merge(panel if len(panel) else anyone, how="cross")[["run", "judge", "level"]]
        )
    levels = pd.concat(rows, ignore_index=True)
    about = kept[["run", "agent", "pair", "interactions"]].assign(condition=_conditions(kept))
    return levels.merge(about, on="run").rename(columns={"judge": "grader"})


def design(rows: pd.DataFrame) -> Design:
    """Raises MissingInput where there is nothing to compare."""
    if rows.empty or rows["condition"].nunique() * rows["interactions"].nunique() * rows["agent"].nunique() < 2:
        raise MissingInput("a model needs graded samples of two conditions, budgets or agents on pairs that differ")
    conditions = sorted(rows["condition"].unique(), key=lambda name: (name != Access.BLACKBOX.value, name))
    agents = sorted(rows["agent"].unique())
    log_budget = np.log1p(rows["interactions"].to_numpy(dtype=float))
    log_budget = log_budget - log_budget.mean()
    indicator = {name: (rows["condition"] == name).to_numpy(dtype=float) for name in conditions}
    offered = [(f"{name} against {conditions[0]}", indicator[name], CONTRAST_SD) for name in conditions[1:]]
    offered += [("log(1 + interactions)", log_budget, SLOPE_SD)]
    offered += [
        (f"log(1 + interactions), {name} against {conditions[0]}", indicator[name] * log_budget, SLOPE_SD)
        for name in conditions[1:]
    ]
    offered += [
        (f"{name} against {agents[0]}", (rows["agent"] == name).to_numpy(dtype=float), CONTRAST_SD)
        for name in agents[1:]
    ]
    columns: dict[str, str] = {}
    priors, dropped, matrix = {}, [], np.ones((len(rows), 1))
    for label, values, scale in offered:
        wider = np.column_stack([matrix, values])
        if np.linalg.matrix_rank(wider) == matrix.shape[1]:
            single = np.ptp(values) == 0
            dropped.append(
                f"{label}: " + ("it is the same everywhere" if single else "it cannot be told from the terms before it")
            )
            continue
        matrix, name = wider, f"x{len(columns)}"
        columns[name], priors[name] = label, scale
    rows = rows.assign(**dict(zip(columns, matrix.T[1:], strict=True)))
    groups = []
    for group, plural in GROUPS.items():
        count = rows[group].nunique()
        if count < 2 or count == len(rows):
            dropped.append(
                f"variation between {plural}: " + ("there is one" if count < 2 else "each has a single level")
            )
        else:
            groups.append(group)
    return Design(rows, columns, priors, groups, conditions[0], dropped)


def fit(found: Design, sampling: Sampling = Sampling()) -> Fit:
    """Raises MissingInput without bambi."""
    bambi, arviz, pytensor = _libraries()
    model = build(found, bambi)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "PyTensor could not link to a BLAS")  # there are no matrices to speak of
        draws = model.fit(
            draws=sampling.draws, tune=sampling.tune, chains=sampling.chains, cores=sampling.cores,
            random_seed=sampling.seed, target_accept=sampling.target_accept, progressbar=sampling.progress,
            # PyTensor without a C++ compiler runs plain Python, which takes hours.
            compile_kwargs={} if pytensor.config.cxx else {"mode": "NUMBA"},
        )  # fmt: skip
    spreads = {f"1|{group}_sigma": f"spread of {GROUPS[group]}" for group in found.groups}
    named = {**found.columns, **spreads}
    cutpoints = {f"threshold[{k}]": f"cutpoint {k + 1}" for k in range(len(CUTPOINTS))}
    summary = arviz.summary(draws, var_names=[*named, "threshold"], hdi_prob=0.95, round_to="none")
    frame = pd.DataFrame({
        "effect": [{**named, **cutpoints}[name] for name in summary.index],
        "mean": summary["mean"], "low": summary["hdi_2.5%"], "high": summary["hdi_97.5%"],
        "rhat": summary["r_hat"], "ess_bulk": summary["ess_bulk"], "ess_tail": summary["ess_tail"],
    }).reset_index(drop=True)  # fmt: skip
    failures = failed_gates(frame, int(draws.sample_stats["diverging"].sum()), sampling.chains)
    about = (
        f"Ordinal model of {len(found.rows)} levels. Conditions are compared with {found.reference}, budgets centred."
    )
    return Fit(Table(frame, about, COLUMNS), found, failures)


def build(found: Design, bambi: ModuleType | None = None) -> Any:
    """The `bambi.Model` with its priors, not yet fitted."""
    bambi = bambi or _libraries()[0]
    from pymc.distributions.transforms import ordered

    rows = found.rows.assign(level=pd.Categorical(found.rows["level"].astype(int), categories=LEVELS, ordered=True))
    priors = {name: bambi.Prior("Normal", mu=0.0, sigma=scale) for name, scale in found.priors.items()}
    priors |= {
        f"1|{group}": bambi.Prior("Normal", mu=0.0, sigma=bambi.Prior("HalfNormal", sigma=SPREAD_SD))
        for group in found.groups
    }
    priors["threshold"] = bambi.Prior("Normal", mu=CUTPOINTS, sigma=CUTPOINT_SD, transform=ordered)
    model = bambi.Model(found.formula, rows, family="cumulative", priors=priors)
    model.build()
    return model


def failed_gates(effects: pd.DataFrame, divergences: int, chains: int) -> list[str]:
    """Why the draws are no sample of the posterior; empty if they may be one."""
    worst = effects.loc[effects["rhat"].fillna(np.inf).idxmax()]
    ess, needed = effects[["ess_bulk", "ess_tail"]].min(axis=None), ESS_PER_CHAIN * chains
    failures = []
    if divergences:
        failures.append(f"{divergences} divergent transitions; expected 0")
    if not worst["rhat"] < LARGEST_RHAT:
        failures.append(f"R-hat of {worst['rhat']:.3f} ({worst['effect']}); expected < {LARGEST_RHAT}")
    if not ess >= needed:
        failures.append(f"{ess:.0f} effective draws; expected {needed} or more")
    return failures


def _conditions(grades: pd.DataFrame) -> pd.Series:
    """The method that was read, with what else tells it from reading the report; or blackbox."""
    access, method = grades["access"], grades["method"]
    named = method.where(access == Access.METHOD.value, method + ", " + access)
    return named.where(access != Access.BLACKBOX.value, Access.BLACKBOX.value)


def _libraries() -> tuple[ModuleType, ModuleType, ModuleType]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # arviz announces its next version
            import arviz
            import bambi
            import pytensor
    except ModuleNotFoundError as error:
        raise MissingInput(f"the ordinal model needs {error.name}: pip install -e .[statistics]") from error
    return bambi, arviz, pytensor
