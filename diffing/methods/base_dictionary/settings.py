"""The settings that every method with a dictionary has."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field

from diffing.activations.store import ActivationCache
from diffing.errors import InvalidSetting
from diffing.learners.dictionary import Sparsity
from diffing.learners.schedules import Training
from diffing.lenses.patchscope import INTERSECTION
from diffing.lenses.steering import Answers
from diffing.methods.base_dictionary import sizes
from diffing.models.generation import Where
from diffing.specs import JSON

LR_AT, LR_LATENTS = 2e-4, 2**14
"""Learning rate at a number of latents; it falls with the square root of their number (arXiv 2406.04093)."""
FITTED_TO = (
    "layers", "expansion", "rows_per_latent", "k", "activation", "lr", "min_steps", "seeds",
)  # fmt: skip
"""Settings, besides `training`, that the learners depend on."""


@dataclass(frozen=True)
class DictionarySettings:
    """What is fitted, what is read of it, and how much text that takes."""

    answers: Answers
    """That are given steered and unsteered."""
    layers: Sequence[float | int] | None = None
    """Depths to analyse, among those that are cached; None takes all."""
    expansion: float | int = 2.0
    """Latents per coordinate of the residual stream."""
    rows_per_latent: int = 32
    """There are no more latents than have so many stored rows each."""
    k: int | None = None
    """Active latents per row; unused by relu. None: one in 48 latents or for 2^14 rows, and 100 at most."""
    activation: str = "batch_top_k"
    lr: float | None = None
    """None: 2e-4 / sqrt(latents / 2^14)."""
    min_steps: int = 400
    """The rows are repeated until so many steps are done, if `training.epochs` gives fewer."""
    training: Training = field(default_factory=Training)
    """Its `lr` and `seed` are set from elsewhere. Lengths in steps are shortened where there are few rows."""
    seeds: int = 1
    """Trainings per layer. All but the first serve to tell which latents another seed finds too."""
    noise: bool = True
    """Read the dictionary on a pair that differs by noise alone, too."""
    read: int = 6
    """Latents that are read, shown on examples and compared: those that lower the KL most when added alone."""
    drawn: int = 3
    """Latents that are shown beside them, drawn at random."""
    candidates: int = 24
    """Latents that are added alone, chosen by how much they change the residual stream."""
    bridge_documents: int = 12
    """Stored documents, per corpus, that the models read again to measure KL and cross-entropy."""
    bridge_tokens: int = 64
    """Tokens of each, from its start."""
    bridge_sizes: Sequence[int] = (1, 4, 16, 64, 256)
    random_sets: int = 2
    bridge_batch_size: int = 8
    top: int = 20
    """Tokens kept of each readout."""
    patchscope_scales: Sequence[float] = (0.5, 1.0, 2.0)
    """Lengths of the patched vector, in root mean square norms of the residual stream."""
    patchscope_intersection: int = INTERSECTION
    examples: int = 10
    """Largest windows shown per corpus and latent."""
    per_band: int = 3
    """Windows shown besides of each quarter of a latent's range, drawn at random."""
    window: Sequence[int] = (24, 12)
    """Tokens shown before and after the peak."""
    steering_layers: Sequence[float | int] = (0.5,)
    """Depths, among the analysed ones, whose latents steer."""
    steered: int = 2
    """Latents, of the first, that steer."""
    strengths: Sequence[float] = (0.5, 1.0, 2.0)
    """Values at which a latent steers, in units of its largest value."""
    steering_at: Sequence[str] = (Where.ALL,)
    """Tokens that are steered: `all`, those of the `prompt` alone, or all with `linear_decay`."""

    def __post_init__(self) -> None:
        k = 1 if self.k is None else self.k
        Sparsity(max(k, 1), k, self.activation)  # raises for what is not known
        if self.training.lr != Training.lr or self.training.seed != Training.seed:
            raise InvalidSetting(
                f"training.lr={self.training.lr}, training.seed={self.training.seed}; "
                "give diffing.method.lr and seed instead"
            )
        if self.lr is not None and self.lr <= 0:
            raise InvalidSetting(f"lr={self.lr}; expected a number above 0, or null for one that fits the latents")
        if self.expansion <= 0 or min(self.rows_per_latent, self.min_steps, self.seeds) < 1:
            raise InvalidSetting(
                f"expansion={self.expansion}, rows_per_latent={self.rows_per_latent}, min_steps={self.min_steps}, "
                f"seeds={self.seeds}; expected numbers above 0"
            )
        if not 0 < self.read <= self.candidates or not 0 <= self.steered <= self.read or self.drawn < 0:
            raise InvalidSetting(
                f"steered={self.steered}, read={self.read}, candidates={self.candidates}, drawn={self.drawn}; expected "
                "0 <= steered <= read <= candidates, read of 1 or more, drawn of 0 or more"
            )
        if min(self.bridge_documents, self.bridge_tokens - 1, self.bridge_batch_size, *self.bridge_sizes) < 1:
            raise InvalidSetting(
                f"bridge_documents={self.bridge_documents}, bridge_tokens={self.bridge_tokens}, bridge_batch_size="
                f"{self.bridge_batch_size}, bridge_sizes={list(self.bridge_sizes)}; expected 2 tokens or more and 1 or "
                "more of the others"
            )
        if any(length <= 0 for length in (*self.strengths, *self.patchscope_scales)):
            raise InvalidSetting("strengths and patchscope_scales are lengths: expected numbers above 0")
        if unknown := [place for place in self.steering_at if place not in list(Where)]:
            raise InvalidSetting(f"steering_at has {unknown}; expected some of {', '.join(Where)}")
        if self.per_band < 0:
            raise InvalidSetting(f"per_band={self.per_band}; expected 0 or more")

    def learner_settings(self) -> Mapping[str, JSON]:
        chosen = {name: getattr(self, name) for name in FITTED_TO}
        layers = None if self.layers is None else list(self.layers)
        return {**chosen, "layers": layers, "training": asdict(self.training)}

    def plan(self, caches: Sequence[ActivationCache], seed: int) -> tuple[Sparsity, Training]:
        """How large the dictionary is and how it is trained, on these caches. Raises InvalidSetting for too large k."""
        n_rows = sum(cache.n_rows for cache in caches)
        n_latents = sizes.n_latents(self.expansion, caches[0].d_model, n_rows, self.rows_per_latent)
        if self.activation != "relu" and self.k is not None and self.k > n_latents:
            raise InvalidSetting(
                f"k={self.k}, but {n_rows} rows of width {caches[0].d_model} with expansion={self.expansion} and "
                f"rows_per_latent={self.rows_per_latent} give {n_latents} latents: lower k, or collect more rows"
            )
        k = sizes.k(n_latents, n_rows) if self.k is None else self.k
        training = sizes.adapted(self.training, n_rows, n_latents, self.min_steps, seed, self.rate(n_latents))
        return Sparsity(n_latents, k, self.activation), training

    def rate(self, n_latents: int) -> float:
        return self.lr if self.lr is not None else LR_AT / (n_latents / LR_LATENTS) ** 0.5
