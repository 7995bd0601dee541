"""How faithful a layer's dictionary is, as tables: variance explained, loss and KL recovered, and the bridge."""

import math
from collections.abc import Sequence

import pandas as pd

from diffing.lenses.faithfulness import Recovered
from diffing.methods.base_dictionary.bridging import Bridge
from diffing.methods.base_dictionary.reading import Latents, Reading
from diffing.methods.base_dictionary.tables import LAYER
from diffing.report import Table

CONTROL = "control"


def faithfulness_table(measured: Sequence[Latents], readings: Sequence[Reading]) -> Table:
    """One number a row: what it is, of what, and its unit."""
    rows = []
    for latents in measured:
        found = latents.statistics
        for stream, explained in zip(found.streams, found.fve.tolist(), strict=True):
            rows.append((latents.layer, "variance explained", str(stream), explained, "ratio"))
        rows.append((latents.layer, "active latents per token", "all", found.active_per_token, "count"))
        rows.append((latents.layer, "dead latents", "all", float(found.dead.sum()), "count"))
    for reading in readings:
        rows += [(reading.layer, *row) for row in _recovered(reading.bridge.recovered)]
    return Table(
        pd.DataFrame(rows, columns=["layer", "measure", "of", "value", "unit"]),
        "How much of the activations, and of what the model does with them, is left in the reconstruction",
        LAYER
        | {
            "measure": "what was measured: variance explained over all stored tokens; KL to the finetuned model and "
            "cross-entropy of the next token, with the finetuned activations of this layer replaced; and the share of "
            "either that is recovered, 1 being the finetuned model's own activations",
            "of": "stream that is reconstructed; what stands in place of the finetuned activations; or what counts as "
            "nothing recovered (0): the base's activations, or zeros",
            "value": "the number, in its unit (NaN where it is not defined)",
            "unit": "unit of the value",
        },
    )


def _recovered(found: Recovered) -> list[tuple[str, str, float, str]]:
    rows = []
    for name in ("original", "reconstruction", "base", "zero"):
        effect = getattr(found, name)
        rows.append(("KL", name, effect.kl, "nats per token"))
        rows.append(("cross-entropy", name, effect.loss, "nats per token"))
    for name, reference in (("base", found.base), ("zero", found.zero)):
        rows.append(("KL recovered", name, found.kl(reference), "ratio"))
        rows.append(("cross-entropy recovered", name, found.loss(reference), "ratio"))
    return rows


def bridge_table(readings: Sequence[Reading]) -> Table:
    rows = []
    for reading in readings:
        bridge = reading.bridge
        rows += [
            _row(bridge, reading.layer, CONTROL, name, math.nan, effect.kl, effect.loss)
            for name, effect in bridge.controls.items()
        ]
        for order, curve in bridge.curves.items():
            rows += [
                _row(bridge, reading.layer, order, f"first {size}", float(size), effect.kl, effect.loss)
                for size, effect in curve.items()
            ]
    return Table(
        pd.DataFrame(rows),
        "Bridge: KL to the finetuned model's output as latents are added to the base's activations",
        LAYER
        | {
            "order": "by what the latents are added, largest first (delta; nu: smallest first; frequency; size: mean "
            "length; contribution: KL contribution, of those that were tried alone), random sets of latents that are "
            "not dead, or a control",
            "added": "what is added: the first latents of the order; nothing; the constant part (biases and means); "
            "the error that the reconstruction leaves; all latents; the whole reconstruction; everything",
            "latents": "latents added (count; NaN for a control)",
            "kl": "KL(finetuned || patched) of the next token (nats per token)",
            "recovered": "share of the KL with nothing added that is gone (ratio)",
            "loss": "cross-entropy of the next token (nats per token)",
        },
    )


def _row(
    bridge: Bridge, layer: int, order: str, added: str, latents: float, kl: float, loss: float
) -> dict[str, object]:
    return {
        "layer": layer, "order": order, "added": added, "latents": latents, "kl": kl, "recovered": bridge.share(kl),
        "loss": loss,
    }  # fmt: skip
