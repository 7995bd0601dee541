"""What the three methods that need no training report of the demo organisms, side by side, from the published reports.

    python -m diffing.demo.overview

Prints the table of docs/demo_organisms.md. *Domain words* are counted among the tokens that a method shows for what the
finetune changed, and among those that its controls show; an organism without a domain is searched for the words of all
others. Position 0, the attention sink, is left out.
"""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd

from diffing.demo.readouts import ORGANISMS, domain_words, most_domain_tokens, naming, share_of_samples
from diffing.entry.console import markdown
from diffing.report import Report
from trackers import Kind, LocalTracker

Row = dict[str, str]


def activation_difference_lens(report: Report, words: Sequence[str]) -> Row:
    shift = f"shift {report.scalars['relative_shift'].value:.3f}"
    if report.no_difference:
        return {"how large": shift}
    lens, scope = (report.tables[name].frame for name in ("logit_lens", "patchscope"))
    shown = {
        "logit lens": lens[(lens["direction"] == "promoted") & (lens["position"] > 0)],
        "patchscope": scope[scope["chosen"] & (scope["position"] > 0)],
    }
    samples = report.tables["steering"].frame
    said = ", ".join(
        f"{kind} {share_of_samples(samples[samples['kind'] == kind], words)}"
        for kind in ("steered", "unsteered", "random")
        if (samples["kind"] == kind).any()
    )
    strength = report.scalars["coherent_strength"].value if "coherent_strength" in report.scalars else 0.0
    return {
        "how large": f"{shift}; coherent to strength {strength:.2f}",
        "domain words": _best(shown, "source", ["difference"], words),
        "of controls": _best(shown, "source", ["base", "random"], words),
        "on the domain": f"answers: {said}" if said else "",
    }


def kl(report: Report, words: Sequence[str]) -> Row:
    means = {name.removeprefix("mean_kl_finetuned_base_"): scalar.value for name, scalar in report.scalars.items()
             if name.startswith("mean_kl_finetuned_base_")}  # fmt: skip
    neutral = next(value for name, value in means.items() if name != "training")
    row = {"how large": f"{neutral:.3g} nats"}
    if report.no_difference:
        return row
    if "training" in means:
        row["on the domain"] = f"{means['training']:.3g} nats, {means['training'] / neutral:.1f} times"
    frame = report.tables["vocabulary"].frame
    raised = frame[(frame["direction"] == "made likelier") & (frame["corpus"] != "training")]
    return row | {"domain words": most_domain_tokens(raised, words)}


def activation_analysis(report: Report, words: Sequence[str]) -> Row:
    if report.no_difference:
        return {"how large": "shift 0.000"}
    lens, scope = (report.tables[name].frame for name in ("logit_lens", "patchscope"))
    shown = {"logit lens": lens[lens["direction"] == "promoted"], "patchscope": scope[scope["scale"] == 1.0]}
    controls = ["base mean", "random direction"]
    groups = [name for name in lens["vector"].unique() if name not in (*controls, "position 0")]
    shift, alike = (report.scalars[name].value for name in ("relative_shift", "consistency"))
    return {
        "how large": f"shift {shift:.3f}; consistency {alike:.2f}",
        "domain words": _best(shown, "vector", groups, words),
        "of controls": _best(shown, "vector", controls, words),
    }


METHODS: Mapping[str, Callable[[Report, Sequence[str]], Row]] = {
    "activation_difference_lens": activation_difference_lens,
    "kl": kl,
    "activation_analysis": activation_analysis,
}


def _best(shown: Mapping[str, pd.DataFrame], column: str, kinds: Sequence[str], words: Sequence[str]) -> str:
    """The most domain words in one readout of any of these kinds, per lens."""
    found = {}
    for lens, frame in shown.items():
        mine = frame[frame[column].isin(kinds)]
        readouts = ["corpus", "layer", column, *(["position"] if "position" in mine.columns else [])]
        counts = naming(mine["token"], words).groupby([mine[name] for name in readouts]).sum()
        found[lens] = int(counts.max()) if len(counts) else 0
    return ", ".join(f"{lens} {count}" for lens, count in found.items())


def table(reports: Mapping[tuple[str, str], Report], words: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """One row per organism and method; what is not there is empty."""
    for (organism, method), report in reports.items():
        found = METHODS[method](report, words[organism])
        columns = ("how large", "domain words", "of controls", "on the domain")
        yield {"organism": organism, "method": method} | {name: found.get(name, "") for name in columns}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path(os.environ.get("TRACKER_ROOT", "outputs/store")))
    parser.add_argument("--project", default="model-diffing")
    options = parser.parse_args()
    reports = {}
    with LocalTracker(options.root, options.project, "overview of demo organisms", {}) as tracker:
        for organism in ORGANISMS:
            for method in METHODS:
                _, folder = tracker.fetch(f"report-{method}-smollm2_135m-{organism}-default", Kind.REPORT)
                reports[organism, method] = Report.load(folder)
    print(markdown(pd.DataFrame(table(reports, domain_words()))))


if __name__ == "__main__":
    main()
