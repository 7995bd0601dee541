"""KL divergence: where in ordinary text does the finetune expect another next token, and by how much.

Both sides read the same texts, and their next-token distributions are compared at every token: the one measure of a
finetune that needs no layer, no direction and no training. The value at a token is the divergence of what is expected
*after* it, given all tokens up to it. On text of the finetune's own domain it is larger than on neutral text, and the
texts, tokens and vocabulary items that carry it say what the domain is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar

import torch

from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.lenses.divergence import Divergence, TextDivergences, next_token_changes, text_divergences
from diffing.lenses.examples import Examples, Texts, TopExamples
from diffing.live_tools import LiveTool
from diffing.methods.base import Study
from diffing.methods.kl import figures, findings, tables
from diffing.methods.kl.live import kl_tool
from diffing.methods.kl.measured import Measured
from diffing.models.pair import ModelPair
from diffing.report import NamedTensor, Report, Scalar, Table, slug
from diffing.text.corpus import Corpus
from diffing.text.windows import token_sequences

DOCUMENTS_AT_ONCE = 256
"""Documents whose windows are looked for together."""


@dataclass(frozen=True)
class KLDivergence:
    """Settings of the KL divergence."""

    name: ClassVar[str] = "kl"

    divergences: Sequence[str] = (Divergence.KL_FINETUNED_BASE,)
    """What is measured. The first is what tables by position, by token and of windows show."""
    context: int = 512
    """Tokens read of each text."""
    max_texts: int = 1_000
    """Texts read of each corpus."""
    batch_size: int = 8
    skip_first: int = 0
    """Leading tokens of each text that are not measured."""
    percentiles: Sequence[float | int] = (5, 25, 50, 75, 95, 99)
    min_count: int = 10
    """A token is listed if it was met so many times in a corpus."""
    top: int = 30
    """Tokens, and vocabulary items of either direction, that are listed per corpus."""
    examples: int = 10
    """Windows shown per corpus, by largest token and by mean over the text."""
    expected: int = 6
    """Vocabulary items shown of what either side expects after a peak."""
    window: Sequence[int] = (24, 12)
    """Tokens shown before and after the peak."""

    def __post_init__(self) -> None:
        if unknown := [kind for kind in self.divergences if kind not in list(Divergence)]:
            raise InvalidSetting(f"divergences {unknown}; expected some of {', '.join(Divergence)}")
        if not self.divergences or len(set(self.divergences)) < len(self.divergences):
            raise InvalidSetting(f"divergences={list(self.divergences)}; expected one or more, each once")
        if outside := [each for each in self.percentiles if not 0 <= each <= 100]:
            raise InvalidSetting(f"percentiles {outside}; expected numbers from 0 to 100")
        if not 0 <= self.skip_first < self.context:
            raise InvalidSetting(
                f"skip_first={self.skip_first}, context={self.context}; expected 0 <= skip_first < context"
            )
        if min(self.min_count, self.top, self.expected) < 1:
            raise InvalidSetting(
                f"min_count={self.min_count}, top={self.top}, expected={self.expected}; expected 1 or more of each"
            )

    @property
    def _kinds(self) -> list[Divergence]:
        return [Divergence(kind) for kind in self.divergences]

    def run(self, study: Study) -> Report:
        measured = [self._measure(study, corpus) for corpus in study.corpora]
        identical = not any(each.values.any() for each in measured)
        found: dict[str, Table] = {
            "statistics": tables.statistics_table(measured, self.percentiles),
            "by_position": tables.position_table(measured),
        }
        if not identical:
            tokenizer = study.pair.tokenizer
            examples = tables.example_table(measured, tokenizer)
            found |= {
                "vocabulary": tables.vocabulary_table(measured, tokenizer, self.top),
                "by_token": tables.token_table(measured, tokenizer, self.min_count, self.top),
                "examples": examples,
                "peaks": tables.peak_table(measured, examples, tokenizer),
            }
        return Report(
            method=self.name,
            pair=study.pair.spec,
            settings=asdict(self),
            corpora=[corpus.spec for corpus in study.corpora],
            no_difference=identical,
            scalars=_scalars(measured),
            tables=found,
            tensors={} if identical else _tensors(measured),
            figures={} if identical else figures.figures(measured, found["by_position"]),
            findings=[findings.no_difference(measured)] if identical else findings.findings(measured, found),
        )

    def live_tools(self, report: Report, pair: ModelPair) -> Sequence[LiveTool]:
        """The divergence on texts that an agent writes."""
        return [kl_tool(pair)]

    def _measure(self, study: Study, corpus: Corpus) -> Measured:
        """One pass over one corpus."""
        texts = list(token_sequences(corpus, study.pair.tokenizer, max_tokens=self.context, max_texts=self.max_texts))
        with study.progress.stage(f"next tokens of both sides on {corpus.spec.name}", len(texts)) as advance:
            try:
                found = text_divergences(
                    study.pair, texts, self._kinds, batch_size=self.batch_size, skip_first=self.skip_first,
                    on_texts=advance,
                )  # fmt: skip
            except EmptyCorpus as error:
                raise EmptyCorpus(f"corpus '{corpus.spec.name}': {error}") from error
        examples = self._examples(texts, found)
        peaks = examples.score == 0
        where = zip(examples.document[peaks].tolist(), examples.position[peaks].tolist(), strict=True)
        contexts = [texts[document][: position + 1] for document, position in where]
        changes = next_token_changes(study.pair, contexts, self.expected, self.batch_size)
        return Measured.of(corpus.spec.name, texts, found, examples, changes)

    def _examples(self, texts: Sequence[Sequence[int]], found: TextDivergences) -> Examples:
        """Windows around the peak of a text, ranked by it and by the mean over the text, in this order of scores."""
        before, after = self.window
        heap = TopExamples(len(tables.RANKINGS), self.examples, before, after)
        for start in range(0, len(texts), DOCUMENTS_AT_ONCE):
            part = slice(start, start + DOCUMENTS_AT_ONCE)
            values = [each[:, 0] for each in found.values[part]]
            ranks = [[float(each.max()), float(each.double().mean())] if len(each) else [0.0, 0.0] for each in values]
            scores = torch.cat(values)[:, None].expand(-1, len(tables.RANKINGS))
            heap.add(scores, Texts.of(texts[part], start, self.skip_first), ranked_by=torch.tensor(ranks))
        return heap.result()


def _scalars(measured: Sequence[Measured]) -> dict[str, Scalar]:
    """Means per corpus and kind, and how much the corpora differ."""
    found = {
        f"mean_{kind}_{slug(each.corpus)}": Scalar(
            float(each.values[:, column].mean()), f"mean {kind.formula} over the tokens of {each.corpus} (nats)"
        )
        for each in measured
        for column, kind in enumerate(each.kinds)
    }
    most, least = (extreme(measured, key=lambda each: each.mean) for extreme in (max, min))
    if least.mean > 0 and len(measured) > 1:
        found["corpus_ratio"] = Scalar(
            most.mean / least.mean,
            f"mean {most.kinds[0].formula} on {most.corpus}, where it is largest, over that on {least.corpus} (ratio)",
        )
    return found


def _tensors(measured: Sequence[Measured]) -> Mapping[str, NamedTensor]:
    return {
        f"contribution_{slug(each.corpus)}": NamedTensor(
            (each.sums.contribution / each.sums.n_tokens).float(),
            f"mean over the tokens of {each.corpus} of p_finetuned (log p_finetuned - log p_base) of each vocabulary "
            "item; the items add up to the mean KL(finetuned || base) (nats)",
            ("vocab",),
        )
        for each in measured
    }
