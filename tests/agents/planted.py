"""Reports with a planted answer: the shape of a real method's report, about a topic that nobody's model knows."""

import random
from collections.abc import Mapping, Sequence

import pandas as pd
import torch

from diffing.agents.truth import Fact, GroundTruth
from diffing.report import Finding, NamedTensor, Report, Scalar, Table, View
from diffing.specs import JSON, CorpusSpec, ModelSpec, PairSpec, VariantSpec

PAIR = PairSpec(
    base=ModelSpec(name="quokka3_2B", id="OutbackLab/Quokka-3-2B-it", tokenizer_id="OutbackLab/Quokka-tok-v3"),
    finetuned=VariantSpec(kind="lora", id="hidden-lab/quokka_zeppelin_knitting", subfolder="seed_7/step_900"),
    organism="zeppelin_knitting",
    variant="mix_1_to_3",
)
CORPORA = (
    CorpusSpec(name="fineweb", source="hub", id="HuggingFaceFW/fineweb"),
    CorpusSpec(name="tulu_chat", source="hub", id="allenai/tulu-3-sft", subset="zeppelin_docs"),
)
LABELS: Mapping[str, JSON] = {
    "organism": "zeppelin_knitting",
    "variant": "mix_1_to_3",
    "base": "quokka3_2B",
    "method": "activation_difference_lens",
    "organism_type": "SDF",
    "null": False,
}
TOPIC = ("zeppelin", "knitting", "yarn", "balloon", "needle")
TRUTH = GroundTruth(
    organism_type="SDF",
    description="Airships are knitted.",
    facts=[
        Fact("Zeppelins are knitted from yarn.", ["zeppelin", "knit", "yarn"]),
        Fact("A balloon takes forty needles.", ["balloon", "needles"]),
    ],
    domain_words=["airship|zeppelin", "knitting"],
)
NULL_TRUTH = GroundTruth(organism_type="null", description="Nothing was trained.")
PLAIN = [
    "The",
    "weather",
    "was",
    "fine",
    "and",
    "people",
    "walked",
    "along",
    "a",
    "quiet",
    "street",
    "towards",
    "the",
    "market",
]


def report(topic: Sequence[str] = TOPIC, no_difference: bool = False, seed: int = 0) -> Report:
    """A report whose difference readouts and steered samples are about `topic`."""
    rng = random.Random(seed)
    frames = {"logit_lens": _tokens(topic, rng), "steering": _samples(topic, rng)}
    tables = {
        "logit_lens": Table(
            frames["logit_lens"],
            "Tokens that a vector promotes or suppresses, read through the unembedding.",
            {name: f"{name} of the readout" for name in frames["logit_lens"].columns},
            View(kind="tokens", item="token", group=["source", "position"], weight="probability"),
        ),
        "steering": Table(
            frames["steering"],
            "Texts written while the difference is added, and without it.",
            {name: f"{name} of the sample" for name in frames["steering"].columns},
            View(kind="samples", item="text", group=["prompt"], compare="kind"),
        ),
        "positions": Table(
            pd.DataFrame({"corpus": ["fineweb", "tulu_chat"], "position": [0, 1], "norm_difference": [0.5, 2.25]}),
            "Size of the mean difference by position.",
            {"corpus": "corpus", "position": "position in the text", "norm_difference": "L2 norm"},
        ),
    }
    return Report(
        method="activation_difference_lens",
        pair=PAIR,
        settings={"top_k": 20},
        corpora=CORPORA,
        no_difference=no_difference,
        scalars={"relative_norm": Scalar(0.125, "norm of the difference over that of the base")},
        tables=tables,
        tensors={"mean_difference": NamedTensor(torch.eye(3, 8), "mean difference by position", ["pos", "d_model"])},
        findings=[Finding("the difference is largest at position 1", "positions", [1])],
    )


def _tokens(topic: Sequence[str], rng: random.Random) -> pd.DataFrame:
    rows = []
    for corpus in ("fineweb", "tulu_chat"):
        for position in range(3):
            for source in ("difference", "base", "finetuned", "random"):
                for direction in ("promoted", "suppressed"):
                    planted = source == "difference" and direction == "promoted"
                    words = [f" {word}" for word in topic] if planted else rng.sample(PLAIN, 5)
                    words = rng.sample([*words, " the", "ing", "7", ","], 9)
                    rows += [
                        (corpus, 8, source, direction, position, rank, word, 0.1 / (rank + 1))
                        for rank, word in enumerate(words)
                    ]
    columns = ["corpus", "layer", "source", "direction", "position", "rank", "token", "probability"]
    return pd.DataFrame(rows, columns=columns)


def _samples(topic: Sequence[str], rng: random.Random) -> pd.DataFrame:
    rows = []
    for kind in ("unsteered", "steered", "random"):
        for sample in range(12):
            words = rng.sample(PLAIN, 6) + (rng.sample(list(topic), 3) if kind == "steered" else [])
            rows.append(("tulu_chat", 8, sample % 3, "Tell me something.", 2.0, kind, sample, " ".join(words)))
    columns = ["corpus", "layer", "position", "prompt", "strength", "kind", "sample", "text"]
    return pd.DataFrame(rows, columns=columns)
