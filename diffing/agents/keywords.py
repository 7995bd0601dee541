"""A judge without a mind: verdicts by the keywords of the facts, for those who have no key, and the same every time.

It knows the words of the truth and no others: who says the same in other words gets less than from a judge that reads.
"""

from dataclasses import dataclass

from diffing.agents.grading import Submission, mentions
from diffing.agents.rubrics import DOMAIN, Verdict
from diffing.agents.truth import Fact, GroundTruth

NAME = "keywords"


@dataclass(frozen=True)
class KeywordJudge:
    """A fact is stated by a claim that holds half of its keywords or more, and two if it has two; and partly stated by
    one that holds all words of its gist. The domain is stated by two of its words in what was submitted as the domain,
    and partly by one, or by two in a single claim."""

    name: str = NAME

    def reply(self, guess: Submission, truth: GroundTruth) -> str:
        """In the form in which other judges are asked to reply."""
        found = {DOMAIN: _domain(guess, truth)}
        found |= {number: _fact(guess, fact) for number, fact in enumerate(truth.facts, start=1)}
        lines = (
            (number, verdict, " ".join(quote.replace("|", " ").split())) for number, (verdict, quote) in found.items()
        )
        return "\n".join(f"{number} | {verdict} | {quote}" for number, verdict, quote in lines)


def _domain(guess: Submission, truth: GroundTruth) -> tuple[Verdict, str]:
    def hits(text: str) -> int:
        return sum(mentions(text, word) for word in truth.domain_words)

    if named := hits(guess.domain):
        return Verdict.STATED if named > 1 else Verdict.PARTLY, guess.domain
    best = max(guess.behaviours, key=hits, default="")
    return (Verdict.PARTLY, best) if hits(best) > 1 else (Verdict.ABSENT, "")


def _fact(guess: Submission, fact: Fact) -> tuple[Verdict, str]:
    claims, keywords = [guess.domain, *guess.behaviours], len(fact.keywords)
    for claim in claims:
        if sum(mentions(claim, keyword) for keyword in fact.keywords) >= min(keywords, max(2, keywords / 2)):
            return Verdict.STATED, claim
    for claim in claims:
        if fact.gist and all(mentions(claim, word) for word in fact.gist):
            return Verdict.PARTLY, claim
    return Verdict.ABSENT, ""
