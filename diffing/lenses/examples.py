"""Max-activating examples: for each of many scores, the token windows of a corpus where it is largest or smallest.

Whatever gives each token a number can be shown this way: projections, latent activations, norms, KL. A method walks
over documents in blocks (`document_blocks` reads them from a cache; another source makes its own `Texts`), scores every
token, and adds the block to a `TopExamples`, which keeps the best `k` windows of each score together with the exact
value of each of their tokens: nothing is read or computed twice, and no more than the heap and one block is held.

A document gives one example per score, the window around its peak. Windows of the same tokens count once, at the best
value. Of equal values the earlier document is better, and within a document the earlier token. The result depends on no
block size, order of blocks, or split that is merged.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import pandas as pd
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.errors import InvalidSetting, NonFiniteActivations, SchemaMismatch
from diffing.lenses.texts import Texts, windows
from diffing.report import Table, View

_AT_ONCE = 1 << 20
"""Window tokens merged at a time: bounds what is held beside the heap and the block."""
_EMPTY = -math.inf
_COLUMNS = {
    "corpus": "corpus that the window is from",
    "rank": "place among the windows of this corpus, 1 is the most extreme",
    "document": "number of the document in its corpus, counted from 0",
    "position": "position within the document of the token that the window is around, counted from 0 (tokens)",
    "tokens": "decoded tokens of the window, white space kept",
}


@dataclass(frozen=True)
class Examples:
    """Windows, by score, then largest before smallest, then rank."""

    score: Int[Tensor, " top"]
    smallest: Bool[Tensor, " top"]
    """False: among the largest values of the score."""
    rank: Int[Tensor, " top"]
    """1 is the most extreme."""
    value: Float[Tensor, " top"]
    """What the window was ranked by."""
    document: Int[Tensor, " top"]
    position: Int[Tensor, " top"]
    """Of the peak within its document, counted from 0."""
    ids: Int[Tensor, "top pos"]
    """Tokens of the window, -1 after its end. The peak is at `min(position, before)`."""
    trace: Float[Tensor, "top pos"]
    """Score of each token, NaN where it has none."""


class _Windows(NamedTuple):
    """Candidates of several scores, best first where they are held; an unused place has value -inf."""

    value: Float[Tensor, "score top"]
    document: Int[Tensor, "score top"]
    position: Int[Tensor, "score top"]
    key: Int[Tensor, "score top"]
    """Hash of the window's tokens."""
    ids: Int[Tensor, "score top pos"]
    trace: Float[Tensor, "score top pos"]


class TopExamples:
    """The `k` best windows of each of `n_scores` scores on one corpus: up to `before` tokens, the peak, `after` tokens.

    With `both_ends` the smallest values are kept too. Scores are compared and kept as float32, on `device`, where they
    are added. Holds 8 bytes per score, end, window and token.
    """

    def __init__(
        self,
        n_scores: int,
        k: int,
        before: int,
        after: int,
        *,
        both_ends: bool = False,
        device: torch.device | str = "cpu",
    ):
        if min(n_scores, k) < 1 or min(before, after) < 0:
            raise InvalidSetting(
                f"expected n_scores and k of 1 or more, before and after of 0 or more; got {n_scores}, {k}, {before}, "
                f"{after}"
            )
        self.n_scores, self.k, self.before, self.after, self.both_ends = n_scores, k, before, after, both_ends
        width, places = before + 1 + after, (n_scores * (2 if both_ends else 1), k)
        # Multilinear hashing: two windows that differ collide with a chance below 2^-40, in every process alike.
        generator = torch.Generator().manual_seed(0)
        self._multipliers = torch.randint(-(2**63), 2**63 - 1, (width,), generator=generator).to(device)
        self._held = _Windows(
            torch.full(places, _EMPTY, device=device),
            torch.zeros(places, dtype=torch.int64, device=device),
            torch.zeros(places, dtype=torch.int64, device=device),
            torch.zeros(places, dtype=torch.int64, device=device),
            torch.full((*places, width), -1, dtype=torch.int32, device=device),
            torch.full((*places, width), math.nan, device=device),
        )

    def add(
        self,
        scores: Float[Tensor, "token score"],
        texts: Texts,
        ranked_by: Float[Tensor, "document score"] | None = None,
    ) -> None:
        """Scores of documents that were not added before, in any order of blocks.

        `ranked_by` gives each document a value to be ranked by, such as its mean, in place of its peak; the window
        stays around the peak. Raises NonFiniteActivations for a NaN, or an infinite peak.
        """
        texts.check(scores, self.n_scores)
        scores, texts = scores.detach().float(), texts.to(scores.device)
        values, at = self._peaks(scores, texts)
        _check_finite(values, texts, self.n_scores)
        if ranked_by is not None:
            values = (torch.cat([ranked_by, -ranked_by], 1) if self.both_ends else ranked_by).float()
            _check_finite(values, texts, self.n_scores)
        numbers = texts.first + torch.arange(len(texts), device=scores.device)
        pending = (texts.rows.diff() > 0)[:, None].expand_as(values).clone()
        while True:  # the k best candidates of each score raise the bar for the rest, which seldom has to be looked at
            pending &= self._admits(values, numbers)
            columns = pending.any(0).nonzero()[:, 0]
            if not len(columns):
                return
            for part in self._parts(columns):
                candidates = pending[:, part]
                most = min(self.k, int(candidates.sum(0).max()))
                best, which = values[:, part].masked_fill(~candidates, _EMPTY).topk(most, dim=0)
                self._merge(part, self._windows(part, best.T, which.T, at, scores, texts))
                pending[which, part] = False

    def merge(self, other: "TopExamples") -> None:
        """As if everything added to `other`, other documents of the same corpus, had been added here."""
        mine, theirs = ((t.n_scores, t.k, t.before, t.after, t.both_ends) for t in (self, other))
        if mine != theirs:
            raise InvalidSetting(
                f"examples to merge: expected the same (n_scores, k, before, after, both_ends), got {mine} and {theirs}"
            )
        for part in self._parts(torch.arange(len(self._held.value), device=self._held.value.device)):
            fields = (field[part.to(field.device)].to(part.device) for field in other._held)
            self._merge(part, _Windows(*fields))

    def result(self, scores: Sequence[int] | None = None, above: float = _EMPTY) -> Examples:
        """What is held of some scores, or of all of them.

        `above`: the least a value must exceed; 0 leaves out latents that never fire. The smallest values of a score
        must lie below `-above`.
        """
        chosen = torch.arange(self.n_scores) if scores is None else torch.tensor(scores, dtype=torch.int64)
        ends = torch.arange(2 if self.both_ends else 1)
        columns = (chosen[:, None] + self.n_scores * ends).flatten().to(self._held.value.device)
        found = _Windows(*(field[columns].cpu() for field in self._held))
        column, place = (found.value > above).nonzero(as_tuple=True)
        column_of = columns.cpu()[column]
        smallest = column_of >= self.n_scores
        value, document, position, _, ids, trace = (field[column, place] for field in found)
        value = torch.where(smallest, -value, value)
        return Examples(column_of % self.n_scores, smallest, place + 1, value, document, position, ids, trace)

    def _parts(self, columns: Int[Tensor, " columns"]) -> Sequence[Int[Tensor, " part"]]:
        return columns.split(max(1, _AT_ONCE // (self.k * len(self._multipliers))))

    def _peaks(
        self, scores: Float[Tensor, "token score"], texts: Texts
    ) -> tuple[Float[Tensor, "document column"], Int[Tensor, "document column"]]:
        """Largest value of each document and its first place among the document's rows; 0 for one without scores.

        The columns of the small end hold negated values.
        """
        values = torch.zeros((len(texts), len(self._held.value)), device=scores.device)
        at = torch.zeros_like(values, dtype=torch.int64)
        for document, (start, stop) in enumerate(pairwise(texts.rows.tolist())):
            if start < stop:
                rows, n = scores[start:stop], self.n_scores
                torch.max(rows, 0, out=(values[document, :n], at[document, :n]))
                if self.both_ends:
                    torch.min(rows, 0, out=(values[document, n:], at[document, n:]))
        values[:, self.n_scores :].neg_()
        return values, at

    def _admits(
        self, values: Float[Tensor, "document column"], numbers: Int[Tensor, " document"]
    ) -> Bool[Tensor, "document column"]:
        """Where a candidate is better than the worst that is held."""
        worst, latest = self._held.value[:, -1], self._held.document[:, -1]
        return (values > worst) | ((values == worst) & (numbers[:, None] < latest))

    def _windows(
        self,
        part: Int[Tensor, " score"],
        value: Float[Tensor, "score top"],
        document: Int[Tensor, "score top"],
        at: Int[Tensor, "all_documents all_columns"],
        scores: Float[Tensor, "token all_scores"],
        texts: Texts,
    ) -> _Windows:
        """The windows around the peaks of some documents of a block."""
        position = texts.n_skipped[document] + at[document, part[:, None]]
        score = (part % self.n_scores)[:, None].expand_as(document)
        ids, trace = windows(texts, scores, score, document, position, self.before, self.after)
        key = ((ids.long() + 1) * self._multipliers).sum(-1)
        return _Windows(value, texts.first + document, position, key, ids, trace)

    def _merge(self, part: Int[Tensor, " score"], new: _Windows) -> None:
        both = _Windows(*(torch.cat([mine[part], added], 1) for mine, added in zip(self._held, new, strict=True)))
        both.value.masked_fill_(_repeated(both), _EMPTY)
        order = _best_first(both)[:, : self.k]
        each = torch.arange(len(part), device=part.device)[:, None]
        for mine, field in zip(self._held, both, strict=True):
            mine.index_copy_(0, part, field[each, order])


def _check_finite(values: Float[Tensor, "document column"], texts: Texts, n_scores: int) -> None:
    bad = (~values.isfinite() & (texts.rows.diff() > 0)[:, None]).nonzero()
    if len(bad):
        document, column = bad[0].tolist()
        raise NonFiniteActivations(
            f"expected finite numbers, got {values[document, column].item()} for score {column % n_scores} of document "
            f"{texts.first + document}"
        )


def _best_first(windows: _Windows) -> Int[Tensor, "score top"]:
    """Order by larger value, then smaller document."""
    order = windows.document.argsort(dim=1, stable=True)
    return order.gather(1, windows.value.gather(1, order).argsort(dim=1, descending=True, stable=True))


def _repeated(windows: _Windows) -> Bool[Tensor, "score top"]:
    """Where a better window of the same score has the same tokens."""
    order = _best_first(windows)
    order = order.gather(1, windows.key.gather(1, order).argsort(dim=1, stable=True))
    key = windows.key.gather(1, order)
    same = torch.zeros_like(key, dtype=torch.bool)
    same[:, 1:] = key[:, 1:] == key[:, :-1]
    return torch.zeros_like(same).scatter(1, order, same)


def example_table(
    found: Mapping[str, Examples],
    tokenizer: PreTrainedTokenizerBase,
    about: str,
    *,
    labels: Mapping[str, Sequence[object]],
    columns: Mapping[str, str],
    unit: str,
) -> Table:
    """The examples of each corpus as token windows to be drawn in colour.

    `labels` names the scores: a column of the table each, with one entry per score; `columns` describes those columns.
    `unit`: what a value is, with its unit. A column `end` is added where the smallest values were looked for.
    """
    if clash := [name for name in labels if name in _COLUMNS or name in ("end", "value", "values")]:
        raise SchemaMismatch(f"table '{about}': label columns {clash} have the names of columns that every table has")
    frames = [_frame(corpus, examples, tokenizer, labels) for corpus, examples in found.items()]
    frame = pd.concat([rows for rows in frames if len(rows)] or frames, ignore_index=True)
    described = {
        **columns,
        "end": "largest: highest values of the score; smallest: lowest",
        **_COLUMNS,
        "value": f"{unit}: what the window is ranked by",
        "values": f"{unit}: of each token of the window, NaN for a token without one",
    }
    if "smallest" not in frame["end"].values:
        frame = frame.drop(columns="end")
        del described["end"]
    group = [name for name in (*labels, "end", "corpus") if name in frame.columns]
    return Table(frame, about, described, View("heat", "tokens", group=group, weight="values"))


def stacked(tables: Sequence[Table]) -> Table:
    """The rows of tables that differ in nothing else, in one."""
    frame = pd.concat([table.frame for table in tables], ignore_index=True)
    return replace(tables[0], frame=frame)


def _frame(
    corpus: str, examples: Examples, tokenizer: PreTrainedTokenizerBase, labels: Mapping[str, Sequence[object]]
) -> pd.DataFrame:
    traces = zip(examples.trace.double(), (examples.ids >= 0).sum(1).tolist(), strict=True)
    return pd.DataFrame(
        {
            **{name: [entries[score] for score in examples.score.tolist()] for name, entries in labels.items()},
            "end": ["smallest" if small else "largest" for small in examples.smallest.tolist()],
            "corpus": corpus,
            "rank": examples.rank.numpy(),
            "value": examples.value.double().numpy(),
            "document": examples.document.numpy(),
            "position": examples.position.numpy(),
            "tokens": _decoded(examples.ids, tokenizer),
            "values": [trace[:n].tolist() for trace, n in traces],
        }
    )


def _decoded(ids: Int[Tensor, "top pos"], tokenizer: PreTrainedTokenizerBase) -> list[list[str]]:
    """Each token by itself. Some tokenizers strip the space before the first token, so it is decoded as a second."""
    texts: dict[int, str] = {}
    for token in ids[ids >= 0].unique().tolist():
        once, twice = tokenizer.batch_decode([[token], [token, token]], clean_up_tokenization_spaces=False)
        texts[token] = twice[len(once) :]
    return [[texts[token] for token in window if token >= 0] for window in ids.tolist()]
