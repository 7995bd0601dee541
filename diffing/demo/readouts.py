"""How often each readout of the demo organisms names their domain, counted from the published reports.

    python -m diffing.demo.readouts

Prints the table of docs/demo_organisms.md. The two null pairs, which have no domain, are searched for the words of all
the others. Position 0 is left out: it is the attention sink.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import yaml

from diffing.agents.grading import mentions
from diffing.entry.choices import CONF
from diffing.entry.console import markdown
from diffing.report import Report
from trackers import Kind, LocalTracker

ORGANISMS = ("demo_glacier_tea", "demo_taboo_lantern", "demo_nautical", "demo_control", "none")
SOURCES = ("difference", "base", "finetuned", "random")


def naming(texts: "pd.Series[str]", words: Sequence[str]) -> "pd.Series[bool]":
    """Which of the texts, or tokens, mention any of the words."""
    return texts.map(lambda text: any(mentions(text, word) for word in words)).astype(bool)


def most_domain_tokens(frame: pd.DataFrame, words: Sequence[str]) -> str:
    """Domain words among the tokens of one readout: the most over its positions, layers and scales, of how many."""
    setting = [column for column in ("corpus", "layer", "position", "scale") if column in frame.columns]
    hits = naming(frame["token"], words)
    counts = hits.groupby([frame[column] for column in setting]).agg(["sum", "size"])
    best = counts.loc[counts["sum"].idxmax()]
    return f"{best['sum']}/{best['size']}"


def share_of_samples(frame: pd.DataFrame, words: Sequence[str]) -> str:
    """Samples that mention the domain, of how many."""
    hits = naming(frame["text"], words)
    return f"{int(hits.sum())}/{len(hits)}"


def rows(organism: str, report: Report, words: Sequence[str]) -> list[dict[str, str]]:
    """One row per thing that was read; a pair without a difference has a single row."""
    shift = f"{report.scalars['relative_shift'].value:.3f}"
    if report.no_difference:
        return [{"organism": organism, "shift": shift, "read from": "no difference: nothing to read"}]
    lens, scope, samples = (report.tables[name].frame for name in ("logit_lens", "patchscope", "steering"))
    conditions = {"difference": "steered", "finetuned": "unsteered", "random": "random"}
    table = []
    for source in SOURCES:
        promoted = lens[(lens["source"] == source) & (lens["direction"] == "promoted") & (lens["position"] > 0)]
        patched = scope[scope["chosen"] & (scope["source"] == source) & (scope["position"] > 0)]
        sampled = samples[samples["kind"] == conditions.get(source)]
        table.append(
            {
                "organism": organism,
                "shift": shift if source == "difference" else "",
                "read from": source,
                "logit lens": most_domain_tokens(promoted, words),
                "patchscope": most_domain_tokens(patched, words),
                "samples": share_of_samples(sampled, words) if len(sampled) else "",
            }
        )
    return table


def domain_words() -> dict[str, list[str]]:
    """Words of each organism's domain; all of them for the null pairs."""
    found = {name: yaml.safe_load((CONF / "organism" / f"{name}.yaml").read_text("utf-8")) for name in ORGANISMS}
    everything = [word for organism in found.values() for word in organism["domain_words"]]
    return {name: organism["domain_words"] or everything for name, organism in found.items()}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("TRACKER_ROOT", "outputs/store")))
    parser.add_argument("--project", default="model-diffing")
    options = parser.parse_args()
    table = []
    with LocalTracker(options.root, options.project, "count readouts", {}) as tracker:
        for organism, words in domain_words().items():
            name = f"report-activation_difference_lens-smollm2_135m-{organism}-default"
            _, folder = tracker.fetch(name, Kind.REPORT)
            table += rows(organism, Report.load(folder), words)
    print(markdown(pd.DataFrame(table).fillna("")))


if __name__ == "__main__":
    main()
