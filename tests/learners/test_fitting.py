"""Fits under Lightning, on one device and on two processes, over real stores."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn

from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.loader import ActivationBatch
from diffing.activations.store import ActivationCache
from diffing.axes import Stream
from diffing.errors import IncompatiblePair, InvalidSetting, ZeroVariance
from diffing.learners.fitting import fit
from diffing.learners.pca import PCA, PCAFit
from diffing.specs import VariantSpec
from tests.activations.stores import write_cache

ROOT = Path(__file__).parents[2]
N_ROWS, WIDTH, LAYER = (700, 405), 16, 2


def values(seed: int, n_rows: int) -> tuple[Tensor, Tensor]:
    """Rows of both sides: a common part under a large mean, and a difference of decaying variances."""
    random = torch.Generator().manual_seed(seed)
    common = 30 + 5 * torch.randn(n_rows, WIDTH, generator=random)
    return common, common + 1 + torch.randn(n_rows, WIDTH, generator=random) * torch.logspace(1, -1, WIDTH)


@pytest.fixture(scope="module")
def sides() -> list[tuple[Tensor, Tensor]]:
    return [tuple(side.bfloat16() for side in values(seed, n_rows)) for seed, n_rows in enumerate(N_ROWS)]


@pytest.fixture(scope="module")
def caches(tmp_path_factory: pytest.TempPathFactory, sides: Sequence) -> list[ActivationCache]:
    """Two corpora of one pair, in several shards each."""
    root = tmp_path_factory.mktemp("caches")
    return [
        write_cache(root, {LAYER: base}, {LAYER: finetuned}, corpus=corpus, documents_per_shard=30)
        for corpus, (base, finetuned) in zip(("one", "two"), sides, strict=True)
    ]


def stream(sides: Sequence, stream: Stream) -> Tensor:
    base, finetuned = (torch.cat(parts).double() for parts in zip(*sides, strict=True))
    return {Stream.BASE: base, Stream.FINETUNED: finetuned, Stream.DIFFERENCE: finetuned - base}[stream]


def solved(caches: Sequence[ActivationCache], batch_size: int = 64, **settings: object) -> PCA:
    pca = PCAFit.of(caches, LAYER, **settings)
    fit(pca, ActivationDataModule(caches, LAYER, batch_size, pool_rows=256))
    return pca.solve()


@pytest.mark.parametrize("which", list(Stream))
def test_a_pass_over_caches_is_the_decomposition_of_all_their_rows(
    caches: list[ActivationCache], sides: Sequence, which: Stream
) -> None:
    pca, rows = solved(caches, stream=which), stream(sides, which)
    assert int(pca.n_rows) == sum(N_ROWS)
    assert sum(N_ROWS) % 64
    expected = torch.linalg.eigvalsh(torch.cov(rows.T, correction=0)).flip(0)
    torch.testing.assert_close(pca.variances, expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(pca.mean.double(), rows.mean(0), rtol=1e-6, atol=1e-7)
    assert pca.recipe.stream == which
    assert pca.recipe.caches == tuple(cache.digest for cache in caches)


def test_the_shift_is_the_mean_of_the_rows(caches: list[ActivationCache], sides: Sequence) -> None:
    expected = stream(sides, Stream.DIFFERENCE).mean(0).float()
    torch.testing.assert_close(PCAFit.of(caches, LAYER).shift, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("n_components", [0, -1, WIDTH + 1])
def test_an_impossible_number_of_components_is_refused(caches: list[ActivationCache], n_components: int) -> None:
    with pytest.raises(InvalidSetting, match=f"n_components={n_components}; expected 1 to {WIDTH}"):
        PCAFit.of(caches, LAYER, n_components=n_components)


def test_any_other_number_of_components_is_kept(caches: list[ActivationCache]) -> None:
    for n_components in (1, 5, WIDTH):
        pca = solved(caches, n_components=n_components)
        assert pca.components.shape == (n_components, WIDTH)
        assert pca.variances.shape == (n_components,)


def test_identical_models_have_no_components_of_the_difference(tmp_path: Path, sides: Sequence) -> None:
    base = {LAYER: sides[0][0]}
    same = write_cache(tmp_path, base, base, variant=VariantSpec("identical"))
    with pytest.raises(ZeroVariance, match="difference stream at layer 2"):
        solved([same])
    assert int(solved([same], stream=Stream.FINETUNED).n_rows) == N_ROWS[0]


def test_caches_of_two_pairs_are_refused(tmp_path: Path, caches: list[ActivationCache], sides: Sequence) -> None:
    base, finetuned = ({LAYER: side} for side in sides[0])
    other = write_cache(tmp_path, base, finetuned, variant=VariantSpec("lora", "org/other"))
    with pytest.raises(IncompatiblePair):
        PCAFit.of([*caches, other], LAYER)


def test_rows_are_counted_and_nothing_is_said_or_left_behind(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    caches: list[ActivationCache],
) -> None:
    monkeypatch.chdir(tmp_path)
    told: list[int] = []
    fit(PCAFit.of(caches, LAYER), ActivationDataModule(caches, LAYER, 64), on_batch=told.append)
    assert told == [64] * (sum(N_ROWS) // 64) + [sum(N_ROWS) % 64]
    assert capfd.readouterr() == ("", "")
    assert not [str(warning.message) for warning in recwarn if "ightning" in str(warning.filename)]
    assert not list(tmp_path.iterdir())


def test_a_device_with_an_index_is_the_only_one(caches: list[ActivationCache]) -> None:
    with pytest.raises(InvalidSetting, match="device=cpu"):
        fit(PCAFit.of(caches, LAYER), ActivationDataModule(caches, LAYER, 64), device="cpu:0", devices=2)


class Regression(LightningModule):
    """Predicts the finetuned side from the base side; learned by gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(WIDTH, WIDTH)

    def training_step(self, batch: ActivationBatch, batch_idx: int) -> Tensor:
        loss = (self.map(batch.base.float()) - batch.finetuned.float()).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), 1e-2)


def test_a_module_that_learns_by_gradient_is_fitted_and_logged(
    tmp_path: Path, caches: list[ActivationCache], sides: Sequence
) -> None:
    torch.manual_seed(0)
    logger, told = CSVLogger(tmp_path, flush_logs_every_n_steps=1), list[int]()
    data = ActivationDataModule(caches, LAYER, 16)
    fit(Regression(), data, max_epochs=2, logger=logger, on_batch=told.append)
    assert sum(told) == 2 * sum(N_ROWS)
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    losses = [float(line.split(",")[lines[0].split(",").index("loss")]) for line in lines[1:]]
    assert losses[-1] < 0.1 * stream(sides, Stream.FINETUNED).square().mean()


ON_TWO = """
import sys, torch
from pathlib import Path
from diffing.activations.datamodule import ActivationDataModule
from diffing.activations.store import ActivationCache
from diffing.learners.fitting import fit
from diffing.learners.pca import PCAFit
from tests.learners.test_fitting import LAYER, Regression

torch.set_num_threads(1)
out, *folders = map(Path, sys.argv[1:])
caches = [ActivationCache(*pair) for pair in zip(folders[::2], folders[1::2])]
pca, told = PCAFit.of(caches, LAYER), []
data = ActivationDataModule(caches, LAYER, 64)
fit(pca, data, devices=2, on_batch=told.append)
rank = data.trainer.global_rank
pca.solve().save(out / str(rank))
torch.manual_seed(rank)
learned = Regression()
fit(learned, ActivationDataModule(caches, LAYER, 64, whole_batches=True), devices=2)
torch.save({"told": sum(told), "own": pca.trainer.world_size, "map": learned.map.state_dict()}, out / f"{rank}.pt")
"""


def test_two_processes_find_what_one_finds(tmp_path: Path, caches: list[ActivationCache]) -> None:
    from diffing.learners.base import load_learner

    script = tmp_path / "on_two.py"
    script.write_text(ON_TWO)
    folders = [str(store.folder) for cache in caches for store in (cache.base, cache.finetuned)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, str(script), str(tmp_path), *folders]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3_000:]
    alone = solved(caches)
    for rank in (0, 1):
        pca = load_learner(tmp_path / str(rank))
        assert isinstance(pca, PCA)
        assert int(pca.n_rows) == sum(N_ROWS)
        torch.testing.assert_close(pca.variances, alone.variances, rtol=1e-6, atol=0)
        torch.testing.assert_close(pca.components, alone.components, rtol=0, atol=1e-4)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1))
    assert abs(first["told"] - sum(N_ROWS)) <= 2
    assert first["own"] == 2
    assert torch.equal(first["map"]["weight"], second["map"]["weight"]), "ranks that learn by gradient stay in step"
