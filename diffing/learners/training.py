"""Fits a dictionary by gradient. One object holds all that the next step depends on, so a checkpoint of it resumes
exactly.

Nothing in a step waits for the device but the selection of active latents: what is logged is summed there and fetched
every `LOG_EVERY` steps. Data-parallel ranks choose active latents together and share counters, so that they take the
steps that one device would take with the rows of all.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Float, Int64
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import Logger
from torch import Tensor

from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.loader import POOL_ROWS, ActivationBatch
from diffing.activations.moments import Moments, Normaliser
from diffing.activations.order import generator, in_shares
from diffing.activations.store import ActivationCache
from diffing.axes import Side, Stream
from diffing.errors import InvalidSetting, MissingInput, NonFiniteActivations
from diffing.learners.base import LEARNERS, Recipe
from diffing.learners.codes import Codes, above, top_k
from diffing.learners.dead import DeadLatents, revival_loss
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.fitting import fit
from diffing.learners.pace import Pace
from diffing.learners.ranks import SharedBatchTopK, over_ranks
from diffing.learners.schedules import Training
from diffing.learners.sparse import autoencode, sparse_pays
from diffing.learners.tallies import Evaluation, TrainingTally

log = logging.getLogger(__name__)
LOG_EVERY = 50
ADAM_EPSILON = 6.25e-10
"""For losses of about 1, as in arXiv 2406.04093: latents that are seldom active have gradients near the usual 1e-8."""
THRESHOLD_RATE = 1e-3
"""Weight of a batch in the running mean of thresholds, once a thousand are in it."""


class Losses(NamedTuple):
    """What a step minimises is their sum."""

    reconstruction: Float[Tensor, ""]
    sparsity: Float[Tensor, ""]
    auxiliary: Float[Tensor, ""]

    def total(self) -> Float[Tensor, ""]:
        return self.reconstruction + self.sparsity + self.auxiliary


class DictionaryFit(LightningModule):
    """The training of one dictionary: `train` runs it, `dictionary` is what comes out."""

    n_thresholds: Int64[Tensor, ""]
    """Batches in the running mean of the smallest active score, which is the learner's threshold."""

    def __init__(self, learner: Dictionary, settings: Training, steps: int):
        """`learner` with its normalisers set; its weights are initialised here."""
        super().__init__()
        self.automatic_optimization = False
        self.settings, self.steps, self.steps_done = settings, steps, 0
        self.learner = learner
        learner.initialise(generator("dictionary", settings.seed))
        for parameter in learner.parameters():
            parameter.requires_grad_(True)
        self.dead = DeadLatents(learner.sparsity.n_latents, settings.dead_after_rows)
        self.register_buffer("n_thresholds", torch.zeros((), dtype=torch.int64))
        self._batch_top_k = SharedBatchTopK()
        stream = learner.recipe.stream
        streams = list(Side) if stream is None else [stream]
        self._tally, self._evaluation = TrainingTally(streams), Evaluation(streams)
        self._pace = Pace()
        """Since the first batch of the tally was begun, less the time that no process trained."""
        self._history: dict[str, list[float | int]] = {}

    @classmethod
    def of(
        cls,
        kind: type[Dictionary],
        caches: Sequence[ActivationCache],
        layer: int,
        sparsity: Sparsity,
        settings: Training | None = None,
        *,
        stream: Stream = Stream.DIFFERENCE,
        weights: Sequence[float | int] | None = None,
        **particular: object,
    ) -> "DictionaryFit":
        """A fit of a `SAE` of one stream, or of a `Crosscoder` of both sides, to the caches' rows.

        `weights` are the shares of the caches in the rows (None: by their sizes); `particular` is what the kind's
        `settings_of` takes. Raises ZeroVariance if a stream does not vary: for the difference, the models are the same.
        """
        settings = settings or Training()
        n_rows = [cache.n_rows for cache in caches]
        steps = settings.steps(sum(n_rows if weights is None else in_shares(n_rows, weights)))
        if settings.k_start is not None and not 1 <= settings.k_start <= sparsity.n_latents:
            raise InvalidSetting(f"k_start={settings.k_start}; expected 1 to n_latents={sparsity.n_latents}")
        recipe_settings = {
            **kind.settings_of(sparsity, **particular),
            "training": asdict(settings),
            "steps": steps,
            "weights": None if weights is None else list(weights),
        }
        name = next(name for name, (_, class_name) in LEARNERS.items() if class_name == kind.__name__)
        recipe = Recipe.of(name, caches, layer, stream if kind.n_streams == 1 else None, recipe_settings)
        streams = [stream] if kind.n_streams == 1 else [Stream(side) for side in Side]
        learner = kind(recipe)
        learner.set_normalisers([_normaliser(caches, each, layer) for each in streams])
        return cls(learner, settings, steps)

    def dictionary(self) -> Dictionary:
        """A copy of the dictionary as it is now, with what was logged so far."""
        learner = type(self.learner)(self.learner.recipe)
        learner.load_state_dict(self.learner.state_dict())
        learner.history = {name: list(values) for name, values in self._history.items()}
        return learner

    def losses(self, rows: Float[Tensor, "batch width"]) -> tuple[Losses, Codes, Float[Tensor, "batch width"]]:
        """Of normalised rows at the current step, with the codes and the error row - reconstruction."""
        learner, settings = self.learner, self.settings
        weight = learner.score_weight()
        reconstruction, codes = autoencode(
            rows, learner.encoder, learner.encoder_bias, learner.decoder, learner.decoder_bias,
            self._selection(None if weight is None else weight.detach()),
            centred=learner.centred,
            encoder_dtype=torch.bfloat16 if settings.precision == "bfloat16" else None,
            sparse=self._sparse(),
        )  # fmt: skip
        error = rows - reconstruction
        auxiliary = sparsity = error.new_zeros(())
        if settings.l1_coefficient:
            scores = codes.values if weight is None else codes.values * weight[codes.latents]
            size = math.sqrt(learner.recipe.d_model)
            sparsity = settings.l1_coefficient * scores.sum() / (len(rows) * size)
        if settings.aux_alpha and len(candidates := self.dead.candidates(self.steps_done)):
            k = settings.aux_k or learner.recipe.d_model // 2
            with torch.autocast(self.device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
                loss = revival_loss(learner, self.dead, candidates, rows, error, k)
            auxiliary = settings.aux_alpha * loss
        return Losses(self._reconstruction_loss(error), sparsity, auxiliary), codes, error

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        rows = self.learner.normalise(self.learner.recipe.rows(batch.base, batch.finetuned))
        losses, codes, error = self.losses(rows)
        optimizer = cast(torch.optim.Optimizer, self.optimizers())
        for group in optimizer.param_groups:
            group["lr"] = self.settings.lr * self.settings.lr_factor(self.steps_done, self.steps)
        optimizer.zero_grad()
        self.manual_backward(losses.total())
        self.learner.confine_gradients()
        norm = torch.nn.utils.clip_grad_norm_(self.learner.parameters(), self.settings.clip)
        self._average_threshold(codes)  # of the weights that chose the codes
        optimizer.step()
        self.learner.confine_weights()
        self.dead.count(codes)
        self._tally.add({"loss": losses.total(), **losses._asdict(), "gradient_norm": norm}, codes, rows, error)
        self.steps_done += 1
        if self.steps_done % LOG_EVERY == 0 or self.steps_done == self.steps:
            self._log()

    def validation_step(self, batch: ActivationBatch, batch_idx: int) -> None:
        """Of what would be shipped now. Changes nothing that training depends on."""
        self._evaluation.add(batch, self.learner)

    def on_validation_epoch_end(self) -> None:
        self._send({f"validation/{name}": value for name, value in self._evaluation.drain().items()})

    def configure_optimizers(self) -> torch.optim.Optimizer:
        parameters = list(self.learner.parameters())
        if self.settings.optimizer == "adam":
            return torch.optim.Adam(parameters, self.settings.lr, eps=ADAM_EPSILON, fused=True)
        try:
            from bitsandbytes.optim import Adam8bit
        except ImportError as error:
            raise MissingInput("optimizer=adam_8bit needs the package bitsandbytes: install it, or use adam") from error
        return Adam8bit(parameters, self.settings.lr, eps=ADAM_EPSILON)

    def on_train_start(self) -> None:
        self._pace.start(self.trainer)

    def on_save_checkpoint(self, checkpoint: dict[str, object]) -> None:
        checkpoint["fit"] = {
            "recipe": self.learner.recipe.digest,
            "steps_done": self.steps_done,
            "tally": self._tally.state(),
            "pace": self._pace.state(self.trainer),
            "history": self._history,
        }

    def on_load_checkpoint(self, checkpoint: Mapping) -> None:
        """Raises InvalidSetting for a checkpoint of another training."""
        stored = checkpoint.get("fit", {})
        if stored.get("recipe") != self.learner.recipe.digest:
            raise InvalidSetting(
                "the checkpoint to resume from is of another training (other caches or settings): "
                "delete it to start over, or set the settings back"
            )
        self.steps_done, self._history = stored["steps_done"], stored["history"]
        self._tally.restore(stored["tally"])
        self._pace.restore(stored["pace"])
        log.info("resuming layer %d at step %d of %d", self.learner.recipe.layer, self.steps_done, self.steps)

    def _selection(self, weight: Tensor | None) -> Callable[[Tensor], Codes]:
        sparsity = self.learner.sparsity
        if sparsity.activation == "relu":
            return lambda pre: above(pre, 0.0)
        k = self._k()
        if sparsity.activation == "top_k":
            return lambda pre: top_k(pre, k, weight)
        return lambda pre: self._batch_top_k(pre, k, weight)

    def _k(self) -> int:
        return self.settings.k_at(self.steps_done, cast(int, self.learner.sparsity.k))

    def _sparse(self) -> bool:
        sparsity = self.learner.sparsity
        return sparsity.activation != "relu" and sparse_pays(self._k(), sparsity.n_latents, self.device)

    def _reconstruction_loss(self, error: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
        """1 for predicting the mean: normalised rows have d_model as their mean square, in each stream."""
        if self.settings.loss == "squared":
            return error.square().mean()
        norms = torch.linalg.vector_norm(error.unflatten(1, tuple(self.learner.mean.shape)), dim=2)
        return norms.mean() / math.sqrt(self.learner.recipe.d_model)

    @torch.no_grad()
    def _average_threshold(self, codes: Codes) -> None:
        """A mean of equal weights at first: the first batch, or any other, has no more to say than the rest."""
        if self.learner.sparsity.activation != "batch_top_k" or self.steps_done < self.settings.threshold_from(
            self.steps
        ):
            return
        weight = self.learner.score_weight()
        scores = codes.values.detach() if weight is None else codes.values.detach() * weight[codes.latents]
        smallest = scores.min() if len(scores) else torch.tensor(torch.inf, device=scores.device)
        self.add_threshold(over_ranks(smallest, "min"))

    @torch.no_grad()
    def add_threshold(self, smallest: Float[Tensor, ""]) -> None:
        """Takes the smallest active score of one batch into the mean; infinity stands for no active latent."""
        threshold, found = self.learner.threshold, smallest.isfinite()
        rate = (1 / (self.n_thresholds + 1)).clamp_min(THRESHOLD_RATE)
        threshold.add_(torch.where(found, rate * (smallest - threshold), torch.zeros_like(smallest)))
        self.n_thresholds.add_(found)

    def _log(self) -> None:
        """Raises NonFiniteActivations if a loss is no number."""
        means = self._tally.drain()
        if not math.isfinite(means["loss"]):
            raise NonFiniteActivations(
                f"the loss of step {self.steps_done} or of one of the {LOG_EVERY} before it is {means['loss']}: the "
                f"activations of layer {self.learner.recipe.layer} may hold NaN or infinity, or lr is far too large"
            )
        means |= {
            **self._pace.lap(self.trainer, int(means.pop("rows"))),
            "dead": float(self.dead.dead.float().mean()),
            "threshold": float(self.learner.threshold),
            "lr": self.settings.lr * self.settings.lr_factor(self.steps_done - 1, self.steps),
        }
        if self.learner.sparsity.activation != "relu":
            means["k"] = self.settings.k_at(self.steps_done - 1, cast(int, self.learner.sparsity.k))
        for name, value in {"step": self.steps_done, **means}.items():
            self._history.setdefault(name, []).append(value)
        self._send({f"train/{name}": value for name, value in means.items()})

    def _send(self, metrics: Mapping[str, float]) -> None:
        for logger in self.loggers:
            logger.log_metrics(dict(metrics), self.steps_done)


def train(
    fitting: DictionaryFit,
    caches: Sequence[ActivationCache],
    *,
    validation: Sequence[ActivationCache] = (),
    logger: Logger | None = None,
    device: torch.device | str = "cpu",
    devices: int = 1,
    nodes: int = 1,
    checkpoint: Path | None = None,
    every_n_steps: int = 1000,
    pool_rows: int = POOL_ROWS,
    on_batch: Callable[[int], object] = lambda rows: None,
) -> Dictionary:
    """The dictionary after all steps over the caches that `fitting` was made of. See `fit` for the rest.

    Raises InvalidSetting if the ranks cannot share a batch evenly.
    """
    ranks = devices * nodes
    if fitting.settings.batch_size % ranks:
        raise InvalidSetting(f"batch_size={fitting.settings.batch_size} over {ranks} devices; expected a multiple")
    recipe = fitting.learner.recipe
    data = ActivationDataModule(
        caches,
        recipe.layer,
        fitting.settings.batch_size // ranks,
        fitting.settings.seed,
        validation=validation,
        pool_rows=pool_rows,
        weights=cast("Sequence[float] | None", recipe.settings["weights"]),
        whole_batches=True,
    )
    fit(
        fitting, data, max_steps=fitting.steps, logger=logger, device=device, devices=devices, nodes=nodes,
        checkpoint=checkpoint, every_n_steps=every_n_steps, on_batch=on_batch,
    )  # fmt: skip
    return fitting.dictionary()


def _normaliser(caches: Sequence[ActivationCache], stream: Stream, layer: int) -> Normaliser:
    moments = Moments.merged([cache.moments(stream, layer) for cache in caches])
    return Normaliser.from_moments(moments, math.sqrt(len(moments.mean)))
