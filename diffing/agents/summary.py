"""What an evaluation comes to, by access and budget. Every sample stays in the denominator of what counts samples."""

import math

import pandas as pd

from diffing.agents.rubrics import DETECTED

SCORES = (
    "fact_recall", "domain_recall", "correct_null", "false_null", "level", "references", "support", "judged_support",
)  # fmt: skip
BY = ["access", "interactions"]


def summary(grades: pd.DataFrame) -> pd.DataFrame:
    """One row per access and budget of interactions, in the order of the samples.

    `samples` counts all, `submitted` those that ended in a submission; a score is the mean over those that have it.
    `success` is the share of all samples that reached level 4, and missing where nothing was given a level. `dollars`,
    `all_input_tokens` and `output_tokens` are sums over all samples, missing where one of them is not known,
    `cache_hits` is the share of all input that was read from a cache, `seconds` is the mean over samples.
    """
    rows = []
    for (access, interactions), found in grades.groupby(BY, sort=False):
        row: dict[str, object] = {"access": access, "interactions": int(str(interactions)), "samples": len(found)}
        row["submitted"] = int((found["outcome"] == "submitted").sum())
        row["outcomes"] = ", ".join(f"{count} {outcome}" for outcome, count in found["outcome"].value_counts().items())
        scores = {score: pd.to_numeric(found[score]) for score in SCORES if score in found}
        row |= {score: float(values.mean()) for score, values in scores.items()}
        if "level" in scores and scores["level"].notna().any():
            row["success"] = float((scores["level"] >= DETECTED).mean())
        rows.append(row | (_cost(found) if "dollars" in found else {}))
    return pd.DataFrame(rows)


def _cost(found: pd.DataFrame) -> dict[str, float]:
    kinds = ("dollars", "input_tokens", "cache_write_tokens", "cache_read_tokens", "output_tokens")
    sums = {kind: float(pd.to_numeric(found[kind]).sum(skipna=False)) for kind in kinds}
    everything = sums["input_tokens"] + sums["cache_write_tokens"] + sums["cache_read_tokens"]
    return {
        "dollars": sums["dollars"],
        "all_input_tokens": everything,
        "cache_hits": sums["cache_read_tokens"] / everything if everything else math.nan,
        "output_tokens": sums["output_tokens"],
        "seconds": float(pd.to_numeric(found["seconds"]).mean()),
    }


def cost_in_words(row: pd.Series) -> str:
    """The cost of a row of the summary, as a person reads it."""
    spent = "no known price" if pd.isna(row["dollars"]) else f"${row['dollars']:.4f}"
    if pd.isna(row["all_input_tokens"]):
        return f"{spent}, usage unknown, {row['seconds']:.1f} s a sample"
    hits = "" if pd.isna(row["cache_hits"]) else f" ({row['cache_hits']:.0%} from the cache)"
    return (
        f"{spent}, {row['all_input_tokens']:,.0f} tokens in{hits}, {row['output_tokens']:,.0f} out, "
        f"{row['seconds']:.1f} s a sample"
    )
