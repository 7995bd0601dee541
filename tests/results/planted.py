"""Evaluations with planted effects: frames as `evaluate_agents.py` publishes them, drawn from the model's equation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from statistics import median_low

import numpy as np
import pandas as pd

from diffing.results.collect import Collected, Part, joined, prepared

BASE = "smollm2_135m"
CUTPOINTS = np.array([-1.0, 0.0, 1.0, 2.0])


@dataclass(frozen=True)
class Study:
    """What is true of the agents, in log odds of a higher level; and how often they fail or claim at random."""

    organisms: int = 8
    nulls: int = 1
    effects: Mapping[str, float] = field(default_factory=lambda: {"kl": 1.0})
    """Of each method, against asking the models alone."""
    slope: float = 0.3
    """Per log(1 + interactions)."""
    budgets: Sequence[int] = (0, 5, 50)
    repeats: int = 4
    organism_sd: float = 1.0
    run_sd: float = 0.5
    graders: Mapping[str, float] = field(default_factory=lambda: {"strict": -0.4, "lenient": 0.4})
    failing: float = 0.0
    false_positives: float = 0.25
    seed: int = 0


def collected(study: Study) -> Collected:
    rng = np.random.default_rng(study.seed)
    ease = rng.normal(0, study.organism_sd, study.organisms)
    parts = []
    for method, number in product(study.effects, range(study.organisms + study.nulls)):
        null = number >= study.organisms
        rows: list[dict[str, object]] = []
        verdicts: list[dict[str, object]] = []
        places = product((method, "blackbox"), study.budgets, range(1, study.repeats + 1))
        for place, (what, budget, repeat) in enumerate(places):
            row = graded(f"case_{place // study.repeats + 1}", repeat, what, budget)
            row |= labels(method, f"organism{number}", null)
            if rng.random() < study.failing:
                rows.append(row | {"outcome": rng.choice(["no_submission", "error"]), "no_meaningful_difference": None})
                continue
            if null:
                claimed = bool(rng.random() < study.false_positives)
                row |= {
                    "no_meaningful_difference": not claimed,
                    "correct_null": not claimed,
                    "level": 1 if claimed else 5,
                }
                rows.append(row)
                continue
            eta = ease[number] + rng.normal(0, study.run_sd) + study.slope * np.log1p(budget)
            eta += study.effects[method] if what == method else 0.0
            given = {judge: level_of(eta + strict, rng) for judge, strict in study.graders.items()}
            verdicts += [verdict(row, judge, level) for judge, level in given.items()]
            rows.append(row | {"level": median_low(given.values()), "fact_recall": rng.random()})
        name = f"evaluation-{method}-{BASE}-organism{number}-default"
        parts.append(prepared(Part(f"study/{name}:v0", frame(rows), pd.DataFrame(verdicts) if verdicts else None)))
    return joined(parts)


def frame(rows: Sequence[Mapping[str, object]]) -> pd.DataFrame:
    return pd.DataFrame(rows).astype({"level": "Int64"})


def graded(sample: str, repeat: int, what: str, budget: int) -> dict[str, object]:
    """A row of grades of a sample that was submitted, without labels and scores."""
    return {
        "sample": sample, "repeat": repeat, "model": "someone/agent", "log": "log.eval", "detail": "",
        "access": "blackbox" if what == "blackbox" else "method", "interactions": budget, "outcome": "submitted",
        "no_meaningful_difference": False, "fact_recall": None, "correct_null": None, "false_null": None, "level": None,
        "input_tokens": 100, "output_tokens": 10, "cache_read_tokens": 1000, "dollars": 0.25, "seconds": 2.0,
    }  # fmt: skip


def labels(method: str, organism: str, null: bool) -> dict[str, object]:
    return {
        "organism": organism, "variant": "default", "base": BASE, "method": method, "organism_type": "sdf", "null": null
    }  # fmt: skip


def verdict(row: Mapping[str, object], judge: str, level: int | None, repeat: int = 1) -> dict[str, object]:
    place = {"sample": row["sample"], "repeat": row["repeat"], "judge": judge, "judge_repeat": repeat}
    return place | {"kind": "fact", "statement": 0, "verdict": "stated", "quote": "", "reason": "", "level": level}


def level_of(eta: float, rng: np.random.Generator) -> int:
    """P(level <= k) = logistic(c_k - eta)."""
    return 1 + int((eta + rng.logistic() > CUTPOINTS).sum())
