"""Caches and learners that a method reads, made where they are missing and tracked with their lineage.

A fit that was killed goes on when the same command is run again: until its learners are published, what it has so far
lies in a scratch folder, which one process at a time may use.
"""

import hashlib
import json
import logging
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from diffing.activations.exclusive import sole_writer
from diffing.entry import caches
from diffing.entry.caches import Infrastructure, Mode, mode_of
from diffing.entry.setup import training_corpus
from diffing.errors import MissingInput, StorageFailed
from diffing.learners.scratch import Scratch
from diffing.methods.base import LearningMethod, Study
from diffing.specs import JSON, artifact_name
from diffing.text import corpus
from trackers import ArtifactNotFound, ArtifactRef, Kind, Tracker

log = logging.getLogger(__name__)
INDEX = "learners.json"
LOOK_AGAIN_SECONDS = 5.0
"""While another process fits the same learners."""


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

    Waits for another process that is fitting them. Raises MissingInput where there are none, and the mode forbids to
    fit.
    """
    name = artifact_name("learner", method.name, study.pair.spec)
    identity = _identity(method, study)
    alias = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    found = _found(tracker, f"{name}:{alias}")
    if found is None:
        if mode_of(config) is Mode.DIFFING:
            raise MissingInput(
                f"no learner {name} for these activations and settings, and pipeline.mode=diffing fits none: run\n"
                f"  python train.py diffing/method={method.name} organism={study.pair.spec.organism}"
            )
        infrastructure = Infrastructure.of(config)
        scratch = Scratch(Path(infrastructure.checkpoints_dir).absolute() / alias, infrastructure.checkpoint_every)
        with _alone(scratch):
            found = _found(tracker, f"{name}:{alias}")
            if found is None:
                published = _fit(method, replace(study, scratch=scratch), tracker, used, name, alias, identity)
                found = tracker.fetch(str(published), Kind.LEARNER)
            scratch.remove()
    ref, folder = found
    names = json.loads((folder / INDEX).read_text("utf-8"))["learners"]
    return replace(study, learners={each: folder / each for each in names}), ref


def _found(tracker: Tracker, request: str) -> tuple[ArtifactRef, Path] | None:
    try:
        ref, folder = tracker.fetch(request, Kind.LEARNER)
    except ArtifactNotFound:
        return None
    log.info("learner %s was fitted on the same activations with the same settings", ref)
    return ref, folder


@contextmanager
def _alone(scratch: Scratch) -> Iterator[None]:
    """Enters when no other process uses the folder. Raises StorageFailed if it cannot be made."""
    folder, told = scratch.folder, False
    assert folder is not None
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageFailed(
            f"{folder} cannot be made ({error.strerror}); set infrastructure.checkpoints_dir to a folder with room"
        ) from error
    while True:
        with sole_writer(folder) as mine:
            if mine:
                yield
                return
        if not told:
            log.info("waiting for another process that fits the same learners (its checkpoints: %s)", folder)
            told = True
        time.sleep(LOOK_AGAIN_SECONDS)


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
