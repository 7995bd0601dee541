"""How much of what the lenses read speaks of the finetuning texts, beside what controls and other organisms would."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from diffing.lenses.judge import Judge
from diffing.lenses.relevance import (
    Agreement,
    JudgedRelevance,
    RelevanceRule,
    TokenCounts,
    Tokens,
    WordRule,
    count_tokens,
    domain_words,
    frequent_words,
    relevance,
)
from diffing.methods.activation_difference_lens.lenses import Scoped
from diffing.methods.base import Finetune, Study
from diffing.text.corpus import Corpus

MARKING = 100
"""Words of the training texts that a judge is told."""
OWN, FREQUENT, OTHER = "own domain", "frequent tokens", "other organism"
"""What tokens are measured against: the first is the claim, the others are its baselines."""


@dataclass(frozen=True)
class RelevanceSettings:
    """What is counted, and how often a judge is asked."""

    max_texts: int = 2_000
    """Texts counted of the training data and of each corpus that is read; 0 leaves relevance out."""
    presentations: int = 3
    """Orders in which a judge sees each readout."""
    agreement: Agreement = "all"
    """How many presentations must say that a token is relevant: all, or the majority."""


@dataclass(frozen=True)
class Readout:
    """One list of tokens, with the columns that say what it is of."""

    label: Mapping[str, object]
    tokens: Tokens


def readouts(lens: Sequence[Mapping[str, object]], scoped: Sequence[Scoped]) -> list[Readout]:
    """Of the rows of the logit lens, what is promoted; of each patchscope, the chosen scale."""
    lists: dict[tuple, list[Mapping[str, object]]] = {}
    columns = ("corpus", "layer", "source", "position")
    for row in lens:
        if row["direction"] == "promoted":
            lists.setdefault(tuple(row[column] for column in columns), []).append(row)
    found = [
        Readout(
            dict(zip(columns, key, strict=True)) | {"lens": "logit lens"},
            Tokens([str(row["token"]) for row in rows], [float(str(row["probability"])) for row in rows]),
        )
        for key, rows in lists.items()
    ]
    for each in scoped:
        if each.chosen is not None:
            tokens = Tokens(each.chosen.tokens, each.chosen.probabilities, each.selected)
            found.append(Readout({**each.label, "lens": "patchscope"}, tokens))
    return found


def relevance_rows(
    study: Study, finetune: Finetune, read: Sequence[Readout], settings: RelevanceSettings, judge: Judge | None
) -> list[dict[str, object]]:
    """One row per readout and rule. Empty where no training texts are known, or no others to compare them with."""
    neutral = neutral_corpora(study, finetune)
    if finetune.corpus is None or not neutral:
        return []
    others = [other for other in study.other_finetunes if other.corpus is not None]
    corpora = [*neutral, finetune.corpus, *(other.corpus for other in others if other.corpus is not None)]
    counts = _counted(study, corpora, settings.max_texts)
    plain, own, *rest = _merged(counts[: len(neutral)]), *counts[len(neutral) :]
    rules = [(OWN, "", _rule(finetune, own, plain, settings, judge, study.seed))]
    rules.append((FREQUENT, "", WordRule("frequent in the training texts", frozenset(frequent_words(own)))))
    for other, count in zip(others, rest, strict=True):
        rules.append((OTHER, other.organism, _rule(other, count, plain, settings, judge, study.seed)))
    return [row for against, name, rule in rules for row in _rows(read, against, name, rule)]


def neutral_corpora(study: Study, finetune: Finetune) -> list[Corpus]:
    """The corpora of a study that are not the training data."""
    training = None if finetune.corpus is None else finetune.corpus.spec.digest
    return [corpus for corpus in study.corpora if corpus.spec.digest != training]


def _counted(study: Study, corpora: Sequence[Corpus], max_texts: int) -> list[TokenCounts]:
    with study.progress.stage("words of the training data and of other texts", None) as advance:
        return [count_tokens(islice(corpus, max_texts), study.pair.tokenizer, advance) for corpus in corpora]


def _merged(counts: Sequence[TokenCounts]) -> TokenCounts:
    merged: Counter[str] = Counter()
    for count in counts:
        merged.update(count.counts)
    return TokenCounts(merged, merged.total())


def _rule(
    finetune: Finetune,
    own: TokenCounts,
    plain: TokenCounts,
    settings: RelevanceSettings,
    judge: Judge | None,
    seed: int,
) -> RelevanceRule:
    words = domain_words(own, plain)
    if judge is None:
        return WordRule("over-represented in the training texts", frozenset(words))
    marking = list(words)[:MARKING]
    return JudgedRelevance(judge, finetune.description, marking, settings.presentations, settings.agreement, seed)


def _rows(read: Sequence[Readout], against: str, organism: str, rule: RelevanceRule) -> Iterator[dict[str, object]]:
    for readout, found in zip(read, relevance([each.tokens for each in read], rule), strict=True):
        tokens = readout.tokens.strings
        yield {
            **readout.label, "against": against, "organism": organism, "fraction": found.fraction,
            "weighted": found.weighted, "selected": found.selected, "n_tokens": len(tokens),
            "unanswered": found.unanswered,
            "relevant": [token for token, label in zip(tokens, found.labels, strict=True) if label], "by": found.rule,
        }  # fmt: skip
