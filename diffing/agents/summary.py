"""What an evaluation comes to, by access and budget. Every sample stays in the denominator of what counts samples."""

import pandas as pd

SCORES = ("fact_recall", "domain_recall", "correct_null", "false_null", "level")
BY = ["access", "interactions"]


def summary(grades: pd.DataFrame) -> pd.DataFrame:
    """One row per access and budget of interactions, in the order of the samples.

    `samples` counts all, `submitted` those that ended in a submission; a score is the mean over those that have it.
    `success` is the share of all samples that reached level 4, and missing where nothing was given a level.
    """
    rows = []
    for (access, interactions), found in grades.groupby(BY, sort=False):
        row: dict[str, object] = {"access": access, "interactions": int(str(interactions)), "samples": len(found)}
        row["submitted"] = int((found["outcome"] == "submitted").sum())
        row["outcomes"] = ", ".join(f"{count} {outcome}" for outcome, count in found["outcome"].value_counts().items())
        scores = {score: pd.to_numeric(found[score]) for score in SCORES if score in found}
        row |= {score: float(values.mean()) for score, values in scores.items()}
        if "level" in scores and scores["level"].notna().any():
            row["success"] = float((scores["level"] >= 4).mean())
        rows.append(row)
    return pd.DataFrame(rows)
