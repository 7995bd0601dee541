"""Whether the evidence of a submission says what the submission claims: by rule, from a stored sample alone.

    references  share of the references that lead to something that was shown to this agent
    support     share of the claims (each behaviour, and the domain) whose words were shown to it

A claim is supported when at least SUPPORTED_SHARE of its terms (content words and numbers, by their stems) occur in
what tools showed. Terms of the standing prompts are in no claim: `the finetuned model ...` says nothing. This counts
words: it tells invention from reading, not a right reading from a wrong one (`diffing.agents.claims` asks judges).
"""

import re
from collections.abc import Collection, Iterator, Sequence

from inspect_ai.model import ChatMessage

from diffing.agents.grading import Submission
from diffing.agents.stems import same, terms, words
from diffing.agents.transcript import Shown, shown

SUPPORTED_SHARE = 0.5


def support(messages: Sequence[ChatMessage], submission: Submission) -> dict[str, float | None]:
    """The columns `references` and `support`. None, never 0, where nothing was claimed or referred to, and where no
    tool showed anything."""
    found = shown(messages)
    if found.empty:
        return {"references": None, "support": None}
    known = frozenset().union(*(passage.words for passage in found.passages))
    standing = standing_terms(messages)
    asked = [wanted for claim in claims(submission).values() if (wanted := terms(claim) - standing)]
    return {
        "references": _share([refers_to(each, found) is not None for each in submission.evidence if each.strip()]),
        "support": _share([len(occurring(each, known)) >= SUPPORTED_SHARE * len(each) for each in asked]),
    }


def claims(submission: Submission) -> dict[int, str]:
    """What is claimed, by number: the domain is 0. A submission that flags no meaningful difference claims nothing."""
    said = [] if submission.no_meaningful_difference else [submission.domain, *submission.behaviours]
    return {number: claim for number, claim in enumerate(said) if claim.strip()}


def standing_terms(messages: Sequence[ChatMessage]) -> set[str]:
    """Terms of what every agent is told."""
    return terms("\n".join(message.text for message in messages if message.role in ("system", "user")))


def occurring(wanted: Collection[str], known: Collection[str]) -> set[str]:
    """Those of `wanted` that some stem in `known` is."""
    return {term for term in wanted if term in known or any(same(term, each) for each in known)}


def refers_to(reference: str, found: Shown) -> str | None:
    """What a reference leads to (`R1/steering`, `ask_model`), or None if it was never shown or does not exist.

    What is named first counts: a reference begins with what it refers to. After `R1/` or `R1.` nothing else may come
    before it. A report alone is a reference too, but not with a name that it does not have.
    """
    path = re.search(r"\b(R\d+)[/.](?=\w)(?:(?:table|tensor|scalar)s?\W+)?(.*)", reference, re.IGNORECASE | re.DOTALL)
    said, place = (path[2], path[1]) if path else (reference, reference)
    reports = {name for name in found.reports if name.casefold() in words(place)}
    if path and not reports:
        return None
    named = sorted(_named(said, found, reports or found.reports))
    if named and (named[0][0] == 0 or not path):
        return named[0][-1] or None
    bare = not path and set(words(said)) - {"report", "reports"} <= {"overview", *map(str.casefold, reports)}
    return min(reports or found.reports, default=None) if bare and words(said) else None


def _named(said: str, found: Shown, reports: Collection[str]) -> Iterator[tuple[int, int, bool, str]]:
    """Where a text names what there is, where that ends, whether it was never shown, and what it is, if it was."""
    items = {item: item.partition("/")[2] for item in found.items if item.partition("/")[0] in reports}
    for item, name in (items | dict.fromkeys(found.tools)).items():
        parts = r"[\W_]+".join(words(name or item))
        for match in re.finditer(rf"(?<!\w){parts}(?!\w)", said, re.IGNORECASE):
            unread = not found.items.get(item, True)
            yield match.start(), -match.end(), unread, "" if unread else item
    for match in re.finditer(r"(?<!\w)findings?(?:\W*(\d+))?(?!\w)", said, re.IGNORECASE):
        for report in reports:
            item = f"{report}/finding {max(int(match[1] or 1), 1)}"
            yield match.start(), -match.end(), item not in items, item if item in items else ""


def _share(each: Sequence[bool]) -> float | None:
    return sum(each) / len(each) if each else None
