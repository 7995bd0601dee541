"""How much of what a patchscope can show of the demo organisms is shown at the scale that is chosen.

    python -m diffing.demo.scales [--judge anthropic/...]

Per organism and layer, over positions 1 to 4 of the mean difference: how many of the top 20 tokens name the domain at
the chosen scales, beside scale 1 throughout, and at the scales that name it most often, which nobody can know. An
organism without a domain is searched for the words of all others. With --judge a judge's choices stand beside those of
the rule, on the same readouts.
"""

import argparse
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pandas as pd
import torch

from diffing.activations.position_means import position_means
from diffing.agents.grading import mentions
from diffing.axes import Side
from diffing.demo.readouts import domain_words
from diffing.demo.train import base_model
from diffing.entry.console import markdown
from diffing.lenses.geometry import TokenGeometry
from diffing.lenses.judge import LLMJudge, Unanswered
from diffing.lenses.patchscope import IDENTITY_WORDS
from diffing.lenses.scale import CoherentScale, JudgedScale, ScaleReadout, ScaleRule, read_scales
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.specs import CorpusSpec, PairSpec, VariantSpec
from diffing.text.corpus import Corpus
from diffing.text.windows import batches, token_sequences

ORGANISMS = ("demo_glacier_tea", "demo_taboo_lantern", "demo_nautical", "demo_control")
POSITIONS = (1, 2, 3, 4)
N_POSITIONS = 32


@dataclass(frozen=True)
class Read:
    """One organism and layer: readouts per position, by whom a scale is chosen."""

    organism: str
    layer: int
    readouts: Sequence[Sequence[ScaleReadout]]
    rules: Sequence[ScaleRule]


def read(organism: str, corpus: CorpusSpec, depths: Sequence[float | int], judge: str | None) -> Iterator[Read]:
    """The mean difference at each depth, read by the finetuned model at all scales."""
    variant = VariantSpec(kind="lora", id=f"package://diffing.demo/adapters/{organism}")
    pair = ModelPair(pin(PairSpec(base_model(), variant, organism)))
    layers = sorted({pair.layer_at(depth) for depth in depths})
    texts = token_sequences(Corpus(corpus), pair.tokenizer, max_tokens=N_POSITIONS)
    padded = batches(texts, 32, pad_id=pair.tokenizer.pad_token_id, side="right")
    means = position_means(pair, padded, layers, N_POSITIONS)
    with pair.using(Side.FINETUNED) as model:
        words = [word for words in IDENTITY_WORDS for word in words]
        rules: list[ScaleRule] = [CoherentScale(TokenGeometry.of(model, pair.tokenizer, without=words))]
        if judge:
            rules.append(JudgedScale(LLMJudge(judge)))
        for layer in layers:
            unit = torch.nn.functional.normalize(means[layer].difference[list(POSITIONS)].float(), dim=1)
            vectors = (unit * means[layer].residual_norm).to(model.device)
            yield Read(organism, layer, read_scales(model, pair.tokenizer, vectors, layer), rules)


def rows(found: Read, words: Sequence[str]) -> Iterator[dict[str, object]]:
    """One row per rule."""

    def named(readout: ScaleReadout, places: Sequence[int] | None = None) -> int:
        tokens = readout.tokens if places is None else [readout.tokens[place] for place in places]
        return sum(any(mentions(token, word) for word in words) for token in tokens)

    counts = [[named(readout) for readout in each] for each in found.readouts]
    for rule in found.rules:
        choices = [choice for choice in rule(found.readouts) if not isinstance(choice, Unanswered)]
        yield {
            "organism": found.organism,
            "layer": found.layer,
            "chosen by": rule.name,
            "named at the best scales": sum(map(max, counts)),
            "at scale 1": sum(named(readout) for each in found.readouts for readout in each if readout.scale == 1.0),
            "at the chosen": sum(named(choice.readout) for choice in choices),
            "selected": f"{sum(named(choice.readout, choice.selected) for choice in choices)} of "
            f"{sum(len(choice.selected) for choice in choices)}",
            "scales": ", ".join(f"{choice.readout.scale:g}" for choice in choices),
            "median": statistics.median([choice.readout.scale for choice in choices]) if choices else "",
            "most of a selection": max((choice.selected_tokens for choice in choices), key=len, default=[]),
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", help="a model as Inspect AI names it")
    parser.add_argument("--layers", nargs="*", type=float, default=[0.5], help="shares of the depth")
    parser.add_argument("--organisms", nargs="*", default=ORGANISMS, choices=ORGANISMS)
    parser.add_argument("--corpus", default="python_docs", choices=["python_docs", "everyday"])
    options = parser.parse_args()
    corpora = {
        "python_docs": CorpusSpec("python_docs", source="embedded", id="python_docs"),
        "everyday": CorpusSpec("everyday", source="python", id="diffing.demo.corpora:control"),
    }
    words, table = domain_words(), list[dict[str, object]]()
    for organism in options.organisms:
        for found in read(organism, corpora[options.corpus], options.layers, options.judge):
            table += rows(found, words[organism])
            print(table[-1], flush=True)
    print(markdown(pd.DataFrame(table)))


if __name__ == "__main__":
    main()
