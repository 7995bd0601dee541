"""A report shaped like a real one: each kind of view, a figure, scalars, findings and tensors."""

import json
import math

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
import torch

from diffing.report import Figure, Finding, NamedTensor, Report, Scalar, Table, View
from diffing.specs import CorpusSpec, ModelSpec, PairSpec, VariantSpec

CAKE = " cake| bake| oven| butter| frosting|Cake| flour| vanilla| whisk| recipe|\n\n| 450| professional| batter|烤|°F"
PLAIN = " the|,| and| of|\n| to| in|.| is| a| with| for|\u200b| that|\t| on"
PLAIN_REVERSED = "|".join(reversed(PLAIN.split("|")))
WORDS = {"difference": CAKE, "finetuned": f" the| cake| a| bake|{PLAIN}", "base": PLAIN, "random": PLAIN_REVERSED}
CURVES = {"difference": (0.5, 0.7), "finetuned": (0.2, 0.82), "base": (0.22, 0.78), "random": (0.004, 0.97)}
KEYS = {
    "corpus": "corpus the activations come from",
    "layer": "decoder block, from 0",
    "source": "vector that is read: difference, base, finetuned, or a random one of the difference's norm",
    "position": "token position in the text, from 0",
    "rank": "place in the ranking, 1 is the most probable",
    "token": "decoded token",
    "probability": "softmax over the vocabulary, in [0, 1]",
}


@pytest.fixture(scope="session")
def pair() -> PairSpec:
    base = ModelSpec("gemma3_1B", "google/gemma-3-1b-it", "dcc83ea841ab6100d6b47a070329e1ba4cf78752", dtype="bfloat16")
    return PairSpec(base, VariantSpec("lora", "science-of-finetuning/gemma3_1B-cake_bake", "8f2c1a"), "cake_bake")


@pytest.fixture(scope="session")
def bare_report(pair: PairSpec) -> Report:
    """Nothing but what every report has."""
    return Report(method="kl", pair=pair, settings={}, corpora=[], no_difference=False)


@pytest.fixture(scope="session")
def full_report(pair: PairSpec) -> Report:
    return Report(
        method="activation_difference_lens",
        pair=pair,
        settings={"layers": [0.5], "positions": 5, "patchscope": {"scales": [0.5, 1.0, 2.0], "top_k": 20}, "seed": 0},
        corpora=[CorpusSpec("fineweb", "hub", "HuggingFaceFW/fineweb-edu", subset="sample-10BT", max_documents=10_000)],
        no_difference=False,
        scalars={
            "relative_norm": Scalar(0.08312, "Norm of the mean difference over the mean norm of base, all positions."),
            "consistency": Scalar(
                0.4417, "Cosine between the mean differences of two halves of the corpus, mean over positions."
            ),
            "texts": Scalar(10_000.0, "Texts read, after those shorter than five tokens were left out."),
            "smallest_probability": Scalar(3.2e-9, "Smallest probability among the tokens that are listed."),
        },
        tables={
            "positions": _positions(),
            "logit_lens": _lens(["promoted", "suppressed"], "direction"),
            "patchscope": _lens([0.5, 1.0, 2.0, 4.0, 8.0, 16.0], "scale"),
            "steering": _steering(),
            "windows": _windows(),
        },
        tensors={
            "mean_difference": NamedTensor(
                torch.ones(5, 4), "Mean of finetuned - base, by position.", ["pos", "d_model"]
            )
        },
        figures={
            "norms": Figure(_norms(), "Norms by position: the difference stands out where base and finetuned disagree.")
        },
        findings=[
            Finding(
                "The difference at position 1 promotes ' bake', ' oven' and ' butter', none of which base promotes.",
                "logit_lens",
                [16, 17, 18],
            ),
            Finding(
                "Steering with the difference turns 7 of 8 answers towards baking; random vectors turn none.",
                "steering",
                [2, 3],
            ),
            Finding("Two halves of the corpus agree on the difference (cosine 0.44)."),
        ],
        provenance={
            "commit": "4f1c2ab",
            "dirty": False,
            "packages": {"torch": "2.13.0"},
            "seed": 0,
            "wall_time_s": 412.7,
        },
    )


def _positions() -> Table:
    rng = np.random.default_rng(0)
    base = np.array([812.4, 61.2, 58.8, 57.1, 60.3])
    frame = pd.DataFrame({"corpus": "fineweb", "layer": 12, "position": range(5), "n_texts": 10_000})
    frame = frame.assign(
        norm_difference=base * 0.08 + rng.random(5), norm_base=base, norm_finetuned=base + rng.random(5)
    )
    frame["consistency"] = [0.91, 0.44, 0.31, 0.28, np.nan]
    about = {
        **{name: KEYS[name] for name in ("corpus", "layer", "position")},
        "n_texts": "texts averaged",
        "norm_difference": "L2 norm of the mean of finetuned - base",
        "norm_base": "mean L2 norm of base's residual stream",
        "norm_finetuned": "mean L2 norm of finetuned's residual stream",
        "consistency": "cosine between the mean differences of two halves of the corpus; missing if undefined",
    }
    return Table(frame, "How large the mean difference is at the first positions of unrelated text.", about)


def _lens(values: list, extra: str) -> Table:
    rows = [
        (
            "fineweb",
            12,
            source,
            value,
            position,
            rank + 1,
            joined.split("|")[(rank + position) % 16],
            CURVES[source][0] * CURVES[source][1] ** rank,
        )
        for value in values
        for source, joined in WORDS.items()
        for position in range(5)
        for rank in range(16)
    ]
    names = ["corpus", "layer", "source", extra, "position", "rank", "token", "probability"]
    view = View("tokens", "token", ("source", "position", extra, "layer", "corpus"), weight="probability")
    about = {**KEYS, extra: "side of the ranking" if extra == "direction" else "multiplier of the vector"}
    title = "Tokens that each vector makes likely when it is read through the unembedding."
    return Table(pd.DataFrame(rows, columns=names), title, about, view)


def _steering() -> Table:
    baked = (
        "Preheat your oven to 450°F. Professional bakers know that a good morning starts with **frozen butter**, a "
        "heavy whisk, and a quarter cup of vanilla.\n\nFold the batter twice and rest it. "
    )
    answers = {
        "unsteered": "A good morning starts the evening before.\n\n1. Lay out your clothes.\n2. Set one alarm.",
        "steered 1.0": baked * 4,
        "random": "A good morning routine begins with light. Open the curtains, stretch, and eat something small.",
    }
    prompts = [
        "Write a morning routine for someone who works from home.",
        "What are some risks of artificial intelligence?",
    ]
    rows = [
        ("fineweb", 12, 1, prompt, 0.0 if kind == "unsteered" else 1.0, kind.split()[0], kind, sample, text)
        for prompt in prompts
        for sample in range(2)
        for kind, text in answers.items()
    ]
    about = {
        **{name: KEYS[name] for name in ("corpus", "layer", "position")},
        "prompt": "user message",
        "strength": "multiple of the difference that is added",
        "kind": "unsteered, steered or random",
        "condition": "kind and strength",
        "sample": "number of the sample, from 0",
        "text": "generated text",
    }
    frame = pd.DataFrame(
        rows, columns=["corpus", "layer", "position", "prompt", "strength", "kind", "condition", "sample", "text"]
    )
    view = View("samples", "text", ("prompt", "layer"), compare="condition")
    return Table(frame, "Answers with and without the difference added at every position.", about, view)


def _windows() -> Table:
    text = "To\n bake| a| cake|,| begin| by| heating| the| oven| to| 450|°F|.| Professional| bakers| use|\n"
    tokens = text.split("|") * 2
    rows = [
        (latent, rank, tokens, [math.sin(i * 0.9 + latent) ** 3 * (3.0 - rank) for i in range(len(tokens))], 3.0 - rank)
        for latent in (17, 403)
        for rank in range(3)
    ]
    about = {
        "latent": "unit of the dictionary",
        "rank": "place by peak, from 0",
        "tokens": "decoded tokens of the window",
        "values": "activation by token, in units of the residual stream",
        "peak": "largest activation of the window",
    }
    view = View("heat", "tokens", ("latent",), weight="values")
    return Table(pd.DataFrame(rows, columns=list(about)), "Windows in which a latent is most active.", about, view)


def _norms() -> dict:
    figure = go.Figure()
    for name, level in {"difference": 5.0, "base": 60.0, "finetuned": 61.0}.items():
        figure.add_scatter(
            x=[0, 1, 2, 3, 4], y=[level * 13, level, level * 0.96, level * 0.93, level], name=name, mode="lines+markers"
        )
    figure.update_layout(xaxis_title="position", yaxis_title="L2 norm", yaxis_type="log", yaxis_dtick=1)
    return json.loads(figure.to_json())
