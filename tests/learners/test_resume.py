"""A training that was interrupted, watched or split over processes ends where it would have ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torch.utils.data import DataLoader

from diffing.activations.loader import ActivationBatch
from diffing.activations.store import ActivationCache
from diffing.errors import InvalidSetting, NonFiniteActivations, StorageFailed
from diffing.learners import training
from diffing.learners.base import load_learner
from diffing.learners.crosscoder import Crosscoder
from diffing.learners.dictionary import Dictionary, Sparsity
from diffing.learners.fitting import fit
from diffing.learners.sae import SAE
from diffing.learners.training import DictionaryFit, train
from tests.learners.planted import planted, quick, write

ROOT = Path(__file__).parents[2]
KINDS = {"sae": SAE, "crosscoder": Crosscoder}
SETTINGS = {"max_steps": 47, "dead_after_rows": 1_000, "aux_alpha": 0.5, "k_start": 10, "k_annealing_steps": 20}


class Killed(Exception):
    """Raised in the middle of a training."""


def fitting_of(kind: type[Dictionary], cache: ActivationCache, **changes: object) -> DictionaryFit:
    """Every mechanism with a state has something to do in it: an epoch has 15 steps, and some latents are dead."""
    fitting = DictionaryFit.of(kind, [cache], 0, Sparsity(50, 2), quick(**(SETTINGS | changes)))
    with torch.no_grad():
        fitting.learner.encoder_bias[:5] = -3
    return fitting


def state(fitting: DictionaryFit) -> dict[str, Tensor]:
    """All that training depends on."""
    moments = fitting.trainer.optimizers[0].state_dict()["state"]
    named = {f"{key}.{name}": value for key, group in moments.items() for name, value in group.items()}
    return fitting.state_dict() | named


def curves(fitting: DictionaryFit) -> dict[str, Sequence[float]]:
    """What was logged, less what no two runs have in common."""
    clocked = ("rows_per_second", "stall_share")
    return {name: values for name, values in fitting.dictionary().history.items() if name not in clocked}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> ActivationCache:
    return write(tmp_path_factory.mktemp("cache"), planted(4_000))


@pytest.mark.parametrize("stop_after", [12, 29, 46])
@pytest.mark.parametrize("kind", KINDS.values())
def test_an_interrupted_training_ends_bit_for_bit_where_an_uninterrupted_one_does(
    tmp_path: Path, cache: ActivationCache, kind: type[Dictionary], stop_after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training, "LOG_EVERY", 8)  # a checkpoint has half of what the next line is about
    whole = fitting_of(kind, cache)
    train(whole, [cache], pool_rows=700)
    steps = []

    def stop(rows: int) -> None:
        steps.append(rows)
        if len(steps) == stop_after:
            raise Killed

    with pytest.raises(Killed):
        train(
            fitting_of(kind, cache), [cache], pool_rows=700, checkpoint=tmp_path / "c", every_n_steps=5, on_batch=stop
        )
    resumed, again = fitting_of(kind, cache), list[int]()
    train(resumed, [cache], pool_rows=700, checkpoint=tmp_path / "c", every_n_steps=5, on_batch=again.append)
    assert len(again) == 47 - stop_after // 5 * 5, "and does not start over"
    assert_equal(state(resumed), state(whole))
    assert curves(resumed) == curves(whole)
    assert curves(whole)["step"] == [8, 16, 24, 32, 40, 47]
    assert int(whole.dead.rows_since.max()) > 1_000, "some latents were dead"


def test_a_finished_training_is_not_repeated(tmp_path: Path, cache: ActivationCache) -> None:
    first = train(
        fitting_of(SAE, cache, max_steps=20, k_start=None), [cache], checkpoint=tmp_path / "c", every_n_steps=10
    )
    told = list[int]()
    second = train(
        fitting_of(SAE, cache, max_steps=20, k_start=None), [cache], checkpoint=tmp_path / "c", on_batch=told.append
    )
    assert told == []
    assert_equal(first.state_dict(), second.state_dict())


def test_the_checkpoint_of_another_training_is_refused(tmp_path: Path, cache: ActivationCache) -> None:
    train(fitting_of(SAE, cache), [cache], checkpoint=tmp_path / "c", every_n_steps=40)
    with pytest.raises(InvalidSetting, match="of another training"):
        train(fitting_of(SAE, cache, lr=0.02), [cache], checkpoint=tmp_path / "c")


def test_a_checkpoint_that_cannot_be_written_is_named(tmp_path: Path, cache: ActivationCache) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match="cannot write the checkpoint"):
        train(fitting_of(SAE, cache), [cache], checkpoint=tmp_path / "file" / "c", every_n_steps=10)


@pytest.mark.parametrize("kind", KINDS.values())
def test_being_validated_changes_nothing(tmp_path: Path, cache: ActivationCache, kind: type[Dictionary]) -> None:
    alone, watched = fitting_of(kind, cache), fitting_of(kind, cache)
    train(alone, [cache])
    held_out = write(tmp_path, planted(2_000, seed=3), corpus="held out")
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    train(watched, [cache], validation=[held_out], logger=logger)
    assert_equal(state(watched), state(alone))
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    evaluated = [dict(zip(header.split(","), line.split(","), strict=True)) for line in lines]
    assert sum(bool(line["validation/l0"]) for line in evaluated) == 3, "once an epoch"


def test_what_is_logged_is_what_happened(tmp_path: Path, cache: ActivationCache) -> None:
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    fitting = fitting_of(Crosscoder, cache, max_steps=60, l1_coefficient=0.01)
    crosscoder = train(fitting, [cache], logger=logger)
    header, *lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    first, last = (dict(zip(header.split(","), map(float, line.split(",")), strict=True)) for line in lines)
    assert (first["step"], last["step"]) == (50, 60)
    ks = [fitting.settings.k_at(step, 2) for step in range(50)]
    assert first["train/l0"] == pytest.approx(sum(ks) / 50)
    assert last["train/k"] == last["train/l0"] == 2
    for line in (first, last):
        parts = [line[f"train/{name}"] for name in ("reconstruction", "sparsity", "auxiliary")]
        assert parts[0] > 0
        assert parts[1] > 0
        assert (parts[2] > 0) == (line is last), "the dead are looked for every 50 steps"
        assert line["train/loss"] == pytest.approx(sum(parts))
        explained = (line["train/fve_base"] + line["train/fve_finetuned"]) / 2
        assert explained == pytest.approx(1 - line["train/reconstruction"], abs=0.02), "of a mean square of about 1"
        assert line["train/rows_per_second"] > 0
        assert 0 <= line["train/stall_share"] < 1
        assert line["train/gradient_norm"] > 0
    for name, values in crosscoder.history.items():
        logged = [line["step" if name == "step" else f"train/{name}"] for line in (first, last)]
        assert list(values) == pytest.approx(logged), name
    assert crosscoder.history.keys() == {name.removeprefix("train/") for name in first}
    assert last["train/threshold"] == float(crosscoder.threshold) > 0
    assert last["train/lr"] == pytest.approx(1e-2 * (60 - 59) / 12)


@pytest.mark.parametrize("lr", [1e30])
def test_a_training_that_explodes_says_so(cache: ActivationCache, lr: float) -> None:
    with pytest.raises(NonFiniteActivations, match="or lr is far too large"):
        train(fitting_of(Crosscoder, cache, lr=lr), [cache])


KILLED = """
import sys
from pathlib import Path
from diffing.activations.store import ActivationCache
from diffing.learners.training import train
from tests.learners.test_resume import KINDS, fitting_of

out, base, finetuned = map(Path, sys.argv[1:4])
cache = ActivationCache(base, finetuned)
fitting = fitting_of(KINDS["crosscoder"], cache, max_steps=150)
print("ready", flush=True)
train(fitting, [cache], checkpoint=out / "c", every_n_steps=7, on_batch=lambda rows: print(rows, flush=True)).save(out)
"""


def environment(home: Path) -> dict[str, str]:
    return {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(home)}


def folders(cache: ActivationCache) -> Sequence[str]:
    return [str(cache.base.folder), str(cache.finetuned.folder)]


def test_a_killed_process_continues_when_it_is_started_again(tmp_path: Path, cache: ActivationCache) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    command = [sys.executable, str(script), str(tmp_path), *folders(cache)]
    with subprocess.Popen(command, env=environment(tmp_path), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(40)]
        os.kill(process.pid, signal.SIGKILL)
    assert lines[-1], "it was still training"
    assert (tmp_path / "c").is_file()
    assert not (tmp_path / "recipe.json").exists()
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3_000:]
    assert done.stdout.count("256") <= 150 - 35
    uninterrupted = fitting_of(Crosscoder, cache, max_steps=150)
    assert_equal(load_learner(tmp_path).state_dict(), train(uninterrupted, [cache]).state_dict())


class Halves(LightningDataModule):
    """The same batches on any number of ranks, each rank getting consecutive rows of every batch."""

    def __init__(self, cache: ActivationCache, n_batches: int, batch_size: int):
        super().__init__()
        self.cache, self.n_batches, self.batch_size = cache, n_batches, batch_size

    def train_dataloader(self) -> DataLoader:
        own = self.batch_size // self.trainer.world_size
        starts = [number * self.batch_size + own * self.trainer.global_rank for number in range(self.n_batches)]
        return DataLoader([self._batch(start, start + own) for start in starts], None, collate_fn=lambda batch: batch)

    def _batch(self, start: int, stop: int) -> ActivationBatch:
        rows = torch.arange(start, stop)
        return ActivationBatch(*self.cache.read(0, start, stop), torch.zeros_like(rows), rows)


def on_ranks(kind: str, activation: str, cache: ActivationCache, devices: int) -> DictionaryFit:
    """Rows of a cache that grow from batch start to batch end, so that ranks have different shares of the codes."""
    settings = quick(max_steps=12, lr=1e-3, dead_after_rows=500, aux_alpha=0.5, l1_coefficient=0.05)
    fitting = DictionaryFit.of(KINDS[kind], [cache], 0, Sparsity(50, 2, activation), settings)
    with torch.no_grad():
        fitting.learner.encoder_bias[:5] = -3
    fitting.dead.rows_since[:5] = 1_000
    fit(fitting, Halves(cache, 12, 256), max_steps=12, devices=devices)
    return fitting


VARIANTS = [("sae", "batch_top_k"), ("crosscoder", "batch_top_k"), ("crosscoder", "relu"), ("sae", "top_k")]
ON_TWO = """
import sys, torch
from pathlib import Path
from diffing.activations.store import ActivationCache
from diffing.learners.training import train
from tests.learners.test_resume import KINDS, VARIANTS, curves, fitting_of, on_ranks, state

torch.set_num_threads(1)
out, base, finetuned = map(Path, sys.argv[1:])
cache = ActivationCache(base, finetuned)
fits = [on_ranks(*variant, cache, 2) for variant in VARIANTS]
whole, rest = (fitting_of(KINDS["sae"], cache, max_steps=30) for _ in range(2))
for fitting in (whole, rest):
    train(fitting, [cache], devices=2, checkpoint=out / "c", every_n_steps=17)
resumed = [(state(fitting), curves(fitting)) for fitting in (whole, rest)]
torch.save(([fitting.state_dict() for fitting in fits], resumed), out / f"{whole.trainer.global_rank}.pt")
"""


def test_two_processes_take_the_steps_that_one_takes(tmp_path: Path) -> None:
    rows = planted(4_000)
    louder = torch.linspace(0.2, 2, 256).repeat(16)[:4_000, None]
    cache = write(
        tmp_path, type(rows)(rows.base * louder, rows.finetuned * louder, rows.atoms, rows.coefficients, 16, 4, 4)
    )
    script = tmp_path / "on_two.py"
    script.write_text(ON_TWO)
    command = [sys.executable, str(script), str(tmp_path), *folders(cache)]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3_000:]
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for variant, first, second in zip(VARIANTS, *(fits for fits, _ in ranks), strict=True):
        assert_equal(first, second)
        alone = on_ranks(*variant, cache, 1).state_dict()
        assert alone["dead.listed"][:5].all(), "the auxiliary loss was at work"
        for name, value in alone.items():
            said = f"{variant} {name}: {{}}".format
            torch.testing.assert_close(first[name], value, rtol=1e-3, atol=1e-4, msg=said)
    for _, (whole, rest) in ranks:
        assert_equal(rest[0], whole[0])
        assert rest[1]["step"] == [30]
        for name, values in whole[1].items():
            assert rest[1][name] == pytest.approx(values, rel=1e-9), f"{name} of all 30 steps, 17 of them before"
