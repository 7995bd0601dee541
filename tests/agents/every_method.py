"""The reports of every method on one tiny pair, made by the command itself and published in a store."""

from pathlib import Path

import analyze
from diffing.entry.choices import options
from diffing.report import Report
from tests import tiny
from tests.entry.preparing import composed, scratch_overrides
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


def publish_all(folder: Path, pair: list[str]) -> None:
    """Runs every method that there is, as `analyze.py` does."""
    given = [*pair, *scratch_overrides(folder), "preprocessing.layers=[1]", f"html_dir={folder / 'html'}"]
    for method in options("diffing/method"):
        small = (f"diffing.method.{each}" for each in SMALL[method])
        analyze.main(composed(given, f"diffing/method={method}", *small, command="analyze"))


def report_of(method: str, folder: Path, organism: str = "demo_nautical") -> Report:
    """The published report of a method on that pair."""
    name = f"report-{method}-smollm2_135m-{organism}-default"
    with LocalTracker(folder / "store", "model-diffing", "test", {}) as tracker:
        return Report.load(tracker.fetch(name, Kind.REPORT)[1])
