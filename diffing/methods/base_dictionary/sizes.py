"""How large a dictionary is and how long it is trained, fitted to the rows there are.

Settings are those for a hundred million rows. With few rows, a latent needs some to be learned from, and what is
counted in steps or rows (warm-up, annealing, the age at which a latent is dead) would outlast the whole training; there
it takes a share of it.
"""

import math
from dataclasses import replace

from diffing.learners.schedules import Training

WARMUP_SHARE, ANNEALING_SHARE, DEAD_SHARE = 0.1, 0.2, 0.1
"""Of all steps, or rows: the most that warm-up and annealing take, and a latent's life without activity."""

LATENTS_PER_ACTIVE, ROWS_PER_ACTIVE, MOST_ACTIVE = 48, 2**14, 100
"""A dictionary of few latents is not sparse with as many active ones as a large one has. And few rows hold few
concepts: with more active latents than these need, all become dense and none can be read."""


def n_latents(expansion: float | int, d_model: int, n_rows: int, rows_per_latent: int) -> int:
    """`expansion` times the width, or as many as have `rows_per_latent` rows each."""
    return max(1, min(round(expansion * d_model), n_rows // rows_per_latent))


def k(n_latents: int, n_rows: int) -> int:
    """Active latents per row, where none are asked for."""
    return max(1, min(MOST_ACTIVE, n_latents // LATENTS_PER_ACTIVE, n_rows // ROWS_PER_ACTIVE))


def adapted(training: Training, n_rows: int, n_latents: int, min_steps: int, seed: int, lr: float) -> Training:
    """The same training with lengths that fit `n_rows`, repeated until `min_steps` unless a limit is set.

    Raises EmptyCorpus if the rows do not fill a batch.
    """
    per_epoch = max(1, n_rows // training.batch_size)
    epochs = max(training.epochs, math.ceil(min_steps / per_epoch))
    most = max(training.epochs * per_epoch, min_steps)
    limited = replace(training, epochs=epochs, max_steps=min(most, training.max_steps or most), k_start=None)
    steps = limited.steps(n_rows)
    annealing = min(training.k_annealing_steps, int(ANNEALING_SHARE * steps))
    return replace(
        limited,
        warmup_steps=min(training.warmup_steps, int(WARMUP_SHARE * steps)),
        k_start=min(training.k_start, n_latents) if training.k_start and annealing else None,
        k_annealing_steps=annealing,
        dead_after_rows=max(1, min(training.dead_after_rows, int(DEAD_SHARE * steps * training.batch_size))),
        lr=lr,
        seed=seed,
    )
