"""Grades by condition and pair, how levels are spread, and what samples cost. Failed samples are in all three."""

from collections.abc import Mapping

import pandas as pd

from diffing.agents.rubrics import DETECTED
from diffing.report import Table
from diffing.results.collect import KEYS, differing

CONDITION = {
    "agent": "model that investigated",
    "method": "method whose report was read",
    "access": "what was looked at: method (report, and live models), blackbox (live models alone), scripted (a fixed "
    "policy on the report)",
    "interactions": "texts that live models might generate",
}
CELLS = CONDITION | {
    "pair": "base model and finetune, by the organism's name",
    "null": "whether the two sides do not differ",
    "samples": "number of samples",
    "submitted": "of them, samples that ended in a submission",
    "level": "mean level, 1 to 5, of the graded samples; of a null pair 5 if it was called one, 1 if not",
    "graded": "samples with a level",
    "successes": f"samples that reached level {DETECTED}",
    "attempts": "samples that might have: graded ones, and those without submission that would have been",
    "fact_recall": "mean share of the facts that submissions named; missing for null pairs",
    "correct_null": "share of the submissions on a null pair that say that nothing differs",
}
COSTS = CONDITION | {
    "samples": "number of samples, failed ones among them",
    "dollars": "US dollars over all samples; missing if one of them has no price",
    "dollars_per_sample": "dollars / samples",
    "tokens_per_sample": "mean tokens, input (cached or not) and output; missing where a service did not say",
    "seconds_per_sample": "mean time (s)",
    "detections": f"samples on pairs that differ that reached level {DETECTED}; missing where nothing was graded",
    "dollars_per_detection": "dollars over all samples on pairs that differ, failed ones too / detections",
    "tokens_per_detection": "tokens, likewise",
    "seconds_per_detection": "time, likewise (s)",
    "unpriced": "samples without a price",
    "judge_dollars": "US dollars that judges cost; missing if one of their replies has no price, or none is known",
}
NULL_MARK, NULL_HEAD = " (null)", "null pair: level 5 is what calls it one"
NOT_GRADED, WITHOUT = "not graded", "no submission"
SPREAD = CONDITION | {
    "outcome": f"level, '{WITHOUT}' for samples that ended without one, or '{NOT_GRADED}'",
    "samples": "number of samples",
    "share": "of the samples of the condition",
}


def cells_table(grades: pd.DataFrame) -> Table:
    """One row per condition and pair."""
    rows = []
    for key, found in grades.groupby([*KEYS, "pair"]):
        scores = {name: pd.to_numeric(found[name]).astype(float).mean() for name in ("fact_recall", "correct_null")}
        rows.append({
            **dict(zip([*KEYS, "pair"], key, strict=True)),
            "null": found["null"].iloc[0],
            "samples": len(found),
            "submitted": int(found["submitted"].sum()),
            "level": float(found["level"].astype(float).mean()),
            "graded": int(found["level"].notna().sum()),
            "successes": int(found["success"].sum()),
            "attempts": int(found["success"].notna().sum()),
            **scores,
        })  # fmt: skip
    frame = pd.DataFrame(rows, columns=list(CELLS)).astype({"null": "boolean"})
    return Table(frame, "Grades of each condition on each pair.", CELLS)


def matrix_table(cells: pd.DataFrame) -> Table:
    """Conditions down, pairs across; pairs that differ come first."""
    heads = [pair_head(row) for row in cells.to_dict("records")]
    frame = cells.assign(text=[_cell(row) for row in cells.to_dict("records")], head=heads)
    order = frame.sort_values(["null", "pair"])["head"].unique().tolist()
    wide = frame.pivot(index=KEYS, columns="head", values="text")[order].fillna("").reset_index()
    wide.columns.name = None
    about = {head: NULL_HEAD if head.endswith(NULL_MARK) else "pair that differs" for head in order}
    return Table(
        wide,
        f"Mean level (successes / attempts), where level {DETECTED} is a success and a sample without submission is an "
        "attempt; without levels, the recall of facts, or of nulls called null (submitted / samples).",
        CONDITION | about,
    )


def pair_head(cell: Mapping[str, object]) -> str:
    """The pair, and whether it is null."""
    return f"{cell['pair']}{NULL_MARK if cell['null'] is True else ''}"


def spread_table(grades: pd.DataFrame) -> Table:
    """How many samples of each condition reached which level, over pairs that differ."""
    there = differing(grades)
    outcome = there["level"].astype("object").where(there["level"].notna(), NOT_GRADED)
    outcome = outcome.mask(~there["submitted"], WITHOUT)
    counts = there.assign(outcome=outcome.astype(str)).groupby([*KEYS, "outcome"]).size().rename("samples")
    frame = counts.reset_index()
    frame["share"] = frame["samples"] / frame.groupby(KEYS)["samples"].transform("sum")
    return Table(frame, "Levels reached on pairs that differ, failed samples among them.", SPREAD)


def costs_table(grades: pd.DataFrame, verdicts: pd.DataFrame) -> Table:
    judges = judge_dollars(verdicts)
    rows = [
        {**dict(zip(KEYS, key, strict=True)), **_costs(found), "judge_dollars": _total(judges, found["run"])}
        for key, found in grades.groupby(KEYS)
    ]
    return Table(
        pd.DataFrame(rows, columns=list(COSTS)),
        "What samples cost; live models, which are yours, are not in it. What has no price is missing, never 0.",
        COSTS,
    )


def judge_dollars(verdicts: pd.DataFrame) -> pd.Series:
    """By run, what its judges cost: NaN if a reply has no price, and no entry where costs are not known at all."""
    if "dollars" not in verdicts:
        return pd.Series(dtype=float)
    replies = verdicts.drop_duplicates(["run", "judge", "judge_repeat", *(["kind"] if "kind" in verdicts else [])])
    return replies.groupby("run")["dollars"].agg(lambda found: found.astype(float).sum(skipna=False))


def _total(dollars: pd.Series, runs: pd.Series) -> float | None:
    found = dollars[dollars.index.isin(runs)]
    return float(found.sum()) if len(found) and found.notna().all() else None


def _cell(row: Mapping[str, object]) -> str:
    if row["attempts"]:
        level = f"{row['level']:.2f}" if row["graded"] else "no level"
        return f"{level} ({row['successes']}/{row['attempts']})"
    for name, word in (("fact_recall", "recall"), ("correct_null", "called null")):
        if pd.notna(row[name]):
            return f"{word} {row[name]:.2f} ({row['submitted']}/{row['samples']})"
    return f"no submission ({row['submitted']}/{row['samples']})"


def _costs(found: pd.DataFrame) -> dict[str, object]:
    there, amounts = differing(found), ("dollars", "tokens", "seconds")
    detections = int(there["success"].sum()) if there["success"].notna().any() else None
    sums = {name: _sum(found[name]) for name in amounts}
    return {
        "samples": len(found),
        "dollars": sums["dollars"],
        **{f"{name}_per_sample": total if total is None else total / len(found) for name, total in sums.items()},
        "detections": detections,
        **{f"{name}_per_detection": _share(_sum(there[name]), detections) for name in amounts},
        "unpriced": int(found["dollars"].isna().sum()),
    }


def _sum(values: pd.Series) -> float | None:
    """None if one of them is missing."""
    return None if values.isna().any() else float(values.sum())


def _share(total: float | None, count: int | None) -> float | None:
    return total / count if total is not None and count else None
