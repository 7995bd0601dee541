"""From a composed config to plain values: the config ends here."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from diffing.entry.choices import CONF, choose_variant, options
from diffing.entry.console import Bars
from diffing.errors import InvalidSetting, UnknownName
from diffing.methods.base import Finetune, Study
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.specs import CorpusSpec, PairSpec
from diffing.text.corpus import Corpus
from diffing.text.corpus import pin as pin_corpus
from trackers import LocalTracker, Tracker, WandbTracker, auto_tracker

log = logging.getLogger(__name__)


def plain(config: DictConfig) -> dict[str, Any]:
    """A config as dicts and lists, interpolations resolved."""
    return cast("dict[str, Any]", OmegaConf.to_container(config, resolve=True))


def pair_spec(config: DictConfig) -> PairSpec:
    """The pair that `model`, `organism` and `organism_variant` name, not yet pinned."""
    base = instantiate(config.model, _convert_="object")
    variant = choose_variant(config.organism.name, plain(config.organism.variants), config.organism_variant, base.name)
    return PairSpec(base=base, finetuned=variant, organism=config.organism.name, variant=config.organism_variant)


def corpus_specs(config: DictConfig) -> list[CorpusSpec]:
    """The corpora chosen by `corpus=`, in that order."""
    return [instantiate(corpus, _convert_="object") for corpus in config.corpora.values()]


def study(config: DictConfig) -> Study:
    """The pair and the corpora, pinned; nothing of them is loaded yet."""
    pair = ModelPair(pin(pair_spec(config)), config.device)
    corpora = [Corpus(pin_corpus(spec)) for spec in corpus_specs(config)]
    return Study(
        pair,
        corpora,
        config.seed,
        Bars(),
        finetune=finetune(config.organism),
        other_finetunes=[finetune(organism_config(name)) for name in config.baseline_organisms],
    )


def finetune(organism: DictConfig) -> Finetune:
    """What an organism's config says of its finetuning; nothing is read yet."""
    training = organism.get("training_corpus")
    spec = None if training is None else instantiate(training, _convert_="object")
    return Finetune(organism.name, organism.description, spec)


def organism_config(name: str) -> DictConfig:
    """The config of any organism, chosen or not. Raises UnknownName."""
    if name not in options("organism"):
        raise UnknownName("organism", name, options("organism"), "in baseline_organisms")
    return cast("DictConfig", OmegaConf.load(CONF / "organism" / f"{name}.yaml"))


def training_corpus(config: DictConfig) -> CorpusSpec | None:
    """The organism's training data, if its config names them and `preprocessing.training_corpus` asks for them."""
    return finetune(config.organism).corpus_spec if config.preprocessing.training_corpus else None


def with_training_corpus(config: DictConfig, study: Study) -> Study:
    """The study with the organism's training data among its corpora, if they are asked for."""
    if training_corpus(config) is None or study.finetune is None or study.finetune.corpus is None:
        return study
    return replace(study, corpora=[*study.corpora, study.finetune.corpus])


def tracker(config: DictConfig, job: str) -> Tracker:
    """The tracker that `tracker=` names, not yet started; says which it is and why."""
    root, project, entity = Path(config.tracker.root), config.tracker.project, config.tracker.entity
    recorded = plain(config)
    match config.tracker.kind:
        case "auto":
            chosen, line = auto_tracker(root, project, job, recorded, entity)
        case "local":
            chosen, line = LocalTracker(root, project, job, recorded), f"tracking locally in {root}"
        case "wandb":
            chosen, line = WandbTracker(root, project, job, recorded, entity), "tracking with W&B"
        case other:
            raise InvalidSetting(f"tracker.kind={other}; expected auto, local or wandb")
    log.info(line)
    return chosen
