"""What the tables of a dictionary say, in words, with the controls beside each claim."""

import math
from collections.abc import Mapping, Sequence

import pandas as pd

from diffing.lenses.latents import Kind
from diffing.lenses.readouts import own_tokens, read_as
from diffing.lenses.stability import NEAR
from diffing.methods.base_dictionary import rules, shown, tables
from diffing.methods.base_dictionary.bridging import RANDOM
from diffing.methods.base_dictionary.faithful import CONTROL
from diffing.methods.base_dictionary.reading import Latents, Reading
from diffing.methods.base_dictionary.trainings import ALL
from diffing.report import Finding, Table


def dictionary_findings(measured: Mapping[str, Table], latents: Latents) -> list[Finding]:
    """How much the dictionary explains, how many latents are dead, and whose the others are."""
    found = latents.statistics
    dead, total = int(found.dead.sum()), len(found.n_active)
    explained = " and ".join(
        f"{value:.0%} of the variance of the {stream}"
        for stream, value in zip(found.streams, found.fve.tolist(), strict=True)
    )
    frame = measured["faithfulness"].frame
    rows = frame.index[frame["layer"] == latents.layer]
    claims = [
        Finding(
            f"At layer {latents.layer}, {total} latents, {found.active_per_token:.0f} of them "
            f"active per token, explain {explained}. {dead} are dead: no count or ranking below has them.",
            "faithfulness",
            [int(row) for row in rows],
        )
    ]
    counts = measured["classes"].frame
    for rule in latents.classes:
        here = counts[(counts["layer"] == latents.layer) & (counts["rule"] == rule)]
        words = {data: _counted(rows) for data, rows in here.groupby("data")}
        chance = f"; on {tables.NOISE}, {words[tables.NOISE]}" if tables.NOISE in words else ""
        claims.append(
            Finding(
                f"At layer {latents.layer}, by the {rule} rule, {words[tables.PAIR]}{chance}.",
                "classes",
                [int(row) for row in here.index],
            )
        )
    return claims


def _counted(rows: pd.DataFrame) -> str:
    alive = int(rows[rows["class"] != str(Kind.DEAD)]["latents"].sum())
    number = rows.set_index("class")["latents"]
    wanted = (Kind.FINETUNED_ONLY, Kind.BASE_ONLY, Kind.SHARED)
    return f"of {alive} latents " + ", ".join(f"{number[str(kind)]} are {kind}" for kind in wanted)


def stability_findings(measured: Mapping[str, Table], layer: int) -> list[Finding]:
    """How many latents other seeds find too, if any was tried."""
    if "stability" not in measured:
        return []
    frame = measured["stability"].frame
    here = frame[frame["layer"] == layer]
    means = here.groupby(["rule", "class"], sort=False)[["latents", "share", "share_by_chance"]].mean()
    of_all = means.loc[ALL, ALL]
    by_class = [
        f"{row.share:.0%} of the {row.latents:.0f} that are {kind} by the {rule} rule"
        for (rule, kind), row in means.drop(index=(ALL, ALL)).iterrows()
        if row.latents
    ]
    return [
        Finding(
            f"At layer {layer}, {of_all.share:.0%} of the {of_all.latents:.0f} latents that are not dead have a "
            f"counterpart, at a cosine of {NEAR} or more, in a dictionary trained with another seed (mean over "
            f"{here['seed'].nunique()}; random directions: {of_all.share_by_chance:.0%}): {', '.join(by_class)}.",
            "stability",
            [int(row) for row in here.index],
        )
    ]


def faithfulness_findings(measured: Mapping[str, Table], reading: Reading) -> list[Finding]:
    """What the reconstruction keeps, and how few latents carry the change."""
    bridge, layer = reading.bridge, reading.layer
    if not bridge.nothing:
        return [
            Finding(
                f"At layer {layer}, the base's activations give the finetuned model's output exactly on the texts that "
                "were tried, so no latent can lower the KL.",
                "bridge",
            )
        ]
    frame = measured["bridge"].frame
    here = frame[frame["layer"] == layer]
    shares = {name: bridge.share(effect.kl) for name, effect in bridge.controls.items()}
    claims = [
        Finding(
            f"At layer {layer}, the base's activations leave a KL of {bridge.nothing:.3g} nats per token to the "
            f"finetuned model. Adding the reconstructed difference removes {shares['reconstruction']:.0%} of it, all "
            f"latents without the constant part {shares['all latents']:.0%}, the constant part alone "
            f"{shares['constant']:.0%}, the error alone {shares['error']:.0%}.",
            "bridge",
            [int(row) for row in here.index[here["order"] == CONTROL]],
        )
    ]
    drawn = here[here["order"].str.startswith(RANDOM)].groupby("latents")["recovered"].mean()
    for size in sorted(drawn.index):
        at = here[here["latents"] == size]
        ordered = at[~at["order"].str.startswith(RANDOM)]
        words = ", ".join(f"{row.recovered:.0%} by {row.order}" for row in ordered.itertuples())
        if words:
            claims.append(
                Finding(
                    f"At layer {layer}, the first {size:.0f} latents remove {words} of the KL; as many at random "
                    f"{drawn[size]:.0%}.",
                    "bridge",
                    [int(row) for row in at.index],
                )
            )
    return claims


def latent_findings(measured: Mapping[str, Table], reading: Reading) -> list[Finding]:
    """Of each top latent: what it does, what is read of it alone, and where it is largest."""
    found = []
    frame = measured["contributions"].frame
    change = shown.CHANGE if rules.paired(reading.latents.statistics) else ""
    for row in frame[(frame["layer"] == reading.layer) & frame["latent"].isin(reading.top)].itertuples():
        latent = int(row.latent)
        effect = "" if math.isnan(row.share) else f" removes {row.share:.1%} of the KL by itself and"
        read = {
            lens: _own(measured[lens].frame, reading.layer, shown.named(latent) + change)["token"].head(8)
            for lens in ("logit_lens", "patchscope")
        }
        kinds = ", ".join(f"{kinds[latent]} by {rule}" for rule, kinds in reading.latents.classes.items())
        found.append(
            Finding(
                f"Latent {latent} of layer {reading.layer} ({kinds}; nu {row.nu:.2f}){effect} is active on "
                f"{row.frequency:.2%} of the tokens. Of it, {read_as(read)}. It is largest on "
                f"{_peaks(measured['examples'].frame, reading.layer, latent)}.",
                "contributions",
                [int(row.Index)],
            )
        )
    return found


def constant_findings(measured: Mapping[str, Table], reading: Reading) -> list[Finding]:
    """What is read of the part of the difference that no latent has."""
    own = {lens: _own(measured[lens].frame, reading.layer, shown.CONSTANT) for lens in ("logit_lens", "patchscope")}
    words = read_as({lens: rows["token"] for lens, rows in own.items()})
    return [
        Finding(
            f"Of the constant part of the difference at layer {reading.layer}, which no latent has, {words}.",
            "logit_lens",
            [int(row) for row in own["logit_lens"].index],
        )
    ]


def _own(frame: pd.DataFrame, layer: int, vector: str) -> pd.DataFrame:
    """What is read of a vector and of no control."""
    here = frame["layer"] == layer
    return own_tokens(frame, here & (frame["vector"] == vector), here & (frame["why"] == "control"), most=12)


def _peaks(frame: pd.DataFrame, layer: int, latent: int, most: int = 4) -> str:
    """The tokens, each once, at which the best windows of a latent have their peaks, best first."""
    here = frame[(frame["layer"] == layer) & (frame["vector"] == shown.named(latent)) & (frame["band"] == shown.TOP)]
    best = here.sort_values("value", ascending=False)
    peaks = [
        row.tokens[max(range(len(row.tokens)), key=lambda place: _or_least(row.values[place]))]
        for row in best[["tokens", "values"]].itertuples(index=False, name="_Window")
    ]
    return ", ".join(repr(token) for token in list(dict.fromkeys(peaks))[:most]) or "no text"


def _or_least(value: float) -> float:
    return -math.inf if math.isnan(value) else value


def headline(latents: Sequence[Latents], readings: Sequence[Reading]) -> dict[str, tuple[float | int, str]]:
    """Numbers of the deepest layer, and what they are; those that are not defined are left out."""
    if not latents:
        return {}
    deepest = latents[-1]
    found = deepest.statistics
    numbers: dict[str, tuple[float | int, str]] = {
        "layer": (deepest.layer, "the deepest layer analysed (absolute, counted from 0)"),
        "rows": (found.n_rows, "tokens read"),
        "latents": (len(found.n_active), "latents of the dictionary, dead ones included"),
        "dead_latents": (int(found.dead.sum()), "latents that are active on no token"),
        "active_per_token": (found.active_per_token, "active latents per token"),
        "residual_norm": (deepest.residual_norm, "root mean square norm of the finetuned residual stream"),
    }
    for stream, explained in zip(found.streams, found.fve.tolist(), strict=True):
        numbers[f"variance_explained_{stream}"] = (explained, f"share of the variance of the {stream} explained")
    for rule, kinds in deepest.classes.items():
        for kind in (Kind.FINETUNED_ONLY, Kind.BASE_ONLY):
            name = f"{kind.replace('-', '_')}_by_{rule}"
            numbers[name] = (kinds.count(kind), f"latents that are {kind} by the {rule} rule")
    bridges = [reading.bridge for reading in readings if reading.layer == deepest.layer]
    for bridge in bridges:
        numbers["kl_base"] = (bridge.nothing, "KL of the base's activations to the finetuned output (nats per token)")
        kept = bridge.recovered.kl(bridge.recovered.base)
        numbers["kl_recovered"] = (kept, "share of that KL that the reconstruction removes")
    return {name: entry for name, entry in numbers.items() if math.isfinite(entry[0])}
