"""How often the rule of coherence, and a judge, agree with a reader who did not know how strongly answers were steered.

    python -m diffing.demo.coherence [--judge anthropic/...]

The answers are of two demo organisms, unsteered and steered by their mean difference; none of them had a part in the
choice of the rule's margins. Each organism's unsteered answers to the same prompts are what the rule stands beside.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

import pandas as pd

from diffing.demo.train import base_model
from diffing.entry.console import markdown
from diffing.lenses.coherence import CoherenceRule, Exchange, JudgedCoherence, OfflineCoherence
from diffing.lenses.judge import LLMJudge, Unanswered
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.specs import PairSpec, VariantSpec


@dataclass(frozen=True)
class Graded:
    """An answer and what the reader said of it."""

    organism: str
    strength: float
    exchange: Exchange
    coherent: bool | None
    """None if nobody was asked: it is there to stand beside."""


def graded_answers() -> list[Graded]:
    """All that are in the package."""
    text = files("diffing.demo").joinpath("texts", "graded_answers.jsonl").read_text("utf-8")
    return [
        Graded(row["organism"], float(row["strength"]), Exchange(row["prompt"], row["answer"]), row["coherent"])
        for row in map(json.loads, text.splitlines())
    ]


def agreement(verdicts: Sequence[tuple[bool, bool]]) -> Mapping[str, float]:
    """Share of (reader, rule) that are alike, and how much of what chance leaves that is (Cohen's kappa, 1960)."""
    n = len(verdicts)
    alike = sum(reader == rule for reader, rule in verdicts) / n
    reader, rule = (sum(column) / n for column in zip(*verdicts, strict=True))
    chance = reader * rule + (1 - reader) * (1 - rule)
    return {"agreement": alike, "kappa": (alike - chance) / (1 - chance)}


def rows(pair: ModelPair, judge: str | None) -> Iterator[dict[str, object]]:
    """One per rule."""
    graded = graded_answers()
    organisms = list(dict.fromkeys(each.organism for each in graded))
    unsteered = {name: [g.exchange for g in graded if g.organism == name and g.strength == 0] for name in organisms}
    rules: dict[str, Mapping[str, CoherenceRule]] = {
        "rule": {name: OfflineCoherence.beside(pair, unsteered[name]) for name in organisms}
    }
    if judge:
        rules[judge] = dict.fromkeys(organisms, JudgedCoherence(LLMJudge(judge)))
    asked = {name: [g for g in graded if g.organism == name and g.coherent is not None] for name in organisms}
    for decided_by, by_organism in rules.items():
        verdicts = [
            (bool(each.coherent), verdict)
            for name in organisms
            for each, verdict in zip(asked[name], by_organism[name]([g.exchange for g in asked[name]]), strict=True)
        ]
        answered = [(reader, verdict) for reader, verdict in verdicts if not isinstance(verdict, Unanswered)]
        yield {
            "decided by": decided_by,
            "answers": len(verdicts),
            "unanswered": len(verdicts) - len(answered),
            **{name: f"{value:.2f}" for name, value in agreement(answered).items()},
            "called coherent against the reader": sum(rule and not reader for reader, rule in answered),
            "called incoherent against the reader": sum(reader and not rule for reader, rule in answered),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", help="a model as Inspect AI names it")
    options = parser.parse_args()
    pair = ModelPair(pin(PairSpec(base_model(), VariantSpec(kind="identical"), "none")))
    print(markdown(pd.DataFrame(rows(pair, options.judge))))


if __name__ == "__main__":
    main()
