"""Small corpora, their tokens and the specs of their caches; and work in forked processes, which start at once."""

import os
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from diffing.activations.collect import collect, store_folder
from diffing.activations.tokens import Tokens, tokenise, tokenizer_digest
from diffing.axes import Side
from diffing.models.pair import ModelPair
from diffing.specs import CacheSpec, CorpusSpec, TokensSpec
from diffing.text.corpus import Corpus, pin
from tests import tiny

SMALL_SHARDS = 1e-6
"""As shard_mib: one chunk of rows per shard, the smallest there is."""


def corpus_of(texts: Sequence[str], folder: Path) -> Corpus:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.txt").write_text("\n\n".join(texts), "utf-8")
    return Corpus(pin(CorpusSpec("planted", "file", str(folder / "corpus.txt"), shuffle_seed=None)))


def texts(repeats: int) -> list[str]:
    """About 40 tokens each on average, from 5 to 60, no two the same."""
    return [f"{text} {number}" for number in range(repeats) for text in tiny.TEXTS]


@dataclass(frozen=True)
class Collection:
    """Everything `collect` needs, for one pair and one corpus."""

    pair: ModelPair
    tokens: Tokens
    specs: Mapping[Side, CacheSpec]

    def __call__(self, root: Path, **options: object) -> bool:
        defaults = {"batch_tokens": 512, "shard_mib": SMALL_SHARDS}
        return collect(self.pair, self.tokens, self.specs, root, **(defaults | options))

    def folder(self, side: Side, root: Path) -> Path:
        return store_folder(self.specs[side], root)

    def of(self, pair: ModelPair) -> "Collection":
        """The same corpus read by another pair."""
        return Collection(pair, self.tokens, _specs(replace(self.specs[Side.BASE], base=pair.spec.base), pair))


def collection(
    pair: ModelPair, texts: Sequence[str], folder: Path, layers: Sequence[int] = (1, 2), **settings: object
) -> Collection:
    corpus = corpus_of(texts, folder)
    spec = TokensSpec(corpus.spec, tokenizer_digest(pair.tokenizer), context=64)
    base = CacheSpec(spec, pair.spec.base, None, layers, **settings)
    return Collection(pair, tokenise(corpus, pair.tokenizer, spec, folder), _specs(base, pair))


def _specs(base: CacheSpec, pair: ModelPair) -> dict[Side, CacheSpec]:
    return {Side.BASE: base, Side.FINETUNED: replace(base, finetuned=pair.spec.finetuned)}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below the folder, hidden ones too."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def forked(work: Callable[[], object]) -> int:
    """A process of its own, with all that is loaded here, that does the work and ends; its id."""
    if process := os.fork():
        return process
    try:
        torch.set_num_threads(1)  # pools of threads do not survive a fork
        work()
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def ended(process: int) -> int:
    """Its exit code, negative if a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
