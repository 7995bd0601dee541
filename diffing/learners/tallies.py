"""What is logged of a training: sums that stay on the device and with their rank until they are asked for."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from diffing.activations.loader import ActivationBatch
from diffing.learners.codes import Codes
from diffing.learners.dictionary import Dictionary
from diffing.learners.ranks import over_ranks, world_size
from diffing.learners.sparse import decode


class Sums:
    """Named sums in float64."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self.added = 0
        """Calls since the last `drain`; the same on every rank."""

    @torch.no_grad()
    def add(self, **values: Shaped[Tensor, "..."]) -> None:
        for name, value in values.items():
            before = self._sums.get(name)
            self._sums[name] = value.double() + (0 if before is None else before.to(value.device))
        self.added += 1

    def totals(self) -> dict[str, Tensor]:
        """The sums over all ranks, on the CPU."""
        return {name: over_ranks(value, "sum").cpu() for name, value in self._sums.items()}

    def drain(self) -> dict[str, Tensor]:
        """`totals`; the sums start again from zero."""
        totals = self.totals()
        self.__init__()  # type: ignore[misc]
        return totals

    def restore(self, totals: Mapping[str, Tensor], added: int) -> None:
        """Goes on from what `totals` gave after so many calls: every rank has an equal share of it."""
        self._sums = {name: value / world_size() for name, value in totals.items()}
        self.added = added


def squares(rows: Float[Tensor, "batch width"], n_streams: int) -> Float[Tensor, " side"]:
    """Sum of squares per stream."""
    return rows.detach().square().sum(0).unflatten(0, (n_streams, -1)).sum(1)


class TrainingTally:
    """Of training batches, with the codes chosen in training."""

    def __init__(self, streams: Sequence[str]):
        """`streams` names those that the rows hold, in order."""
        self._streams, self._sums, self._rows = streams, Sums(), 0

    def add(
        self,
        losses: Mapping[str, Float[Tensor, ""]],
        codes: Codes,
        rows: Float[Tensor, "batch width"],
        error: Float[Tensor, "batch width"],
    ) -> None:
        """One batch of normalised rows. `losses` are means over it."""
        n_streams = len(self._streams)
        active = codes.offsets[-1]
        self._sums.add(**losses, active=active, total=squares(rows, n_streams), error=squares(error, n_streams))
        self._rows += len(rows) * world_size()

    def state(self) -> dict[str, object]:
        """What `restore` needs; the same on every rank, if every rank asks for it."""
        return {"sums": self._sums.totals(), "added": self._sums.added, "rows": self._rows}

    def restore(self, state: Mapping) -> None:
        self._sums.restore(state["sums"], state["added"])
        self._rows = state["rows"]

    def drain(self) -> dict[str, float]:
        """Means since the last call. FVE takes the mean of normalised rows to be what it is over all caches: 0."""
        n_batches, rows, self._rows = self._sums.added * world_size(), self._rows, 0
        sums = self._sums.drain()
        total, error, active = (sums.pop(name) for name in ("total", "error", "active"))
        return {
            **{name: float(value) / n_batches for name, value in sums.items()},
            "l0": float(active) / rows,
            "rows": rows,
            **fractions_explained(error, total, self._streams),
        }


class Evaluation:
    """Of any rows, with the codes that the shipped dictionary gives them."""

    def __init__(self, streams: Sequence[str]):
        self._streams, self._sums = streams, Sums()

    @torch.no_grad()
    def add(self, batch: ActivationBatch, learner: Dictionary) -> None:
        """A batch of any size."""
        rows = learner.recipe.rows(batch.base, batch.finetuned)
        codes, normalised = learner.codes(rows), learner.normalise(rows)
        error = normalised - decode(codes, learner.decoder, learner.decoder_bias)
        n_streams = len(self._streams)
        self._sums.add(
            rows=torch.tensor(len(rows), device=rows.device),
            active=codes.offsets[-1],
            per_latent=codes.latents.bincount(minlength=codes.n_latents),
            sum=normalised.double().sum(0),
            square=squares(normalised.double(), n_streams),
            error=squares(error.double(), n_streams),
        )

    def drain(self) -> dict[str, float]:
        """Over all rows since the last call, however they were cut into batches; FVE is about their own mean."""
        sums = self._sums.drain()
        rows = sums["rows"]
        total = sums["square"] - squares(sums["sum"][None], len(self._streams)) / rows
        return {
            "l0": float(sums["active"] / rows),
            "dead": float((sums["per_latent"] == 0).double().mean()),
            **fractions_explained(sums["error"], total, self._streams),
        }


def fractions_explained(
    error: Float[Tensor, " side"], total: Float[Tensor, " side"], streams: Sequence[str]
) -> dict[str, float]:
    """Fraction of variance explained per stream, from sums of squares."""
    return {f"fve_{name}": float(1 - e / t) for name, e, t in zip(streams, error, total, strict=True)}
