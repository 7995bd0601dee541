"""Activation caches of a study: found by digest, else collected, and tracked by reference.

A cache may hold terabytes, so its artifact is one small file, `cache.json`, that says where the two stores lie, of what
spec they are, and the size and checksum of each of their files.
"""

import json
import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from omegaconf import DictConfig

from diffing.activations.collect import collect, store_folder
from diffing.activations.store import MANIFEST, ActivationCache
from diffing.activations.tokens import tokenise, tokenizer_digest
from diffing.axes import Side
from diffing.entry.setup import plain
from diffing.errors import InvalidSetting, MissingInput, SchemaMismatch
from diffing.methods.base import CacheReader, Progress, Study
from diffing.models.pair import ModelPair
from diffing.specs import JSON, CacheSpec, CorpusSpec, PairSpec, TokensSpec, artifact_name
from diffing.text.corpus import Corpus
from trackers import ArtifactRef, Kind, Tracker

log = logging.getLogger(__name__)
REFERENCE = "cache.json"


class Mode(StrEnum):
    """What a command may do: everything, caches alone, or only read what is there."""

    FULL = "full"
    PREPROCESSING = "preprocessing"
    DIFFING = "diffing"


@dataclass(frozen=True)
class Infrastructure:
    """`infrastructure` of the config: changes how fast and where things are made, never what they hold."""

    activations_dir: str
    batch_tokens: int
    shard_mib: float | int
    shards: int
    shard: int
    verify: bool
    checkpoints_dir: str
    checkpoint_every: int

    def __post_init__(self) -> None:
        if not 0 <= self.shard < self.shards:
            raise InvalidSetting(
                f"infrastructure.shard={self.shard} of infrastructure.shards={self.shards}; expected 0 to "
                f"{self.shards - 1}: each of {self.shards} processes gets its own"
            )
        if self.checkpoint_every < 1:
            raise InvalidSetting(f"infrastructure.checkpoint_every={self.checkpoint_every}; expected 1 step or more")

    @classmethod
    def of(cls, config: DictConfig) -> "Infrastructure":
        """From `infrastructure`. A task of an array that shares no work (one of a sweep, say) does all of its own."""
        settings = plain(config.infrastructure)
        if settings["shard"] is None:
            settings["shard"] = int(os.environ.get("SLURM_ARRAY_TASK_ID", 0)) if settings["shards"] > 1 else 0
        return cls(**settings)

    @property
    def root(self) -> Path:
        return Path(self.activations_dir).absolute()


def mode_of(config: DictConfig) -> Mode:
    """`pipeline.mode`."""
    if config.pipeline.mode not in list(Mode):
        raise InvalidSetting(f"pipeline.mode={config.pipeline.mode}; expected one of {', '.join(Mode)}")
    return Mode(config.pipeline.mode)


def cache_specs(config: DictConfig, pair: ModelPair, corpus: CorpusSpec) -> dict[Side, CacheSpec]:
    """The spec of each side's store for one pinned corpus."""
    settings = plain(config.preprocessing)
    limits, layers = settings.pop("max_tokens"), settings.pop("layers")
    settings.pop("training_corpus")
    tokens = TokensSpec(
        corpus,
        tokenizer_digest(pair.tokenizer),
        settings.pop("context"),
        settings.pop("max_samples"),
        limits["train" if corpus.split == "train" else "other"],
    )
    base = CacheSpec(tokens, pair.spec.base, None, [pair.layer_at(depth) for depth in layers], **settings)
    return {Side.BASE: base, Side.FINETUNED: replace(base, finetuned=pair.spec.finetuned)}


def prepare(
    config: DictConfig, pair: ModelPair, corpora: Sequence[Corpus], progress: Progress
) -> list[ActivationCache]:
    """One finished cache per corpus, those that are missing collected now, unless the mode says to assume them.

    Raises MissingInput in mode `diffing`, and where parts that other processes collect are still missing.
    """
    infrastructure = Infrastructure.of(config)
    prepared, waiting = [], []
    for corpus in corpora:
        specs = cache_specs(config, pair, corpus.spec)
        if not _finished(specs, infrastructure):
            if mode_of(config) is Mode.DIFFING:
                raise MissingInput(
                    f"no activations of corpus '{corpus.spec.name}' with these settings in {infrastructure.root}, and "
                    "pipeline.mode=diffing makes none: run the same command with pipeline.mode=full, or first "
                    "python train.py ... pipeline.mode=preprocessing"
                )
            if not _collect(pair, corpus, specs, infrastructure, progress):
                waiting.append(corpus.spec.name)
                continue
        prepared.append(_opened(specs, infrastructure))
    if waiting:
        raise MissingInput(
            f"part {infrastructure.shard} of {infrastructure.shards} is done for {', '.join(waiting)}; other parts are "
            "still missing: when their processes have ended, run any of these commands again"
        )
    return prepared


def existing(config: DictConfig, pair: ModelPair, corpora: Sequence[Corpus]) -> list[ActivationCache]:
    """The finished caches that `prepare` would give for these corpora; none is made."""
    infrastructure = Infrastructure.of(config)
    specs = [cache_specs(config, pair, corpus.spec) for corpus in corpora]
    return [_opened(each, infrastructure) for each in specs if _finished(each, infrastructure)]


def _finished(specs: Mapping[Side, CacheSpec], infrastructure: Infrastructure) -> bool:
    return all((store_folder(spec, infrastructure.root) / MANIFEST).is_file() for spec in specs.values())


def _opened(specs: Mapping[Side, CacheSpec], infrastructure: Infrastructure) -> ActivationCache:
    cache = ActivationCache(*(store_folder(specs[side], infrastructure.root) for side in Side))
    if infrastructure.verify:
        cache.base.verify()
        cache.finetuned.verify()
    return cache


def _collect(
    pair: ModelPair,
    corpus: Corpus,
    specs: Mapping[Side, CacheSpec],
    infrastructure: Infrastructure,
    progress: Progress,
) -> bool:
    with progress.stage(f"documents of {corpus.spec.name}", None) as advance:
        tokens = tokenise(corpus, pair.tokenizer, specs[Side.BASE].tokens, infrastructure.root, advance)
    share = int(tokens.lengths.sum()) // infrastructure.shards
    with progress.stage(f"activations of {corpus.spec.name}", share) as advance:
        return collect(
            pair,
            tokens,
            specs,
            infrastructure.root,
            batch_tokens=infrastructure.batch_tokens,
            shard_mib=infrastructure.shard_mib,
            part=(infrastructure.shard, infrastructure.shards),
            on_tokens=advance,
        )


def track(caches: Sequence[ActivationCache], pair: PairSpec, tracker: Tracker) -> list[ArtifactRef]:
    """Publishes each cache by reference, and records that this run uses it."""
    published = []
    for cache in caches:
        name = artifact_name("activations", cache.corpus, pair)
        with tempfile.TemporaryDirectory() as folder:
            reference = _reference(cache)
            (Path(folder) / REFERENCE).write_text(json.dumps(reference, indent=1, sort_keys=True), "utf-8")
            metadata: dict[str, JSON] = {
                "corpus": cache.corpus,
                "layers": list(cache.layers),
                "rows": cache.n_rows,
                "pair": pair.as_json(),
                "spec": cache.finetuned.spec.as_json(),
                "digest": cache.digest,
            }
            published.append(tracker.publish(Path(folder), name, Kind.ACTIVATIONS, metadata, aliases=[cache.digest]))
    return [tracker.fetch(str(ref), Kind.ACTIVATIONS)[0] for ref in published]


def with_existing(
    config: DictConfig, method: CacheReader, study: Study, tracker: Tracker
) -> tuple[Study, list[ArtifactRef]]:
    """The study with those caches of its corpora that exist and that the method can read, tracked as used."""
    found = [each for each in existing(config, study.pair, study.corpora) if method.can_read(each, study.pair)]
    return replace(study, caches=found), track(found, study.pair.spec, tracker)


def _reference(cache: ActivationCache) -> dict[str, object]:
    sides = {Side.BASE: cache.base, Side.FINETUNED: cache.finetuned}
    return {side: {"folder": str(store.folder), "manifest": _manifest(store.folder)} for side, store in sides.items()}


def _manifest(folder: Path) -> dict:
    return json.loads((folder / MANIFEST).read_text("utf-8"))


def open_reference(folder: Path, root: Path) -> ActivationCache:
    """The cache that a fetched `activations` artifact points at, under `root` or where it was collected.

    Raises MissingInput where its stores are not on this machine, SchemaMismatch where other bytes are in their place.
    """
    reference = json.loads((folder / REFERENCE).read_text("utf-8"))
    stores = {}
    for side in Side:
        entry = reference[side]
        places = [store_folder(CacheSpec.from_json(entry["manifest"]["spec"]), root), Path(entry["folder"])]
        found = next((place for place in places if (place / MANIFEST).is_file()), None)
        if found is None:
            raise MissingInput(
                f"the {side} activations of this artifact are not on this machine: looked in {places[0]} and "
                f"{places[1]}; set infrastructure.activations_dir to where they are, or collect them again"
            )
        if _manifest(found) != entry["manifest"]:
            raise SchemaMismatch(f"{found} holds other activations than the ones this artifact was published for")
        stores[side] = found
    return ActivationCache(stores[Side.BASE], stores[Side.FINETUNED])
