"""What the KL divergence found, in words, each with the rows that carry it."""

from collections.abc import Mapping, Sequence

from diffing.methods.kl.measured import Measured
from diffing.methods.kl.tables import LOWERED, RAISED, statistics
from diffing.report import Finding, Table

NAMED = 10
"""Tokens named in a sentence."""
PEAKS, CHANGED = 3, 3
"""Contexts quoted of a corpus, and items of each."""
QUOTED = 60
"""Characters quoted of a context."""


def no_difference(measured: Sequence[Measured]) -> Finding:
    tokens, texts = (sum(count) for count in zip(*((len(e.values), len(e.text_means)) for e in measured), strict=True))
    return Finding(
        f"No difference: after each of {tokens:,} tokens of {texts:,} texts both sides give every next token exactly "
        "the same probability.",
        "statistics",
    )


def findings(measured: Sequence[Measured], tables: Mapping[str, Table]) -> list[Finding]:
    """Where corpora differ first, then each corpus, the most divergent one first."""
    ordered = sorted(measured, key=lambda each: -each.mean)
    found = [_between(ordered, tables["statistics"])] if len(measured) > 1 else []
    for each in ordered:
        found.append(_size(each, tables["statistics"]))
        if each.main.any():
            found += [_vocabulary(each, tables["vocabulary"]), _tokens(each, tables["by_token"])]
            found.append(_peaks(each, tables["peaks"]))
    return found


def _between(ordered: Sequence[Measured], table: Table) -> Finding:
    most, least = ordered[0], ordered[-1]
    times = (
        f"{most.mean / least.mean:.1f} times that on {least.corpus}, where it is least ({least.mean:.3g} nats)"
        if least.mean > 0
        else f"against exactly 0 on {least.corpus}"
    )
    return Finding(
        f"{most.kinds[0].formula} of the next token is largest on {most.corpus}: {most.mean:.3g} nats per token, "
        f"{times}.",
        "statistics",
        [_row(table, each) for each in (most, least)],
    )


def _size(each: Measured, table: Table) -> Finding:
    told = statistics(each.main, (50, 99))
    return Finding(
        f"On {each.corpus}, {each.kinds[0].formula} of the next token is {told['mean']:.3g} nats per token on average "
        f"({told['count']:,} tokens of {len(each.text_means):,} texts). Half of the tokens have less than "
        f"{told['p50']:.2g}, one in a hundred has more than {told['p99']:.2g}, and the largest 1 % of them carry "
        f"{told['top_share']:.0%} of it.",
        "statistics",
        [_row(table, each)],
    )


def _vocabulary(each: Measured, table: Table) -> Finding:
    rows = table.frame[table.frame["corpus"] == each.corpus]
    named = {direction: rows[rows["direction"] == direction].head(NAMED) for direction in (RAISED, LOWERED)}
    told = {
        direction: ", ".join(
            f"{row.token!r} ({_percent(row.probability_base)} to {_percent(row.probability_finetuned)})"
            for row in part.itertuples()
        )
        for direction, part in named.items()
    }
    shares = {direction: rows.loc[rows["direction"] == direction, "share"].sum() for direction in told}
    return Finding(
        f"On {each.corpus}, what the finetuned model makes likelier and adds most to the divergence: "
        f"{told[RAISED] or 'nothing'} (mean probability, base to finetuned); what it makes less likely: "
        f"{told[LOWERED] or 'nothing'}. The listed items carry {shares[RAISED]:.0%} and {shares[LOWERED]:.0%} of the "
        "divergence.",
        "vocabulary",
        [int(row) for part in named.values() for row in part.index],
    )


def _tokens(each: Measured, table: Table) -> Finding:
    rows = table.frame[table.frame["corpus"] == each.corpus].head(NAMED)
    told = ", ".join(f"{row.token!r} ({row.mean:.2g} nats, {row.count} times)" for row in rows.itertuples(name="Row"))
    return Finding(
        f"On {each.corpus}, the expectation changes most after {told}."
        if told
        else f"On {each.corpus}, no token was met often enough to be listed by itself.",
        "by_token",
        [int(row) for row in rows.index],
    )


def _peaks(each: Measured, table: Table) -> Finding:
    rows = table.frame[(table.frame["corpus"] == each.corpus) & (table.frame["rank"] <= PEAKS)]
    told = []
    for (_, value, context), part in rows.groupby(["rank", "value", "context"], sort=False):
        changed = ", ".join(
            f"{row.token!r} {_percent(row.probability_base)} to {_percent(row.probability_finetuned)}"
            for row in part.head(CHANGED).itertuples()
        )
        told.append(f"{value:.3g} nats after {_end(context)!r} ({changed})")
    return Finding(
        f"Largest single values on {each.corpus}, with the probabilities that changed from base to finetuned: "
        + "; ".join(told)
        + ".",
        "peaks",
        [int(row) for row in rows.index],
    )


def _percent(probability: float) -> str:
    return f"{100 * probability:.2g}%"


def _end(context: str) -> str:
    """The last words of a context."""
    return context if len(context) <= QUOTED else "…" + context[-QUOTED:]


def _row(table: Table, each: Measured) -> int:
    """The row of a corpus for all its tokens."""
    frame = table.frame
    here = (frame["corpus"] == each.corpus) & (frame["over"] == "tokens")
    return int(frame.index[here & (frame["divergence"] == each.kinds[0].formula)][0])
