"""What activation analysis found, in words, each number and each list of tokens with its control beside it."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from diffing.lenses.readouts import listed, own_tokens
from diffing.lenses.token_shifts import ALL
from diffing.methods.activation_analysis.measuring import Measured
from diffing.methods.activation_analysis.tables import BASE_MEAN, RANDOM, base_consistency, consistency
from diffing.report import Finding, Table

_LENSES = {"logit_lens": "the logit lens", "patchscope": "the patchscope"}
SAME_CONTEXT = 0.9999
"""Consistency of the base from which the tokens of a group have one and the same context in all texts."""
_KINDS = {"position": "first positions", "token": "chat-template tokens"}


def findings(measured: Sequence[Measured], tables: Mapping[str, Table], least_tokens: int) -> list[Finding]:
    """Of the corpora and layers that differ, the most moved first."""
    found = _corpora_compared(measured, tables["summary"])
    for each in sorted((m for m in measured if m.differs), key=lambda m: -m.relative_size):
        found += [_size(each, tables["summary"]), _mean(each, tables)]
        for kind in _KINDS:
            found += _group(each, tables, kind, least_tokens)
        found.append(_tokens(each, tables["windows"]))
    return found


def no_difference(measured: Sequence[Measured]) -> Finding:
    layers = ", ".join(str(layer) for layer in sorted({each.layer for each in measured}))
    n_tokens = sum(each.overall.count for each in measured if each.layer == measured[0].layer)
    return Finding(f"No difference: at layers {layers} both sides have the same activations, on all {n_tokens:,} "
                   "tokens.", "summary")  # fmt: skip


def _corpora_compared(measured: Sequence[Measured], summary: Table) -> list[Finding]:
    """Per layer, which corpus is moved most, if there are several."""
    found = []
    for layer in sorted({each.layer for each in measured}):
        own = sorted((each for each in measured if each.layer == layer), key=lambda each: -each.relative_size)
        if len(own) > 1 and own[0].differs:
            words = ", ".join(f"{each.corpus} by {each.relative_size:.1%}" for each in own)
            rows = _rows(summary.frame, layer=layer, measure="norm_difference")
            found.append(
                Finding(f"At layer {layer}, mean shifts as a share of the base's mean norm: {words}.", "summary", rows)
            )
    return found


def _size(each: Measured, summary: Table) -> Finding:
    shift, base, finetuned = (each.summaries[name] for name in ("norm_difference", "norm_base", "norm_finetuned"))
    cosine = each.summaries.get("cosine_distance")
    angle = f"The mean cosine distance is {cosine.mean:.2g} (at most {cosine.maximum:.2g}). " if cosine else ""
    norms = (
        f"{finetuned.mean / base.mean:.3f} times the base's" if base.mean else "not comparable with the base's zeros"
    )
    unmoved = f"; {shift.n_zero / shift.count:.1%} of tokens are not moved at all" if shift.n_zero else ""
    return Finding(
        f"On {each.corpus}, layer {each.layer}, the finetune moves a token by {shift.mean:.3g} on average, "
        f"{each.relative_size:.1%} of the base's mean norm (standard deviation {shift.std:.3g}, at most "
        f"{shift.maximum:.3g}, {shift.count:,} tokens{unmoved}). {angle}The finetuned norms are {norms}.",
        "summary",
        _rows(summary.frame, corpus=each.corpus, layer=each.layer),
    )


def _mean(each: Measured, tables: Mapping[str, Table]) -> Finding:
    mean, means = each.overall, tables["mean_vectors"].frame
    claim = (
        f"On {each.corpus}, layer {each.layer}, the mean difference over all tokens has {consistency(mean):.1%} of the "
        f"mean size of single differences ({mean.n_texts**-0.5:.1%} by chance, {base_consistency(mean):.1%} for the "
        f"base itself). {_read(each, ALL, tables)}"
    )
    rows = _lens_rows(each, ALL, tables["logit_lens"].frame)
    if rows:
        return Finding(claim, "logit_lens", rows)
    return Finding(claim, "mean_vectors", _rows(means, corpus=each.corpus, layer=each.layer, vector=ALL))


def _group(each: Measured, tables: Mapping[str, Table], kind: str, least_tokens: int) -> list[Finding]:
    """The group of a kind with the largest mean difference, of those with tokens enough, in more than one context."""
    groups = [mean for mean in each.means if mean.group.startswith(kind) and mean.count >= least_tokens]
    groups = [mean for mean in groups if base_consistency(mean) < SAME_CONTEXT]
    most = max(groups, key=lambda mean: float(mean.mean.norm()), default=None)
    if most is None or not most.mean.any():
        return []
    norm, overall = float(most.mean.norm()), float(each.overall.mean.norm())
    times = f", {norm / overall:.1f} times the overall mean" if overall else ""
    claim = (
        f"Of {_KINDS[kind]} on {each.corpus}, layer {each.layer}, {most.group} has the largest mean difference: "
        f"{norm:.3g}{times} ({most.count:,} tokens, consistency {consistency(most):.1%}; {most.n_texts**-0.5:.1%} by "
        f"chance, {base_consistency(most):.1%} for the base itself). {_read(each, most.group, tables)}"
    )
    rows = _rows(tables["mean_vectors"].frame, corpus=each.corpus, layer=each.layer, vector=most.group)
    return [Finding(claim, "mean_vectors", rows)]


def _read(each: Measured, vector: str, tables: Mapping[str, Table]) -> str:
    """What the lenses read in a vector and in neither control, and what they read in the controls."""
    told = []
    for name, lens in _LENSES.items():
        frame = tables[name].frame
        here = (frame["corpus"] == each.corpus) & (frame["layer"] == each.layer)
        controls = {control: here & (frame["vector"] == control) for control in (BASE_MEAN, RANDOM)}
        own = own_tokens(frame, here & (frame["vector"] == vector), controls[BASE_MEAN] | controls[RANDOM], most=6)
        nothing = pd.Series(False, frame.index)
        others = "; ".join(
            f"{control}: {listed(own_tokens(frame, rows, nothing, most=2)['token'])}"
            for control, rows in controls.items()
        )
        told.append(f"{lens} reads {listed(own['token'])} ({others})")
    return f"Of it, {', and '.join(told)}."


def _tokens(each: Measured, windows: Table) -> Finding:
    """Where the largest shifts are, beside where the base's own norms are largest."""
    here = windows.frame[(windows.frame["corpus"] == each.corpus) & (windows.frame["layer"] == each.layer)]
    at = {score: _peaks(here[here["score"] == f"max {score}"]) for score in ("norm_difference", "norm_base")}
    far = here[here["score"] == "max cosine_distance"]
    first = here[here["score"] == "mean cosine_distance"].head(1)
    text = "".join(first["tokens"].iloc[0]).strip() if len(first) else ""
    turned = f"; the tokens turned furthest are {_peaks(far)}" if len(far) else ""
    excerpt = (
        f" The text turned furthest on average (cosine distance {first['value'].iloc[0]:.2g}, against "
        f"{each.summaries['cosine_distance'].mean:.2g} over all texts) has: {text!r}."
        if text and "cosine_distance" in each.summaries
        else ""
    )
    return Finding(
        f"On {each.corpus}, layer {each.layer}, the largest differences are at {at['norm_difference']} (the base's "
        f"largest norms: {at['norm_base']}){turned}.{excerpt}",
        "windows",
        [int(row) for row in here.index[here["score"] == "max norm_difference"]],
    )


def _peaks(windows: pd.DataFrame) -> str:
    """The tokens with the largest value of each window, best window first, each token once."""
    peaks = [
        tokens[int(np.nanargmax(values))] for tokens, values in zip(windows["tokens"], windows["values"], strict=True)
    ]
    return listed(pd.Series(list(dict.fromkeys(peaks))))


def _rows(frame: pd.DataFrame, **where: object) -> list[int]:
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return [int(row) for row in frame.index]


def _lens_rows(each: Measured, vector: str, frame: pd.DataFrame) -> list[int]:
    """The first rows of a vector's readout."""
    return _rows(frame, corpus=each.corpus, layer=each.layer, vector=vector, direction="promoted")[:10]
