"""Planted truth for the methods that train a dictionary: a pair, and a cache in which one direction is finetuned-only.

The finetuned model of the pair is the base plus `AMOUNT` of the direction on every token. The cache has the base's real
rows, and the finetuned side has more or less of the direction on some of them, so that it can be learned.
"""

from pathlib import Path
from typing import Any

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import Tensor

from diffing.activations.store import ActivationCache
from diffing.learners.schedules import Training
from diffing.lenses.steering import Answers
from diffing.models.pair import ModelPair
from diffing.models.sites import residuals
from diffing.models.sources import pin
from diffing.report import Report
from diffing.text.windows import pad
from tests import tiny
from tests.activations.stores import write_cache

LAYER, TOKEN, AMOUNT = 2, 300, 8.0
DOCUMENTS, LENGTH = 250, 9
SETTINGS: dict[str, Any] = {
    "answers": Answers(["Bread?", "Boats?"], max_new_tokens=3), "lr": 1e-2, "rows_per_latent": 8,
    "training": Training(batch_size=128, epochs=1, warmup_steps=20),
    "read": 2, "drawn": 2, "candidates": 6, "bridge_documents": 6, "bridge_tokens": 9, "bridge_sizes": [1, 4],
    "top": 8, "patchscope_scales": [1.0], "patchscope_intersection": tiny.VOCAB, "examples": 3, "window": (2, 2),
    "steering_layers": [LAYER], "steered": 2, "strengths": [0.5, 1.0], "per_band": 2,
    "steering_at": ["all", "prompt"],
}  # fmt: skip


def direction() -> Tensor:
    """A direction that the tiny model's head reads as `TOKEN`."""
    model = tiny.model()
    return torch.nn.functional.normalize(model.lm_head.weight[TOKEN] / model.model.norm.weight, dim=0)


def planted_pair(base_folder: Path, folder: Path) -> ModelPair:
    save_file({"v": AMOUNT * direction()}, folder / "v.safetensors")
    spec = tiny.pair_spec(base_folder, "steering_vector", folder / "v.safetensors", layer=LAYER)
    return ModelPair(pin(spec), "cpu")


def amounts() -> Tensor:
    """How much of the direction each row of the planted cache has more on the finetuned side."""
    generator = torch.Generator().manual_seed(1)
    n_rows = DOCUMENTS * (LENGTH - 1)
    present = torch.rand(n_rows, generator=generator) < 0.3
    return present * AMOUNT * (0.7 + 0.6 * torch.rand(n_rows, generator=generator))


def planted_cache(folder: Path, changed: Tensor | None = None, noise: float = 0.02) -> ActivationCache:
    """The finetuned side has `changed` of the direction more, by default `amounts()`, and a little noise."""
    ids = _ids()
    base = residuals(tiny.model(), pad(ids.tolist(), 0, "right"), [LAYER])[LAYER][:, 1:].flatten(0, 1)
    return _stored(folder, base, base, amounts() if changed is None else changed, noise)


def sparse_cache(folder: Path, n_shared: int = 10, noise: float = 0.05) -> ActivationCache:
    """Rows of a few of `n_shared` concepts, orthogonal to the direction, which both sides have; noise on each side."""
    generator = torch.Generator().manual_seed(2)
    mixed = torch.cat([direction()[:, None], torch.randn(tiny.WIDTH, n_shared, generator=generator)], dim=1)
    concepts = torch.linalg.qr(mixed)[0].T[1:]
    shape = DOCUMENTS * (LENGTH - 1), n_shared
    present = torch.rand(shape, generator=generator) < 0.2
    shared = (present * 5 * (1 + torch.rand(shape, generator=generator))) @ concepts
    return _stored(folder, shared + noise * torch.randn(shared.shape, generator=generator), shared, amounts(), noise)


def _stored(folder: Path, base: Tensor, finetuned: Tensor, changed: Tensor, noise: float) -> ActivationCache:
    added = changed[:, None] * direction()
    added = added + noise * torch.randn(base.shape, generator=torch.Generator().manual_seed(3))
    lengths = [LENGTH] * DOCUMENTS
    return write_cache(folder, {LAYER: base}, {LAYER: finetuned + added}, lengths, ids=_ids().flatten())


def _ids() -> Tensor:
    return torch.randint(3, tiny.VOCAB, (DOCUMENTS, LENGTH), generator=torch.Generator().manual_seed(0))


def assert_the_same(first: Report, second: Report) -> None:
    """Tables, findings and scalars of a report and of what was loaded from its folder."""
    for name, table in first.tables.items():
        stored = second.tables[name].frame
        for column in ("tokens", "values"):
            if column in stored:
                stored[column] = stored[column].map(list)
        pd.testing.assert_frame_equal(stored, table.frame, check_dtype=False)
    assert second.findings == first.findings
    assert second.scalars == first.scalars
