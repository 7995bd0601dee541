"""How often what is shown of latents names the domain of a demo organism, counted from the published reports.

    python -m diffing.demo.latents sae_difference demo_glacier_tea demo_control

Prints a table of docs/dictionaries.md: per latent, domain words among the tokens of its readouts (the most over the
scales of the patchscope), and windows, of those where it is largest, that have a domain word at their peak. Null pairs
are searched for the words of all the others. `drawn` latents were drawn at random, and controls are no latents.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from diffing.agents.grading import mentions
from diffing.demo.readouts import ORGANISMS, domain_words, most_domain_tokens
from diffing.entry.console import markdown
from diffing.report import Report
from trackers import Kind, LocalTracker


def rows(organism: str, report: Report, words: Sequence[str]) -> list[dict[str, str]]:
    """One row per latent that is shown, then one per control, layer by layer."""
    lens, scope, windows, effects = (
        report.tables[name].frame for name in ("logit_lens", "patchscope", "examples", "contributions")
    )
    lens, windows = lens[lens["direction"] == "promoted"], windows[windows["band"] == "top"]
    share = {(row.layer, f"latent {row.latent}"): f"{row.share:.1%}" for row in effects.itertuples()}
    table = []
    for (layer, vector, why), read in lens.groupby(["layer", "vector", "why"], sort=False):
        at = scope[(scope["layer"] == layer) & (scope["vector"] == vector)]
        here = windows[(windows["layer"] == layer) & (windows["vector"] == vector)]
        table.append(
            {
                "organism": organism,
                "layer": str(layer),
                "read": str(vector),
                "why": str(why),
                "KL removed": share.get((layer, vector), ""),
                "logit lens": most_domain_tokens(read, words),
                "patchscope": most_domain_tokens(at, words) if len(at) else "",
                "peaks": _peaks(here, words) if len(here) else "",
            }
        )
    return table


def _peaks(windows: pd.DataFrame, words: Sequence[str]) -> str:
    """Windows whose peak, with the tokens of the same word around it, is a domain word, of how many."""
    peaks = [
        _word(row.tokens, max(range(len(row.tokens)), key=lambda place: _or_least(row.values[place])))
        for row in windows[["tokens", "values"]].itertuples(index=False, name="_Window")
    ]
    return f"{sum(any(mentions(peak, word) for word in words) for peak in peaks)}/{len(peaks)}"


def _word(tokens: Sequence[str], place: int) -> str:
    """The whole word that a token is part of."""
    first, last = place, place + 1
    while first > 0 and tokens[first][:1].isalpha():
        first -= 1
    while last < len(tokens) and tokens[last][:1].isalpha():
        last += 1
    return "".join(tokens[first:last])


def _or_least(value: float) -> float:
    return value if value == value else float("-inf")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=["sae_difference", "crosscoder"])
    parser.add_argument("organisms", nargs="+", choices=ORGANISMS)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("TRACKER_ROOT", "outputs/store")))
    parser.add_argument("--project", default="model-diffing")
    options = parser.parse_args()
    table, words = [], domain_words()
    with LocalTracker(options.root, options.project, "count readouts of latents", {}) as tracker:
        for organism in options.organisms:
            name = f"report-{options.method}-smollm2_135m-{organism}-default"
            _, folder = tracker.fetch(name, Kind.REPORT)
            table += rows(organism, Report.load(folder), words[organism])
    print(markdown(pd.DataFrame(table)))


if __name__ == "__main__":
    main()
