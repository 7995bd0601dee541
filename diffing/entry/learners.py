"""Caches and learners that a method reads, made where they are missing and tracked with their lineage."""

import hashlib
import json
import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from diffing.entry import caches
from diffing.entry.caches import Mode, mode_of
from diffing.entry.setup import training_corpus
from diffing.errors import MissingInput
from diffing.methods.base import LearningMethod, Study
from diffing.specs import JSON, artifact_name
from diffing.text import corpus
from trackers import ArtifactNotFound, ArtifactRef, Kind, Tracker

log = logging.getLogger(__name__)
INDEX = "learners.json"


def with_caches(config: DictConfig, study: Study, tracker: Tracker) -> tuple[Study, list[ArtifactRef]]:
    """The study with a cache for each of its corpora and, if they are asked for, the organism's training data."""
    corpora = list(study.corpora)
    training = training_corpus(config)
    if training is not None:
        corpora.append(corpus.Corpus(corpus.pin(training)))
    prepared = caches.prepare(config, study.pair, corpora, study.progress)
    return replace(study, caches=prepared), caches.track(prepared, study.pair.spec, tracker)


def with_learners(
    config: DictConfig, method: LearningMethod, study: Study, tracker: Tracker, used: Sequence[ArtifactRef]
) -> tuple[Study, ArtifactRef]:
    """The study with the learners of `method`, fetched if they were fitted on these caches with these settings before.

    Raises MissingInput where they were not, and the mode forbids to fit.
    """
    name = artifact_name("learner", method.name, study.pair.spec)
    identity = _identity(method, study)
    alias = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    try:
        ref, folder = tracker.fetch(f"{name}:{alias}", Kind.LEARNER)
        log.info("learner %s was fitted on the same activations with the same settings", ref)
    except ArtifactNotFound as error:
        if mode_of(config) is Mode.DIFFING:
            raise MissingInput(
                f"no learner {name} for these activations and settings, and pipeline.mode=diffing fits none: run\n"
                f"  python train.py diffing/method={method.name} organism={study.pair.spec.organism}"
            ) from error
        published = _fit(method, study, tracker, used, name, alias, identity)
        ref, folder = tracker.fetch(str(published), Kind.LEARNER)
    names = json.loads((folder / INDEX).read_text("utf-8"))["learners"]
    return replace(study, learners={each: folder / each for each in names}), ref


def _identity(method: LearningMethod, study: Study) -> dict[str, JSON]:
    return {
        "method": method.name,
        "settings": dict(method.learner_settings()),
        "caches": [cache.digest for cache in study.caches],
        "seed": study.seed,
    }


def _fit(
    method: LearningMethod,
    study: Study,
    tracker: Tracker,
    used: Sequence[ArtifactRef],
    name: str,
    alias: str,
    identity: Mapping[str, JSON],
) -> ArtifactRef:
    fitted = method.fit(study, tracker.lightning_logger())
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for each, learner in fitted.items():
            learner.save(folder / each)
        (folder / INDEX).write_text(json.dumps({"learners": sorted(fitted), "identity": identity}, indent=1), "utf-8")
        metadata = {"pair": study.pair.spec.as_json(), "learners": sorted(fitted), **identity}
        return tracker.publish(folder, name, Kind.LEARNER, metadata, uses=used, aliases=[alias])
