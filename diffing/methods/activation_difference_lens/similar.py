"""Whether steered answers resemble the finetuning texts more than unsteered and randomly steered ones do."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from diffing.lenses.similarity import BaseModelEmbedder, Embedder, SentenceEmbedder, similarities
from diffing.methods.base import Finetune, Study
from diffing.text.corpus import Corpus, Document


@dataclass(frozen=True)
class SimilaritySettings:
    """What answers are compared with."""

    max_texts: int = 100
    """Training texts, and other texts, that are compared; 0 leaves similarity out."""
    embedder: str | None = None
    """A sentence-transformers model (hub id, folder or package://module/path); None takes the pair's base model."""
    max_tokens: int = 128
    """Tokens of each text that the base model reads."""


def similarity_rows(
    study: Study, finetune: Finetune, neutral: Sequence[Corpus], answers: Mapping[str, Sequence[str]],
    settings: SimilaritySettings,
) -> list[dict[str, object]]:  # fmt: skip
    """Of each named set of answers to the training texts and to neutral ones; of those to each other. Empty where no
    training texts are known, or no others."""
    if finetune.corpus is None or not neutral:
        return []
    training = list(_texts(finetune.corpus, settings.max_texts))
    per_corpus = -(-settings.max_texts // len(neutral))
    unrelated = [text for corpus in neutral for text in _texts(corpus, per_corpus)]
    spoken = {name: [text for text in texts if text.strip()] for name, texts in answers.items()}
    with study.progress.stage("similarity of answers to the training data", 1) as advance:
        found = similarities(
            _embedder(study, settings), {name: texts for name, texts in spoken.items() if texts}, training, unrelated,
            seed=study.seed,
        )  # fmt: skip
        advance(1)
    return [
        {
            "texts": each.first, "compared_with": each.second, "similarity": each.mean, "low": each.low,
            "high": each.high, "n_texts": each.n_first, "n_compared": each.n_second,
        }
        for each in found
    ]  # fmt: skip


def _embedder(study: Study, settings: SimilaritySettings) -> Embedder:
    if settings.embedder is None:
        return BaseModelEmbedder(study.pair, study.pair.layer_at(0.5), settings.max_tokens)
    return SentenceEmbedder(settings.embedder, study.pair.device)


def _texts(corpus: Corpus, most: int) -> Iterator[str]:
    """Of conversations, what the assistant says; where it says nothing, what is said to it."""
    return filter(str.strip, map(_text, islice(corpus, most)))


def _text(document: Document) -> str:
    if isinstance(document, str):
        return document
    spoken = [message["content"] for message in document if message["role"] == "assistant"]
    return "\n".join(spoken or [message["content"] for message in document])
