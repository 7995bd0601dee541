"""A tiny pair under the name of a real one, and what a run has before its method starts."""

from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig

from diffing.entry import learners, setup
from diffing.entry.choices import CONF
from diffing.methods.base import Study
from tests import tiny
from trackers import ArtifactRef


def overrides_of(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> list[str]:
    """A tiny LoRA pair, its corpus, and scratch folders, for a PCA."""
    return [
        *pair_overrides(base_folder, adapter_folder, tmp_path), *scratch_overrides(tmp_path),
        "diffing/method=pca", "preprocessing.layers=[1,2]", "diffing.method.n_components=4",
    ]  # fmt: skip


def pair_overrides(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> list[str]:
    """The pair, and a store; all that agents need."""
    return [
        "organism=demo_nautical", "tracker=local", f"tracker.root={tmp_path / 'store'}", f"model.id={base_folder}",
        "model.bundled=null", "device=cpu", f"organism.variants.default.smollm2_135m.id={adapter_folder}",
    ]  # fmt: skip


def scratch_overrides(tmp_path: Path) -> list[str]:
    """A corpus, which is written, and folders for what is made of it."""
    text = tmp_path / "texts.txt"
    text.write_text("\n\n".join(tiny.TEXTS), "utf-8")
    return [
        "corpus=[file]", f"corpora.file.id={text}", f"infrastructure.activations_dir={tmp_path / 'activations'}",
        f"infrastructure.checkpoints_dir={tmp_path / 'checkpoints'}",
    ]  # fmt: skip


def composed(overrides: list[str], *more: str, command: str = "train") -> DictConfig:
    with initialize_config_dir(str(CONF), version_base=None):
        return compose(command, [*overrides, *more])


def prepared(config: DictConfig) -> tuple[Study, list[ArtifactRef], ArtifactRef]:
    """The study with its caches and learners, and the versions that were used."""
    method = instantiate(config.diffing.method, _convert_="object")
    with setup.tracker(config, job="test") as tracker:
        study, used = learners.with_caches(config, setup.study(config), tracker)
        study, learner = learners.with_learners(config, method, study, tracker, used)
    return study, used, learner
