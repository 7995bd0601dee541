"""How what was measured of latents is laid out as tables."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

import pandas as pd

from diffing.activations.store import ActivationCache
from diffing.axes import Side, Stream
from diffing.lenses.latents import Kind
from diffing.methods.base_dictionary import rules
from diffing.methods.base_dictionary.bridging import Bridge
from diffing.methods.base_dictionary.reading import Latents, Reading
from diffing.report import Table

PAIR, NOISE = "the pair", "noise alone"
LAYER = {"layer": "decoder block, absolute, counted from 0"}
_LATENT = {
    "latent": "number of the latent, counted from 0",
    "frequency": "share of the stored tokens in which it is active (ratio)",
    "largest_length": "length that it adds to the difference where it is largest (residual stream units)",
    "kl_contribution": "how much adding it alone to the base's activations lowers the KL to the finetuned model (nats "
    "per token; negative: it raises it; NaN: not tried)",
}
"""What more than one table says of a latent."""


def difference_table(caches: Sequence[ActivationCache], layers: Sequence[int]) -> Table:
    rows = []
    for cache in caches:
        for layer in layers:
            differs, base = cache.moments(Stream.DIFFERENCE, layer), cache.moments(Stream.BASE, layer)
            size, own = differs.rms_norm, base.rms_norm
            rows.append(
                {
                    "corpus": cache.corpus,
                    "layer": layer,
                    "rows": differs.count,
                    "documents": cache.n_documents,
                    "mean_norm": float(differs.mean.norm()),
                    "rms_norm": size,
                    "relative_norm": size / own if own else math.nan,
                }
            )
    return Table(
        pd.DataFrame(rows),
        "How large the difference is that the dictionary decomposes",
        {
            "corpus": "corpus whose tokens were read",
            **LAYER,
            "rows": "tokens",
            "documents": "documents they come from",
            "mean_norm": "L2 norm of the mean difference, which the dictionary is centred on and no latent holds "
            "(residual stream units)",
            "rms_norm": "root mean square of the L2 norm of the difference (residual stream units)",
            "relative_norm": "rms_norm over that of the base's residual stream (ratio)",
        },
    )


def latent_table(measured: Sequence[Latents], alone: Mapping[int, Bridge]) -> Table:
    """One row per latent, dead ones included. `alone` has the contributions, by layer."""
    frames: list[pd.DataFrame] = []
    columns: dict[str, str] = {}
    for latents in measured:
        frame, columns = _latents(latents, alone.get(latents.layer))
        frames.append(frame)
    return Table(pd.concat(frames, ignore_index=True), "What every latent does on the stored tokens", columns)


def _latents(latents: Latents, bridge: Bridge | None) -> tuple[pd.DataFrame, dict[str, str]]:
    """The latents of one layer, and what the columns mean."""
    found, numbers = latents.statistics, range(len(latents.statistics.n_active))
    alone = {} if bridge is None else {latent: bridge.contribution(latent) for latent in bridge.alone}
    described = {
        "layer": ([latents.layer] * len(numbers), LAYER["layer"]),
        "latent": (list(numbers), _LATENT["latent"]),
        **{
            f"class_{rule}": ([str(kind) for kind in kinds], f"whose latent it is by the {rule} rule: {_RULES[rule]}")
            for rule, kinds in latents.classes.items()
        },
        "n_active": (found.n_active.tolist(), "tokens in which it is active; 0 is a dead latent"),
        "frequency": (found.frequency.tolist(), _LATENT["frequency"]),
        "mean_value": (found.mean.tolist(), "mean value where it is active (multiplies its directions; no unit)"),
        "largest_value": (found.largest.tolist(), "largest value (multiplies its directions; no unit)"),
        **{
            f"norm_{stream}": (norms.tolist(), f"length that value 1 adds to the {stream} (residual stream units)")
            for stream, norms in latents.vectors.norms.items()
        },
        "mean_length": (
            latents.mean_length.tolist(),
            "length that it adds to the difference, on average over all tokens (residual stream units)",
        ),
        "largest_length": (latents.largest_length.tolist(), _LATENT["largest_length"]),
        "kl_contribution": ([alone.get(latent, math.nan) for latent in numbers], _LATENT["kl_contribution"]),
        **_scaling(latents),
    }
    frame = pd.DataFrame({name: values for name, (values, _) in described.items()})
    return frame, {name: about for name, (_, about) in described.items()}


def _scaling(latents: Latents) -> dict[str, tuple[list[float], str]]:
    """Columns of norms and latent scaling; those of both sides where the latents have two directions."""
    found = latents.statistics
    normalised = "(ratio, in normalised units)"
    described = {}
    if rules.paired(found):
        described["delta"] = (
            found.delta.tolist(),
            "where its norm is: 0 in the base only, 1/2 in both, 1 in the finetuned side only (normalised units)",
        )
        described["cosine"] = (found.cosine.tolist(), "cosine between its directions on the two sides (-1 to 1)")
        for name, betas, ratio in (
            ("error", found.beta_error, found.nu_error),
            ("reconstruction", found.beta_reconstruction, found.nu_reconstruction),
        ):
            for number, side in enumerate(Side):
                described[f"beta_{name}_{side}"] = (
                    betas[-1, number].tolist(),
                    f"least-squares factor of its finetuned direction to the {side} side's {name} {normalised}",
                )
            described[f"nu_{name}"] = (
                ratio[-1].tolist(),
                f"beta_{name}_base over beta_{name}_finetuned: near 0 if the base has nothing of it (ratio)",
            )
            described[f"nu_{name}_swapped"] = (
                ratio[0].tolist(),
                f"the same with its base direction, finetuned over base: near 0 if the finetuned side has nothing of "
                f"the {name} (ratio)",
            )
    for number, side in enumerate(Side):
        described[f"beta_activation_{side}"] = (
            found.beta_activation[-1, number].tolist(),
            f"least-squares factor of its direction to the {side} side's activations about their mean {normalised}",
        )
    described["nu_activation"] = (
        found.nu_activation.tolist(),
        "beta_activation_base over beta_activation_finetuned: near 0 if only the finetuned side has it, large if only "
        "the base has, 1 if both have it alike (ratio)",
    )
    return described


_RULES = {
    rules.NORM: "decoder norm delta below 0.1, above 0.9, or within 0.1 of 1/2",
    rules.SCALING: "latent scaling, |nu_error| < 0.2 and |nu_reconstruction| < 0.5 for exclusive, nu_error > 0.8 both "
    "ways for shared",
    rules.ACTIVATION: "one side's activations hold less than 0.2 of what the other's do of its direction for "
    "exclusive, both have it with one sign for shared (it became stronger or weaker)",
}


def class_table(measured: Sequence[Latents]) -> Table:
    rows = []
    for latents in measured:
        for data, classes in ((PAIR, latents.classes), (NOISE, latents.noise)):
            for rule, kinds in (classes or {}).items():
                counts = Counter(kinds)
                alive = len(kinds) - counts[Kind.DEAD]
                rows += [
                    {
                        "layer": latents.layer,
                        "rule": rule,
                        "data": data,
                        "class": str(kind),
                        "latents": counts[kind],
                        "share": counts[kind] / alive if alive and kind is not Kind.DEAD else math.nan,
                    }
                    for kind in Kind
                ]
    return Table(
        pd.DataFrame(rows),
        "How many latents are of one side or of both, by each rule, beside what noise alone gives",
        LAYER
        | {
            "rule": "; ".join(f"{rule}: {about}" for rule, about in _RULES.items()),
            "data": f"{PAIR}: the stored tokens; {NOISE}: the same dictionary read on the base's rows and these plus "
            "Gaussian noise of the difference's size: what the rule says of a change without meaning (rules that "
            "depend on rows)",
            "class": "whose latents; dead ones are active on no token and in no other class",
            "latents": "number of latents",
            "share": "of the latents that are not dead (ratio; NaN for dead ones)",
        },
    )


def contribution_table(readings: Sequence[Reading]) -> Table:
    rows = []
    for reading in readings:
        latents, bridge = reading.latents, reading.bridge
        for rank, latent in enumerate(ranked(reading), 1):
            rows.append(
                {
                    "layer": reading.layer,
                    "rank": rank,
                    "latent": latent,
                    "class": str(next(iter(latents.classes.values()))[latent]),
                    "kl_contribution": bridge.contribution(latent),
                    "share": bridge.share(bridge.alone[latent].kl),
                    "nu": float(rules.nu(latents.statistics)[latent]),
                    "frequency": float(latents.statistics.frequency[latent]),
                    "largest_length": float(latents.largest_length[latent]),
                }
            )
    return Table(
        pd.DataFrame(rows),
        "Latents that were added alone to the base's activations, by how much each lowers the KL to the finetuned "
        "model's output; tried are those that change the residual stream most",
        LAYER
        | _LATENT
        | {
            "rank": "place among the tried ones, 1 lowers the KL most",
            "class": "whose latent it is, by the first rule of the latents table",
            "share": "of the KL without any latent (ratio)",
            "nu": "of the finetuned direction, what the base holds relative to the finetuned side: nu_error of the "
            "latents table, or nu_activation if it has no nu_error (ratio)",
        },
    )


def ranked(reading: Reading) -> list[int]:
    """The latents that were tried: the top ones, then the rest."""
    rest = sorted(set(reading.bridge.alone) - set(reading.top), key=lambda j: -reading.bridge.contribution(j))
    return [*reading.top, *rest]
