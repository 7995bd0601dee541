"""The reports of every method on one tiny pair, made by the command itself and published in a store."""

from pathlib import Path

import hydra
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict

import analyze
from diffing.entry.choices import CONF, options
from diffing.report import Report
from tests import tiny
from trackers import Kind, LocalTracker

ANSWERS = ["answers.max_new_tokens=3", "answers.prompts=[Bread?]"]
LENSES = ["patchscope_scales=[1.0]", f"patchscope_intersection={tiny.VOCAB}", "top=8"]
DICTIONARY = [
    *ANSWERS, *LENSES, "training.batch_size=32", "min_steps=20", "rows_per_latent=2", "k=2", "noise=false", "read=2",
    "drawn=1", "candidates=2", "bridge_documents=2", "bridge_tokens=8", "bridge_sizes=[1]", "steered=1",
    "steering_layers=[1]", "strengths=[1.0]", "examples=2", "per_band=0", "window=[2,2]",
]  # fmt: skip
SMALL = {
    "activation_difference_lens": [
        *ANSWERS, *LENSES, "layers=[1]", "steering_layers=[1]", "n_positions=8", "positions=[1,2]", "strengths=[1.0]",
        "relevance.max_texts=4", "similarity.max_texts=4",
    ],
    "kl": ["context=16", "min_count=1", "examples=2", "top=8"],
    "activation_analysis": [*LENSES, "layers=[1]", "context=16", "positions=[1]", "examples=2"],
    "pca": [*ANSWERS, *LENSES, "n_components=4", "read=2", "examples=2", "window=[2,2]", "steering_layers=[1]",
            "steered=1", "strengths=[1.0]"],
    "sae_difference": DICTIONARY,
    "crosscoder": [*DICTIONARY, "expansion=2"],
}  # fmt: skip
"""Settings under which each method takes seconds. One that is not listed has none yet, and fails."""


def pair_overrides(folder: Path) -> list[str]:
    """A tiny LoRA pair under the names of a real one, its text, and folders of its own."""
    base = tiny.save_model(folder / "base")
    adapter = tiny.save_adapter(folder / "adapter", tiny.model())
    (folder / "texts.txt").write_text("\n\n".join(tiny.TEXTS), "utf-8")
    return [
        "organism=demo_nautical", f"model.id={base}", "model.bundled=null", "device=cpu",
        f"organism.variants.default.smollm2_135m.id={adapter}", "tracker=local", f"tracker.root={folder / 'store'}",
        f"html_dir={folder / 'html'}",
    ]  # fmt: skip


def composed(command: str, overrides: list[str]) -> DictConfig:
    """The config of a command, as Hydra gives it to `main`."""
    hydra.core.global_hydra.GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose(command, overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(config)
    with open_dict(config):
        del config["hydra"]
    return config


def publish_all(folder: Path, pair: list[str]) -> list[str]:
    """Runs every method that there is, as `analyze.py` does; their names."""
    for method in options("diffing/method"):
        analyze.main(
            composed(
                "analyze",
                [
                    *pair, f"diffing/method={method}", *(f"diffing.method.{each}" for each in SMALL[method]),
                    "corpus=[file]", f"corpora.file.id={folder / 'texts.txt'}", "preprocessing.layers=[1]",
                    f"infrastructure.activations_dir={folder / 'activations'}",
                    f"infrastructure.checkpoints_dir={folder / 'checkpoints'}",
                ],
            )
        )  # fmt: skip
    return options("diffing/method")


def report_of(method: str, folder: Path) -> Report:
    """The published report of a method on that pair."""
    name = f"report-{method}-smollm2_135m-demo_nautical-default"
    with LocalTracker(folder / "store", "model-diffing", "test", {}) as tracker:
        return Report.load(tracker.fetch(name, Kind.REPORT)[1])
