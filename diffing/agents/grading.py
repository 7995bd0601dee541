"""Grades a submission by the keywords of the facts: no model, no judgement, the same grade every time.

A fact is found when at least FOUND_SHARE of its keywords occur in the domain or the behaviours that were submitted
(references to evidence are not read: they quote the tables). Words match by their stem, so `baking` finds `bakes`.
A submission that flags no meaningful difference claims nothing, whatever else it says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from diffing.agents.stems import same, stems
from diffing.agents.truth import GroundTruth

FOUND_SHARE = 0.5


@dataclass(frozen=True)
class Submission:
    """An agent's guess, as it was submitted."""

    domain: str
    behaviours: Sequence[str]
    evidence: Sequence[str]
    confidence: float
    """From 0 (a guess) to 1 (certain)."""
    no_meaningful_difference: bool


@dataclass(frozen=True)
class Grade:
    """What a submission is worth. None is what cannot be asked, never a failure."""

    fact_recall: float | None
    """Share of facts found; None for a null control."""
    domain_recall: float | None
    """Share of the domain's words that occur; None where the truth lists none."""
    correct_null: bool | None
    """For a null control: whether the submission says that nothing differs. None for every other pair."""
    false_null: bool | None
    """For a pair that differs: whether the submission says that nothing does. None for a null control."""
    found: Sequence[str]
    """Statements of the facts found."""


def grade(submission: Submission, truth: GroundTruth) -> Grade:
    claimed = "" if submission.no_meaningful_difference else "\n".join([submission.domain, *submission.behaviours])
    said = stems(claimed)
    found = [
        fact.statement
        for fact in truth.facts
        if sum(_occurs(keyword, said) for keyword in fact.keywords) >= FOUND_SHARE * len(fact.keywords)
    ]
    hits = [_occurs(word, said) for word in truth.domain_words]
    return Grade(
        fact_recall=None if truth.is_null else len(found) / len(truth.facts),
        domain_recall=sum(hits) / len(hits) if hits else None,
        correct_null=submission.no_meaningful_difference if truth.is_null else None,
        false_null=None if truth.is_null else submission.no_meaningful_difference,
        found=found,
    )


def mentions(text: str, keyword: str) -> bool:
    """Whether a text holds a keyword, or one of its alternatives, as a word or the stem of one."""
    return _occurs(keyword, stems(text))


def _occurs(keyword: str, said: Sequence[str]) -> bool:
    """Whether any alternative of a keyword occurs in the text with these stems."""
    for alternative in keyword.split("|"):
        wanted = stems(alternative)
        starts = range(len(said) - len(wanted) + 1) if wanted else ()
        if any(all(map(same, wanted, said[start : start + len(wanted)])) for start in starts):
            return True
    return False
