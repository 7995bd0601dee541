"""How the Activation Difference Lens lays out what it read: tables with their descriptions, and the mean vectors."""

from collections.abc import Mapping, Sequence

import pandas as pd

from diffing.lenses import readouts
from diffing.lenses.steering import steering_table
from diffing.methods.activation_difference_lens.reading import Reading
from diffing.report import Directions, NamedTensor, Table, slug

Row = Mapping[str, object]

WHERE = {
    "corpus": "corpus whose texts were read",
    "layer": "decoder block, absolute, counted from 0",
    "position": "token position, counted from 0 at the start of a text, or of the first answer of a conversation",
}
SOURCE = {
    "source": "what was read: the mean difference (finetuned - base), the mean of one side, or a random direction",
}
UNIT = "mean residual norms"


def position_table(readings: Sequence[Reading]) -> Table:
    rows = []
    for reading in readings:
        means = reading.means
        shift = means.difference.norm(dim=-1)
        for row, position in enumerate(means.positions):
            rows.append(
                {
                    "corpus": reading.corpus,
                    "layer": means.layer,
                    "position": position,
                    "n_texts": int(means.n_texts[row]),
                    "shift_norm": float(shift[row]),
                    "relative_shift": float(shift[row] / means.norm_base[row]),
                    "consistency": float(means.consistency[row]),
                    "norm_base": float(means.norm_base[row]),
                    "norm_finetuned": float(means.norm_finetuned[row]),
                }
            )
    return Table(
        pd.DataFrame(rows),
        "How far the residual stream moved at each position, on average over texts",
        WHERE
        | {
            "n_texts": "texts that have this position",
            "shift_norm": "L2 norm of the mean difference, finetuned - base (residual stream units)",
            "relative_shift": "shift_norm over norm_base (ratio)",
            "consistency": "shift_norm over the mean norm of single differences: 1 if all texts shift alike, "
            "1/sqrt(n_texts) by chance (ratio)",
            "norm_base": "mean L2 norm of the base's residual stream (residual stream units)",
            "norm_finetuned": "mean L2 norm of the finetuned residual stream (residual stream units)",
        },
    )


def logit_lens_table(rows: Sequence[Row]) -> Table:
    about = "Logit lens: tokens that each vector promotes and suppresses when read by the model's own head"
    return readouts.logit_lens_table(
        rows, about, WHERE | SOURCE, ("source", "position", "direction", "layer", "corpus")
    )


def patchscope_table(rows: Sequence[Row]) -> Table:
    about = (
        "Token-identity patchscope: tokens the model reads in each vector when it stands in for a word, at the scale "
        "that was chosen for it and at scale 1"
    )
    chosen = {
        "read_at": "chosen scale, or scale 1 where another was chosen",
        "chosen": "whether this is the scale that was chosen for the vector",
        "selected": "whether the token is one of those that belong together at the chosen scale",
    }
    return readouts.patchscope_table(
        rows, about, WHERE | SOURCE | chosen, ("source", "position", "read_at", "layer", "corpus"), UNIT
    )


def scale_table(rows: Sequence[Row]) -> Table:
    return Table(
        pd.DataFrame(rows),
        "At which scale the patchscope reads each vector best, and which of its tokens there belong together",
        WHERE
        | SOURCE
        | {
            "scale": f"chosen length of the patched vector ({UNIT}); missing if none was chosen",
            "selected": "tokens of that scale that belong together, as they decode",
            "unanswered": "questions about this vector that a judge did not answer",
            "reason": "why no scale was chosen",
            "by": "how the choice was made",
        },
    )


_PROMPT = {"prompt": "user message by which the strength was searched"}


def threshold_table(rows: Sequence[Row]) -> Table:
    return Table(
        pd.DataFrame(rows),
        "How strongly the model can be steered with its answers still coherent; the mean over prompts is used",
        WHERE
        | _PROMPT
        | {
            "strength": f"largest strength found coherent ({UNIT}); missing if nothing could be decided",
            "limit": f"least strength above it found incoherent ({UNIT}); missing if none was met",
            "outcome": "how the search ended",
            "by": "how coherence was decided",
        },
    )


def coherence_table(rows: Sequence[Row]) -> Table:
    return Table(
        pd.DataFrame(rows),
        "Answers that were graded on the way to these strengths",
        WHERE
        | _PROMPT
        | {
            "strength": f"length of the added vector ({UNIT}); 0 is unsteered",
            "coherent": "answers that are coherent (count)",
            "incoherent": "answers that are not (count)",
            "unanswered": "answers that a judge did not grade; they count for nothing (count)",
            "share": "coherent over graded answers (ratio)",
            "standard_error": "of that share, with two answers of each kind added (ratio)",
        },
    )


def samples_table(rows: Sequence[Row]) -> Table:
    return steering_table(
        rows,
        "Answers of the finetuned model, unsteered, with a mean difference added, and with a random direction added",
        WHERE,
        "mean difference that was added",
        f"length of the added vector ({UNIT})",
    )


def answers_by_kind(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Texts of the steering table's rows, as they are compared: unsteered ones once, the others per direction."""
    found: dict[str, dict[tuple, str]] = {}
    for row in rows:
        name = str(row["kind"]) if row["kind"] == "unsteered" else f"{row['kind']}, {row['direction']}"
        if row["kind"] != "unsteered":
            name += f" at layer {row['layer']}"
        found.setdefault(name, {})[(row["prompt"], row["condition"], row["sample"])] = str(row["text"])
    return {name: list(texts.values()) for name, texts in found.items()}


def tensors(readings: Sequence[Reading]) -> dict[str, NamedTensor]:
    """One [pos, d_model] tensor per corpus, layer and kind of mean, in float32."""
    found = {}
    for reading in readings:
        means = reading.means
        rows = f"; row 0 is position {means.first}" if means.first else ""
        for key in ("difference", "base", "finetuned"):
            about = f"mean {key} of the residual stream on {reading.corpus}, layer {means.layer}{rows}"
            name = f"{slug(reading.corpus)}_layer_{means.layer}_{key}"
            found[name] = NamedTensor(getattr(means, key).float(), about, ("pos", "d_model"), _directions(reading))
    return found


def _directions(reading: Reading) -> Directions:
    """Strength 1 adds what it adds in the steering table: a vector as long as the mean residual norm."""
    positions = reading.means.positions
    return Directions(
        reading.means.layer,
        [f"position {position}" for position in positions],
        [reading.means.residual_norm] * len(positions),
        "mean norm of the finetuned residual stream",
    )
