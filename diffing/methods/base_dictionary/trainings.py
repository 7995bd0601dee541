"""How what is known of the trainings themselves is laid out as tables: how they went, and what another seed gives."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import pandas as pd
import torch

from diffing.axes import Stream
from diffing.learners.dictionary import Dictionary
from diffing.lenses.latents import Kind
from diffing.lenses.stability import NEAR, Matches, matches, matches_by_chance
from diffing.methods.base_dictionary.reading import Latents
from diffing.methods.base_dictionary.tables import LAYER
from diffing.report import Table

_LOGGED = {
    "step": "steps of the optimiser that were done; a row is about those since the row before",
    "loss": "mean of what is minimised, the sum of the next three (1: as bad as predicting the mean)",
    "reconstruction": "mean loss of the reconstruction (1: as bad as predicting the mean)",
    "sparsity": "mean penalty on the latents' values (same unit)",
    "auxiliary": "mean loss that revives dead latents (same unit)",
    **{
        f"fve_{stream}": f"share of the variance of the {stream} explained, with the codes chosen in training (ratio)"
        for stream in Stream
    },
    "l0": "active latents per token, as chosen in training",
    "k": "active latents per token that were asked for at this step",
    "dead": "share of the latents that count as dead: not active for long (ratio)",
    "threshold": "score above which a latent is active outside of training (normalised units)",
    "lr": "learning rate at this step",
    "gradient_norm": "mean norm of the gradient before it is clipped",
    "rows_per_second": "tokens trained on per second",
    "stall_share": "share of the time in which training waited for tokens to be read (ratio)",
}


def tables_of(measured: Sequence[Latents], repeats: Sequence["Repeat"]) -> dict[str, Table]:
    """Those that there is something to say in."""
    found = {"stability": stability_table(repeats)} if repeats else {}
    return found | ({"training": training_table(measured)} if histories(measured) else {})


def histories(measured: Sequence[Latents]) -> dict[int, pd.DataFrame]:
    """By layer, what was logged of a training; layers without a log are left out."""
    return {
        latents.layer: pd.DataFrame({name: latents.dictionary.history[name] for name in latents.dictionary.history})
        for latents in measured
        if latents.dictionary.history
    }


def training_table(measured: Sequence[Latents]) -> Table:
    """Of the layers that have a log."""
    logged = [rows.assign(layer=layer) for layer, rows in histories(measured).items()]
    frame = pd.concat(logged, ignore_index=True)
    columns = [name for name in _LOGGED if name in frame.columns]
    return Table(
        frame[["layer", *columns]],
        "How the training of each layer's dictionary went",
        LAYER | {name: _LOGGED[name] for name in columns},
    )


ALL = "all"


@dataclass(frozen=True, eq=False)
class Repeat:
    """What a training with another seed has of a layer's latents."""

    latents: Latents
    seed: int
    found: Matches
    chance: Matches
    """Of random directions in place of the other training's."""

    @classmethod
    def of(cls, latents: Latents, other: Dictionary) -> "Repeat":
        seed = cast(int, cast(Mapping, other.recipe.settings["training"])["seed"])
        first, alive = latents.dictionary, ~latents.statistics.dead
        return cls(latents, seed, matches(first, other, alive), matches_by_chance(first, other, alive, seed))


def stability_table(repeats: Sequence[Repeat]) -> Table:
    """Per layer and seed: of all latents that are not dead, and of each class."""
    rows = []
    for repeat in repeats:
        alive = ~repeat.latents.statistics.dead
        groups = {(ALL, ALL): alive}
        for rule, kinds in repeat.latents.classes.items():
            for kind in Kind:
                if kind is not Kind.DEAD:
                    groups[rule, str(kind)] = torch.tensor([each is kind for each in kinds])
        for (rule, name), members in groups.items():
            n = int(members.sum())
            found, chance = (each.matched[members] for each in (repeat.found, repeat.chance))
            rows.append(
                {
                    "layer": repeat.latents.layer,
                    "seed": repeat.seed,
                    "rule": rule,
                    "class": name,
                    "latents": n,
                    "matched": int(found.sum()),
                    "share": int(found.sum()) / n if n else math.nan,
                    "share_by_chance": int(chance.sum()) / n if n else math.nan,
                    "cosine": float(repeat.found.cosine[members].mean()),
                    "cosine_by_chance": float(repeat.chance.cosine[members].mean()),
                }
            )
    return Table(
        pd.DataFrame(rows),
        "How many latents are found again by a training with another seed",
        LAYER
        | {
            "seed": "of the other training; its rows came in another order too",
            "rule": f"by which latents are classed, as in the classes table; {ALL}: not classed",
            "class": "whose latents; dead ones are left out",
            "latents": "number of latents",
            "matched": f"those with a counterpart: the two are each other's nearest, at a cosine of {NEAR} or more "
            "between their decoder directions (normalised units; both sides at once if they have two)",
            "share": "matched over latents (ratio)",
            "share_by_chance": "the same among random directions of the same lengths (ratio)",
            "cosine": "mean cosine with the nearest latent of the other training (-1 to 1)",
            "cosine_by_chance": "the same among random directions of the same lengths (-1 to 1)",
        },
    )
