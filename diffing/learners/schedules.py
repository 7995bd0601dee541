"""How a dictionary is trained, and what changes from step to step, as functions of the step."""

from dataclasses import dataclass

from diffing.errors import EmptyCorpus, InvalidSetting

DECAY_SHARE = 0.2
"""Of all steps: the last ones, in which the learning rate goes to zero."""


@dataclass(frozen=True)
class Training:
    """Settings of a training. The same settings, caches and devices give the same dictionary.

    The reconstruction loss is in units of what predicting the mean would cost, so that losses, clipping and
    coefficients mean the same for any width and any number of streams.
    """

    batch_size: int = 2048
    """Rows per step, over all devices together."""
    epochs: int = 1
    max_steps: int | None = None
    max_tokens: int | None = None
    """Rows. Training stops at the first of the three limits."""
    lr: float = 1e-4
    warmup_steps: int = 1000
    """From 0 to `lr`, linearly."""
    decay: bool = True
    """Over the last fifth of the steps to 0, linearly."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    optimizer: str = "adam"
    """Or `adam_8bit`: smaller moments, which take bitsandbytes and a GPU."""
    precision: str = "float32"
    """Of products over all latents, or `bfloat16`; weights and sums are float32."""
    loss: str = "squared"
    """Squared error, as in the papers, or `norm`: its square root for each row and stream, as in their code."""
    l1_coefficient: float = 0.0
    """Of the mean over rows of the summed scores, in units of the normalised rows' size."""
    k_start: int | None = None
    """Active latents per row at the first step, if not `k`."""
    k_annealing_steps: int = 0
    """Steps from `k_start` to `k`; 0 means `k` from the first step on."""
    aux_alpha: float = 1 / 32
    """Weight of the loss through which dead latents learn; 0 for none."""
    aux_k: int | None = None
    """Dead latents per row that take part in it; None for half of d_model."""
    dead_after_rows: int = 10_000_000
    """A latent is dead when it was not active in so many rows, one after another."""
    threshold_after: int = 1000
    """Step from which the inference threshold is averaged: after annealing, and in half of the steps at least."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise InvalidSetting(f"{name} '{getattr(self, name)}'; expected one of {', '.join(allowed)}")
        for name in ("batch_size", "epochs", "max_steps", "max_tokens", "lr", "clip", "aux_k", "dead_after_rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InvalidSetting(f"{name}={value}; expected more than 0")

    def steps(self, rows_per_epoch: int) -> int:
        """Steps of the whole training. Raises EmptyCorpus if the rows do not fill one batch."""
        if rows_per_epoch < self.batch_size:
            raise EmptyCorpus(
                f"{rows_per_epoch} rows do not fill one batch of {self.batch_size}: "
                "collect more activations, or lower batch_size"
            )
        limits = [self.epochs * (rows_per_epoch // self.batch_size), self.max_steps]
        if self.max_tokens is not None:
            limits.append(max(1, self.max_tokens // self.batch_size))
        steps = min(limit for limit in limits if limit is not None)
        if self.k_start is not None and self.k_annealing_steps >= steps:
            raise InvalidSetting(
                f"k_annealing_steps={self.k_annealing_steps}, but training has {steps} steps: k would not be reached. "
                "Anneal for fewer steps, or train for more (epochs, max_steps, max_tokens)"
            )
        return steps

    def lr_factor(self, step: int, steps: int) -> float:
        """What `lr` is multiplied by at a step of `steps`, both counted from 0."""
        warm = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return warm * min(1.0, (steps - step) / (DECAY_SHARE * steps)) if self.decay else warm

    def k_at(self, step: int, k: int) -> int:
        """Active latents per row at a step whose target is `k`."""
        if self.k_start is None or step >= self.k_annealing_steps:
            return k
        return max(1, round(self.k_start - (self.k_start - k) * step / self.k_annealing_steps))

    def threshold_from(self, steps: int) -> int:
        """The first step at which the inference threshold is averaged."""
        annealed = self.k_annealing_steps if self.k_start is not None else 0
        return max(annealed, min(self.threshold_after, steps // 2))


_CHOICES = {
    "optimizer": ("adam", "adam_8bit"),
    "precision": ("float32", "bfloat16"),
    "loss": ("squared", "norm"),
}
