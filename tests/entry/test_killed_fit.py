"""A command that is killed while it fits learners goes on when it is given again, and ends as it would have ended."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from diffing.entry import learners, setup
from diffing.errors import InvalidSetting, StorageFailed
from diffing.methods.base import Advance, Study
from tests import tiny
from tests.entry.preparing import composed, overrides_of, prepared
from trackers import ArtifactRef

ROOT = Path(__file__).parents[2]
STEPS, BATCH, EVERY = 60, 16, 7
CHILD = """
import json, sys
from diffing.entry import setup
from tests.entry.preparing import composed, prepared
from tests.entry.test_killed_fit import Counting

setup.Bars = lambda: Counting({}, die_at=tuple(json.loads(sys.argv[2])))
prepared(composed(json.loads(sys.argv[1])))
"""


class Counting:
    """Progress that counts the batches of each stage, and kills its own process at one of them."""

    def __init__(self, batches: dict[str, int], die_at: tuple[str, int] | None = None):
        self.batches, self.die_at = batches, die_at

    @contextmanager
    def stage(self, title: str, total: int | None) -> Iterator[Advance]:
        self.batches[title], self.units = 0, 0

        def advance(units: int) -> None:
            self.batches[title] += 1
            self.units += units
            if (title, self.batches[title]) == self.die_at:
                os.kill(os.getpid(), signal.SIGKILL)

        yield advance
        if title.startswith("sae"):
            assert self.units == total, "the bar is full at the end"


def stage(layer: int) -> str:
    return f"sae_difference of layer {layer}"


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums in one order, as in the process that is killed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def pca(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> list[str]:
    made = overrides_of(base_folder, adapter_folder, tmp_path)
    (tmp_path / "texts.txt").write_text("\n\n".join(tiny.TEXTS * 3), "utf-8")
    return made


@pytest.fixture
def overrides(pca: list[str]) -> list[str]:
    return [
        *(each for each in pca if not each.startswith("diffing")), "diffing/method=sae_difference",
        "diffing.method.rows_per_latent=1", f"diffing.method.min_steps={STEPS}",
        f"diffing.method.training.batch_size={BATCH}", "diffing.method.training.epochs=1",
        f"infrastructure.checkpoint_every={EVERY}",
    ]  # fmt: skip


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many batches each stage of this process had."""
    counted: dict[str, int] = {}
    monkeypatch.setattr(setup, "Bars", lambda: Counting(counted))
    return counted


def killed(overrides: list[str], home: Path, die_at: tuple[str, int]) -> None:
    environment = {
        "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin", "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    command = [sys.executable, "-c", CHILD, json.dumps(overrides), json.dumps(die_at)]
    done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3_000:]


def weights(study: Study) -> dict[str, torch.Tensor]:
    return {
        f"{name} {key}": value
        for name, folder in study.learners.items()
        for key, value in load_file(folder / "weights.safetensors").items()
    }


def test_a_killed_command_goes_on_where_it_was_and_ends_where_it_would_have_ended(
    overrides: list[str], tmp_path: Path, batches: dict[str, int], log_lines: pytest.LogCaptureFixture
) -> None:
    killed(overrides, tmp_path, (stage(2), 31))
    scratch = next(path for path in (tmp_path / "checkpoints").iterdir() if path.is_dir())
    assert len(list(scratch.glob("*/recipe.json"))) == len(list(scratch.glob("*.ckpt"))) == 1

    prepared(composed(overrides, "diffing.method.training.clip=0.5"))
    assert (batches.pop(stage(1)), batches.pop(stage(2))) == (STEPS, STEPS), "another setting does not go on from there"
    assert scratch.is_dir()

    resumed, _, _ = prepared(composed(overrides))
    assert (batches.get(stage(1)), batches[stage(2)]) == (None, STEPS - 28)
    assert "the sae of layer 1 was fitted before the interruption" in log_lines.text
    assert f"resuming layer 2 at step 28 of {STEPS}" in log_lines.text
    assert list((tmp_path / "checkpoints").iterdir()) == [], "all is published"

    elsewhere = [each for each in overrides if not each.startswith("tracker.root")]
    whole, _, _ = prepared(composed(elsewhere, f"tracker.root={tmp_path / 'other'}"))
    assert (batches[stage(1)], batches[stage(2)]) == (STEPS, STEPS)
    ended, uninterrupted = weights(resumed), weights(whole)
    assert sorted(whole.learners) == ["layer_1", "layer_2"]
    assert ended.keys() == uninterrupted.keys()
    assert [name for name, value in uninterrupted.items() if not value.equal(ended[name])] == []


def test_another_process_waits_for_the_one_that_fits_the_same(
    pca: list[str], monkeypatch: pytest.MonkeyPatch, log_lines: pytest.LogCaptureFixture
) -> None:
    config, fits, others = composed(pca), list[str](), list[ArtifactRef]()
    other = threading.Thread(target=lambda: others.append(prepared(config)[2]))
    waiting, published, fit = threading.Event(), threading.Event(), learners._fit

    def look_again(seconds: float) -> None:
        waiting.set()
        assert published.wait(60)

    def while_the_other_waits(*given: Any) -> ArtifactRef:
        fits.append(threading.current_thread().name)
        other.start()
        assert waiting.wait(60)
        return fit(*given)

    monkeypatch.setattr(learners, "_fit", while_the_other_waits)
    monkeypatch.setattr(learners.time, "sleep", look_again)
    learner = prepared(config)[2]
    published.set()
    other.join(60)
    assert others == [learner]
    assert fits == [threading.current_thread().name]
    assert "waiting for another process that fits the same learners" in log_lines.text


def test_a_folder_for_checkpoints_that_cannot_be_made_is_named(pca: list[str], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageFailed, match=r"set infrastructure\.checkpoints_dir"):
        prepared(composed(pca, f"infrastructure.checkpoints_dir={tmp_path / 'file' / 'below'}"))


def test_no_steps_between_checkpoints_are_refused(pca: list[str]) -> None:
    with pytest.raises(InvalidSetting, match="expected 1 step or more"):
        prepared(composed(pca, "infrastructure.checkpoint_every=0"))
