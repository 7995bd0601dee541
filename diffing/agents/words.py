"""Content words, how they are counted (in weighted tokens; in texts beside control texts), and how lists are joined."""

import re
from collections import Counter
from collections.abc import Hashable, Iterable, Iterator, Sequence, Set
from math import fsum
from typing import TypeVar

Item = TypeVar("Item", bound=Hashable)

_STOPWORDS = frozenset(
    """about above after again against all almost also although always among and another any are aren around
    asked because been before being below between both but came can cannot come could couldn did didn does doesn doing
    don done down during each either else even ever every few first for from further gave get gets give given goes
    going got had hadn has hasn have haven having her here hers herself him himself his how however into isn its itself
    just know let like made make makes many may maybe might more most much must myself need never new next nor not
    nothing now off often once one only onto other others our ours ourselves out over own per perhaps please quite
    rather really said same say says see seem seems shall she should shouldn since some something still such take than
    that the their theirs them themselves then there these they thing things this those though through thus too toward
    two under until upon use used uses using very want was wasn way well went were weren what when where whether which
    while who whole whom whose why will with within without won would wouldn yes yet you your yours yourself""".split()  # noqa: SIM905
)
_FRAGMENTS = frozenset(
    """ably als ance ary ate ated ates ating ation ations cal ded der dis ence ent ents ers ery est
    ful gen ial ian ible ical ied ier ies ily ine ing ings ins ion ions ious ise ish ism ist ists ite ities
    ity ive ize ized izing lar led less ling lled ment ments ness non ons ors ory ous per ple pre pro ral
    ric ris sion sions ted tel ter ters tes tic tical tics ting tion tions tive tor tors tra ture und ure ved ver ves
    ving""".split()  # noqa: SIM905
)
"""Pieces that tokenizers leave of words."""


def content_word(piece: str) -> str | None:
    """The word that a token is: case folded, without the marks of spaces. None if it is none worth counting."""
    word = piece.strip(" \t\r\n▁Ġ").casefold()
    if len(word) < 3 or not word.isalpha() or word in _STOPWORDS or word in _FRAGMENTS:
        return None
    return word


def content_words(text: str) -> Iterator[str]:
    return (word for piece in re.findall(r"[^\W\d_]+", text) if (word := content_word(piece)))


def weighted_words(tokens: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Each word's share of the weight that all content words have; weights of 0 or less do not count."""
    weights: dict[str, float] = {}
    for piece, weight in tokens:
        word = content_word(piece)
        if word and weight > 0:
            weights[word] = weights.get(word, 0.0) + weight
    return _shares(weights)


def marked_words(texts: Sequence[str], controls: Sequence[str], ratio: float = 3.0) -> dict[str, float]:
    """`marked` of the content words of texts."""
    return marked([set(content_words(text)) for text in texts], [set(content_words(text)) for text in controls], ratio)


def marked(texts: Sequence[Set[Item]], controls: Sequence[Set[Item]], ratio: float = 3.0) -> dict[Item, float]:
    """What is in at least two of `texts`, and in `ratio` times as large a share of them as of `controls`.

    Weighted by the share of texts in excess of that of controls, scaled to sum to 1. Half a control text is added to
    each count, so that what is in none is no infinite ratio.
    """
    found = Counter(item for text in texts for item in text)
    control = Counter(item for text in controls for item in text)
    excess: dict[Item, float] = {}
    for item, count in found.items():
        share, usual = count / len(texts), (control[item] + 0.5) / (len(controls) + 1)
        if count >= 2 and share >= ratio * usual:
            excess[item] = share - usual
    return _shares(excess)


def joined(lists: Sequence[dict[str, float]]) -> list[str]:
    """Words by reciprocal rank fusion (Cormack et al. 2009): the sum of 1 / (60 + rank) over the lists that hold one.

    Ranks, because the weights of two lists are on no common scale, and one peaked list would drown the others.
    """
    score: dict[str, float] = {}
    for shares in lists:
        for rank, word in enumerate(sorted(shares, key=lambda word: (-shares[word], word)), start=1):
            score[word] = score.get(word, 0.0) + 1 / (60 + rank)
    return sorted(score, key=lambda word: (-score[word], word))


def _shares(weights: dict[Item, float]) -> dict[Item, float]:
    total = fsum(weights.values())  # exact, so that the order of sets changes nothing
    return {item: weight / total for item, weight in weights.items()}
