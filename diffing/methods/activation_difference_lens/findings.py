"""What the Activation Difference Lens found, in words and in headline numbers."""

import math
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from diffing.activations.position_means import SKIPPED
from diffing.lenses.causal import Edit
from diffing.lenses.readouts import own_tokens, read_as
from diffing.lenses.steering import words_steered_towards
from diffing.lenses.strength import Outcome
from diffing.methods.activation_difference_lens.carried import DIFFERENCE
from diffing.methods.activation_difference_lens.reading import Reading
from diffing.methods.activation_difference_lens.relevant import FREQUENT, OTHER, OWN
from diffing.report import Finding, Scalar, Table

Tables = Mapping[str, Table]
_WHERE = ["corpus", "layer", "position"]


def scalars(readings: Sequence[Reading], telling: Sequence[Reading], found: Tables) -> dict[str, Scalar]:
    """Headline numbers of the reading with the largest shift, and of what was measured against the training data."""
    reading = max(telling or readings, key=_largest_shift)
    means = reading.means
    position = reading.telling if reading.positions else means.positions[-1]
    row = reading.row(position)
    numbers = {
        "layer": Scalar(means.layer, "layer of the largest shift (absolute, counted from 0)"),
        "telling_position": Scalar(position, "position with the largest shift for its residual norm (no sink)"),
        "shift_norm": Scalar(
            float(means.difference[row].norm()), "L2 norm of the mean difference there (residual stream units)"
        ),
        "relative_shift": Scalar(reading.shift(position), "that norm over the base's mean residual norm there (ratio)"),
        "consistency": Scalar(
            float(means.consistency[row]),
            "norm of the mean difference over the mean norm of the differences: 1 if all texts shift alike (ratio)",
        ),
        "residual_norm": Scalar(
            means.residual_norm, f"mean L2 norm of the finetuned residual stream from position {SKIPPED} on"
        ),
    }
    if "strengths" in found and not (strengths := found["strengths"].frame["strength"].dropna()).empty:
        about = "mean over directions and prompts of the largest strength with coherent answers (mean residual norms)"
        numbers["coherent_strength"] = Scalar(float(strengths.mean()), about)
    return numbers | {name: value for name, value in _known_scalars(found) if math.isfinite(value.value)}


def _largest_shift(reading: Reading) -> float:
    return reading.shift(reading.telling) if reading.positions else -1.0


def _known_scalars(found: Tables) -> Iterator[tuple[str, Scalar]]:
    if "relevance" in found:
        frame = found["relevance"].frame
        best = frame[frame["against"] == OWN].groupby("source")["fraction"].mean()
        for source in ("difference", "base", "random"):
            about = f"mean over layers, positions and lenses of the share of relevant tokens, read from: {source}"
            yield f"relevance_{source}", Scalar(float(best.get(source, math.nan)), about, ground_truth=True)
    if "causal_effect" in found:
        corpus, largest = _causal_share(found["causal_effect"].frame)
        about = f"largest share of the loss gap on {corpus} that one mean difference's coordinate carries (ratio)"
        yield "causal_share", Scalar(largest, about, ground_truth=True)


def findings(readings: Sequence[Reading], telling: Sequence[Reading], found: Tables) -> list[Finding]:
    """The most telling first: what steering made the model say, what was read, and what that is worth."""
    if not any(reading.differs for reading in readings):
        layers = ", ".join(str(layer) for layer in sorted({reading.means.layer for reading in readings}))
        return [
            Finding(
                f"No difference: at layers {layers} both sides have the same activations on every text.", "positions"
            )
        ]
    claims: list[Finding] = []
    if "steering" in found:
        claims += [*_steered(found["steering"].frame), *_unsteered(found)]
    claims += [_read(reading, found) for reading in telling]
    claims += [_nothing_to_read(reading) for reading in readings if not reading.positions]
    claims += [*_unchosen(found), *_relevance(found), *_similarity(found), *_causal(found)]
    return claims


def _steered(frame: pd.DataFrame) -> Iterator[Finding]:
    """Per direction, the words that steered answers use and the unsteered and randomly steered ones do not."""
    for (corpus, layer, position), rows in frame.groupby(_WHERE, sort=False):
        texts = {kind: list(part["text"]) for kind, part in rows.groupby("kind")}
        words = words_steered_towards(texts["steered"], [texts["unsteered"], texts["random"]])
        steered = rows[rows["kind"] == "steered"]
        strengths = " and ".join(f"{strength:.2g}" for strength in steered["strength"].drop_duplicates())
        about = (
            f"Steered by the difference on {corpus} (layer {layer}, position {position}) at {strengths} mean residual "
            "norms, answers to neutral prompts"
        )
        claim = (
            f"{about} speak of {', '.join(words)}; unsteered and randomly steered answers do not, or far less often."
            if words
            else f"{about} ({len(steered)}) use no word so much more often than unsteered and randomly steered ones "
            "that chance is ruled out."
        )
        yield Finding(claim, "steering", [int(row) for row in steered.index[:6]])


_WHY = {
    Outcome.NONE_COHERENT: "no strength that was tried leaves its answers coherent",
    Outcome.INCOHERENT_UNSTEERED: "the unsteered answers are not coherent themselves",
    Outcome.UNANSWERED: "the judge graded no answer",
}


def _unsteered(found: Tables) -> Iterator[Finding]:
    """Directions that do not steer, and why; and answers that nobody graded."""
    if "strengths" not in found:
        return
    frame = found["strengths"].frame
    for (corpus, layer, position), rows in frame.groupby(_WHERE, sort=False):
        if not rows["strength"].fillna(0).any():
            why = "; ".join(_WHY[Outcome(outcome)] for outcome in rows["outcome"].drop_duplicates())
            yield Finding(
                f"The difference on {corpus} (layer {layer}, position {position}) does not steer: {why}.",
                "strengths",
                [int(row) for row in rows.index],
            )
    unanswered = int(found["coherence"].frame["unanswered"].sum())
    if unanswered:
        yield Finding(f"The judge did not grade {unanswered} answers of the strength search; they count for nothing.",
                      "coherence")  # fmt: skip


def _read(reading: Reading, found: Tables) -> Finding:
    """The most telling position of one layer in words: what was read there from the difference, and neither from the
    base's mean nor from a random direction."""
    position, means = reading.telling, reading.means
    row, where = reading.row(position), {"corpus": reading.corpus, "layer": means.layer, "position": position}
    scope = found["patchscope"].frame
    scope = scope[scope["chosen"]].drop(columns="scale") if len(scope) else scope
    read = {"logit_lens": _own_tokens(found["logit_lens"].frame, where), "patchscope": _own_tokens(scope, where)}
    said = read_as({name: rows["token"] for name, rows in read.items()})
    return Finding(
        f"On {reading.corpus}, layer {means.layer}, position {position}, the finetune moves the residual stream by "
        f"{reading.shift(position):.1%} of its norm, with consistency {float(means.consistency[row]):.2f} over "
        f"{int(means.n_texts[row])} texts. Of that shift, {said}.",
        "logit_lens",
        [int(index) for index in read["logit_lens"].index],
    )


def _own_tokens(frame: pd.DataFrame, where: Mapping[str, object]) -> pd.DataFrame:
    """Rows of the difference's readout whose tokens neither the base's mean nor a random direction shows too."""
    here = (frame[list(where)] == pd.Series(where)).all(axis=1)
    mine, controls = here & (frame["source"] == "difference"), here & frame["source"].isin(["base", "random"])
    return own_tokens(frame, mine, controls, most=12)


def _nothing_to_read(reading: Reading) -> Finding:
    where = f"On {reading.corpus}, layer {reading.means.layer}"
    if not reading.differs:
        return Finding(f"{where}, both sides have the same activations.", "positions")
    return Finding(f"{where}, the mean difference is 0 at all positions that are read.", "positions")


def _unchosen(found: Tables) -> Iterator[Finding]:
    if "patchscope_scales" not in found:
        return
    frame = found["patchscope_scales"].frame
    without = frame[frame["scale"].isna()]
    if len(without):
        reasons = "; ".join(f"{count} {reason}" for reason, count in without["reason"].value_counts().items())
        yield Finding(f"For {len(without)} of {len(frame)} vectors no patchscope scale was chosen: {reasons}.",
                      "patchscope_scales", [int(row) for row in without.index])  # fmt: skip


def _relevance(found: Tables) -> Iterator[Finding]:
    """Per lens and layer: the share at the best position, with what controls and baselines reach at most."""
    if "relevance" not in found:
        return
    every = found["relevance"].frame
    for (corpus, layer, lens), frame in every.groupby(["corpus", "layer", "lens"], sort=False):
        own = frame[frame["against"] == OWN]
        mine = own[own["source"] == "difference"]
        if not mine["fraction"].fillna(0).any():
            where = f"On {corpus}, layer {layer}"
            claim = f"{where}, the {lens} reads nothing in the difference that is relevant to the training data."
            yield Finding(claim, "relevance", [int(row) for row in mine.index])
            continue
        best = mine.loc[mine["fraction"].idxmax()]
        here = frame[(frame["source"] == "difference") & (frame["position"] == best["position"])]
        beside = {f"the {source} readout": own[own["source"] == source] for source in ("base", "finetuned", "random")}
        beside["frequent tokens"] = here[here["against"] == FREQUENT]
        beside["other organisms"] = here[here["against"] == OTHER]
        shares = ", ".join(f"{name} {rows['fraction'].max():.0%}" for name, rows in beside.items() if len(rows))
        rows = [int(best.name), *(int(row) for row in here.index if row != best.name)]
        yield Finding(
            f"On {corpus}, layer {layer}, {best['fraction']:.0%} of what the {lens} reads in the difference at "
            f"position {best['position']} is relevant to the training data ({best['by']}); at most: {shares}.",
            "relevance", rows,
        )  # fmt: skip


def _similarity(found: Tables) -> Iterator[Finding]:
    if "similarity" not in found:
        return
    frame = found["similarity"].frame
    near = frame[frame["compared_with"] == "training"]
    said = [f"{row.texts} {row.similarity:.2f} ({row.low:.2f} to {row.high:.2f})" for row in near.itertuples()]
    yield Finding(
        "Mean cosine to the training texts, with 95 % intervals: " + "; ".join(said) + ".",
        "similarity", [int(row) for row in near.index],
    )  # fmt: skip


def _causal_share(frame: pd.DataFrame) -> tuple[str, float]:
    """On the corpus that was measured first, which is the training data if they are known."""
    corpus = frame["corpus"].iloc[0]
    main = {"corpus": corpus, "direction": DIFFERENCE, "subset": "all", "edit": Edit.BASE_TO_FINETUNED}
    return corpus, float(frame.loc[(frame[list(main)] == pd.Series(main)).all(axis=1), "share_of_gap"].max())


def _causal(found: Tables) -> Iterator[Finding]:
    """Per corpus, layer and edit, the position that carries most, beside the range of the random directions."""
    if "causal_effect" not in found:
        return
    every = found["causal_effect"].frame
    frame = every[every["subset"] == "all"]
    for (corpus, layer, edit), rows in frame.groupby(["corpus", "layer", "edit"], sort=False):
        mine, controls = rows[rows["direction"] == DIFFERENCE], rows[rows["direction"] != DIFFERENCE]
        best = mine.loc[mine["increase"].abs().idxmax()]
        beside = "; ".join(
            f"{row.n_directions} directions that are {row.direction}: {row.least_increase:+.4f} to "
            f"{row.most_increase:+.4f}" for row in controls.itertuples()
        )  # fmt: skip
        gap = best["increase"] / best["share_of_gap"] if best["share_of_gap"] else 0.0
        by_controls = controls[["least_increase", "most_increase"]].abs().to_numpy().max(initial=0.0)
        wide = abs(gap) > by_controls  # NaN, of no gap at all, is not
        share = f" ({best['share_of_gap']:.0%} of the gap between the models)" if wide else ""
        yield Finding(
            f"On {corpus}, layer {layer}, {edit} along the difference at position {best['position']:g} changes the "
            f"loss by {best['increase']:+.4f} nats per token{share}; {beside}.",
            "causal_effect", [int(best.name), *map(int, controls.index)],
        )  # fmt: skip
