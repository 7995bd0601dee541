"""What both trackers must do: the local store, and the real wandb client against a loopback server."""

import math
from collections.abc import Sized
from pathlib import Path

import pandas as pd
import pytest

from tests.trackers.harness import Backend, read_files, write_files
from trackers import (
    JSON,
    ArtifactNotFound,
    ArtifactRef,
    CorruptArtifact,
    InvalidName,
    InvalidValue,
    Kind,
    RunNotActive,
    Tracker,
    WrongKind,
)


def test_a_run_keeps_its_config_curves_and_end(backend: Backend, project: str) -> None:
    config: dict[str, JSON] = {"lr": 0.1, "layers": [1, 2], "data": {"name": "cakes", "size": None}}
    with backend.tracker(project, "train", config) as tracker:
        tracker.log({"loss": 3.0, "norm": 1.0}, step=10)
        tracker.log({"loss": 2.0}, step=20)
        tracker.log({"loss": math.nan})
        tracker.log({"norm": 4.0}, step=5)
    run = tracker.run_id
    assert backend.config(run) == config
    assert backend.curve(run, "loss")[:2] == [(10, 3.0), (20, 2.0)]
    step, value = backend.curve(run, "loss")[2]
    assert step == 21
    assert math.isnan(value)
    assert backend.curve(run, "norm") == [(10, 1.0), (5, 4.0)]
    assert backend.summary(run)["norm"] == 4.0
    assert math.isnan(backend.summary(run)["loss"])
    assert backend.status(run) == "finished"


def test_an_exception_in_the_block_marks_the_run_failed(backend: Backend, project: str) -> None:
    tracker = backend.tracker(project)
    with pytest.raises(ZeroDivisionError), tracker:
        _ = 1 / 0
    assert backend.status(tracker.run_id) == "failed"


def test_a_run_that_is_named_goes_on(backend: Backend, project: str, folder: Path, tmp_path: Path) -> None:
    with backend.tracker(project, "train", {"lr": 0.1}) as first:
        first.log({"loss": 3.0}, step=10)
        ref = first.publish(folder, "pca", Kind.LEARNER, {})
    with backend.tracker(project, "train", {"lr": 0.2}, run_id=first.run_id) as second:
        second.log({"loss": 2.0})
        second.fetch(str(ref), Kind.LEARNER)
    run = second.run_id
    assert run == first.run_id
    assert backend.curve(run, "loss") == [(10, 3.0), (11, 2.0)]
    assert backend.config(run) == {"lr": 0.2}
    assert (backend.status(run), backend.inputs(run)) == ("finished", [str(ref)])


def test_secrets_in_the_config_are_never_stored(backend: Backend, project: str) -> None:
    secret = "hunter2-4f1d"
    database = {"password": secret, "port": 5432}
    config: dict[str, JSON] = {
        "top_k": 7,
        "hf_token": secret,
        "judge": [{"apiKey": secret, "model": "m"}],
        "database": database,
    }
    with backend.tracker(project, config=config) as tracker:
        tracker.log({"x": 1.0})
    assert backend.config(tracker.run_id) == {
        "top_k": 7,
        "judge": [{"model": "m"}],
        "database": {"port": 5432},
    }
    assert secret.encode() not in backend.everything_stored()


def test_tables_and_figures_come_back(backend: Backend, project: str) -> None:
    frame = pd.DataFrame({"token": ["cake", "tea"], "kl": [0.5, 0.25], "rank": [1, 2]})
    figure = {"data": [{"type": "bar", "x": ["a", "b"], "y": [1, 2]}], "layout": {"title": {"text": "KL"}}}
    with backend.tracker(project) as tracker:
        tracker.log_table("worst", frame)
        tracker.log_figure("bars", figure)
    assert backend.table(tracker.run_id, "worst") == frame.to_numpy().tolist()
    found = backend.figure(tracker.run_id, "bars")
    assert found["layout"]["title"] == {"text": "KL"}  # type: ignore[index]
    assert found["data"] == figure["data"]


def test_cells_of_a_table_may_be_missing_in_columns_of_any_type(backend: Backend, project: str) -> None:
    frame = pd.DataFrame(
        {
            "level": pd.array([4, None], "Int64"),
            "success": pd.array([True, None], "boolean"),
            "guess": ["tea", None],
            "found": [["a", "b"], None],
        }
    )
    with backend.tracker(project) as tracker:
        tracker.log_table("grades", frame)
    first, second = backend.table(tracker.run_id, "grades")
    assert [list(cell) if isinstance(cell, Sized) and not isinstance(cell, str) else cell for cell in first] == [
        4, True, "tea", ["a", "b"],
    ]  # fmt: skip
    assert all(pd.isna(cell) for cell in second)


def test_a_published_folder_comes_back_byte_for_byte(backend: Backend, project: str, folder: Path) -> None:
    metadata: dict[str, JSON] = {
        "method": "pca",
        "layers": [3, 7],
        "nested": {"ratio": 0.1, "none": None},
        "ü": "é\n",
    }
    with backend.tracker(project, "train") as tracker:
        ref = tracker.publish(folder, "pca", Kind.LEARNER, metadata)
    with backend.tracker(project, "analyze") as tracker:
        found, path = tracker.fetch("pca", Kind.LEARNER)
        again, same = tracker.fetch(str(ref), Kind.LEARNER)
    assert ref == found == again == ArtifactRef(project, "pca", 0)
    assert same == path
    assert read_files(path) == read_files(folder)
    assert backend.metadata(ref) == metadata


def test_versions_count_up_and_aliases_move(backend: Backend, project: str, tmp_path: Path) -> None:
    with backend.tracker(project) as tracker:
        refs = []
        for number, aliases in enumerate([["best", "first"], ["best"], []]):
            made = write_files(tmp_path / "made", {"number.txt": str(number)})
            refs.append(tracker.publish(made, "pca", Kind.LEARNER, {}, aliases=aliases))
        assert [ref.version for ref in refs] == [0, 1, 2]
        found = {tag: tracker.fetch(f"pca:{tag}", Kind.LEARNER)[0].version for tag in ("first", "best", "latest", "v1")}
    assert found == {"first": 0, "best": 1, "latest": 2, "v1": 1}


def test_content_that_is_known_keeps_its_version_and_takes_the_aliases(
    backend: Backend, project: str, tmp_path: Path
) -> None:
    one, two = (write_files(tmp_path / name, {"a.txt": name}) for name in ("one", "two"))
    with backend.tracker(project) as tracker:
        first = tracker.publish(one, "pca", Kind.LEARNER, {"made": "first"}, aliases=["best"])
        tracker.publish(two, "pca", Kind.LEARNER, {}, aliases=["best"])
    with backend.tracker(project) as tracker:
        assert tracker.publish(one, "pca", Kind.LEARNER, {"made": "again"}, aliases=["best"]) == first
        assert tracker.fetch("pca:best", Kind.LEARNER)[0] == first
        assert tracker.fetch("pca", Kind.LEARNER)[0] == first
    assert backend.metadata(first) == {"made": "first"}
    assert len(backend.versions(project)) == 2


def test_another_project_is_named_in_the_request(backend: Backend, project: str, folder: Path) -> None:
    with backend.tracker(f"{project}-a") as tracker:
        ref = tracker.publish(folder, "acts", Kind.ACTIVATIONS, {})
    with backend.tracker(f"{project}-b") as tracker:
        assert tracker.fetch(f"{project}-a/acts", Kind.ACTIVATIONS)[0] == ref
        with pytest.raises(ArtifactNotFound):
            tracker.fetch("acts", Kind.ACTIVATIONS)
        with pytest.raises(ArtifactNotFound):
            tracker.fetch("nowhere/acts", Kind.ACTIVATIONS)


def test_what_is_missing_is_answered_with_what_there_is(backend: Backend, project: str, folder: Path) -> None:
    with backend.tracker(project) as tracker:
        for name in ("crosscoder", "pca-layer-7"):
            tracker.publish(folder, name, Kind.LEARNER, {}, aliases=["best"])
        with pytest.raises(ArtifactNotFound, match="pca-layer-8") as missing:
            tracker.fetch("pca-layer-8", Kind.LEARNER)
        assert missing.value.existing[0] == f"{project}/pca-layer-7"
        for tag in ("bets", "v9"):
            with pytest.raises(ArtifactNotFound, match=f"{project}/crosscoder:best"):
                tracker.fetch(f"crosscoder:{tag}", Kind.LEARNER)
        with pytest.raises(ArtifactNotFound):
            tracker.publish(folder, "report", Kind.REPORT, {}, uses=[ArtifactRef(project, "crosscoder", 5)])
    assert len(backend.versions(project)) == 2


def test_a_name_has_one_kind(backend: Backend, project: str, folder: Path, tmp_path: Path) -> None:
    other = write_files(tmp_path / "other", {"other.txt": "other"})
    with backend.tracker(project) as tracker:
        tracker.publish(folder, "pca", Kind.LEARNER, {})
        with pytest.raises(WrongKind, match="'learner', expected 'report'"):
            tracker.fetch("pca", Kind.REPORT)
        with pytest.raises(WrongKind, match="'learner', expected 'report'"):
            tracker.publish(other, "pca", Kind.REPORT, {})
    assert len(backend.versions(project)) == 1
    assert backend.inputs(tracker.run_id) == []


def test_a_run_remembers_what_it_used(backend: Backend, project: str, folder: Path, tmp_path: Path) -> None:
    with backend.tracker(project, "cache") as tracker:
        fetched = tracker.publish(folder, "acts", Kind.ACTIVATIONS, {})
        named = tracker.publish(write_files(tmp_path / "b", {"b": "b"}), "more", Kind.ACTIVATIONS, {})
    with backend.tracker(project, "train") as tracker:
        tracker.fetch("acts", Kind.ACTIVATIONS)
        tracker.publish(write_files(tmp_path / "c", {"c": "c"}), "pca", Kind.LEARNER, {}, uses=[named])
    assert backend.inputs(tracker.run_id) == [str(fetched), str(named)]


def test_damaged_content_is_refused_and_the_file_named(backend: Backend, project: str, folder: Path) -> None:
    with backend.tracker(project) as tracker:
        ref = tracker.publish(folder, "pca", Kind.LEARNER, {})
        backend.damage(ref, "weights/a.bin")
        for _ in range(2):
            with pytest.raises(CorruptArtifact, match=r"weights/a\.bin") as corrupt:
                tracker.fetch("pca", Kind.LEARNER)
            assert corrupt.value.file == "weights/a.bin"
            assert corrupt.value.expected != corrupt.value.found


def test_what_cannot_be_stored_is_refused_and_nothing_published(
    backend: Backend, project: str, folder: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    linked = write_files(tmp_path / "linked", {"a": "a"})
    (linked / "folder").symlink_to(folder)
    with backend.tracker(project) as tracker:
        for name in ("a/b", "a:b", "", "ä", "..", "x" * 129):
            with pytest.raises(InvalidName, match="letters, digits"):
                tracker.publish(folder, name, Kind.LEARNER, {})
        for alias in ("v3", "a:b", ""):
            with pytest.raises(InvalidName, match="alias"):
                tracker.publish(folder, "pca", Kind.LEARNER, {}, aliases=[alias])
        for unfit in ({"x": math.nan}, {"x": {1, 2}}, {"x": b"bytes"}):
            with pytest.raises(InvalidValue, match="must be JSON"):
                tracker.publish(folder, "pca", Kind.LEARNER, unfit)  # type: ignore[arg-type]
        for source in (empty, tmp_path / "absent", linked):
            with pytest.raises(InvalidValue, match="publish"):
                tracker.publish(source, "pca", Kind.LEARNER, {})
    assert backend.versions(project) == []


def test_a_tracker_works_only_inside_its_block(backend: Backend, project: str, folder: Path) -> None:
    tracker = backend.tracker(project)
    assert isinstance(tracker, Tracker)
    assert tracker.run_id in tracker.describe()
    with pytest.raises(RunNotActive, match="with tracker"):
        tracker.log({"x": 1.0})
    with tracker:
        assert tracker.run_id in tracker.describe()
    with pytest.raises(RunNotActive):
        tracker.publish(folder, "pca", Kind.LEARNER, {})


def test_lightning_logs_into_the_same_run(backend: Backend, project: str, tmp_path: Path) -> None:
    import torch
    from lightning import pytorch as pl
    from torch.utils.data import DataLoader

    class Line(pl.LightningModule):
        def __init__(self, slope: float) -> None:
            super().__init__()
            self.save_hyperparameters()
            self.slope = torch.nn.Parameter(torch.tensor(slope))

        def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
            self.log("loss", loss := (self.slope * batch - batch).square().mean())
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    batches: DataLoader[torch.Tensor] = DataLoader([torch.ones(1)] * 3)  # type: ignore[arg-type]
    with backend.tracker(project, config={"lr": 0.1}) as tracker:
        tracker.log({"before": 1.0}, step=0)
        trainer = pl.Trainer(
            max_epochs=1,
            logger=tracker.lightning_logger(),
            log_every_n_steps=1,
            accelerator="cpu",
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(Line(3.0), batches)
        tracker.log({"after": 1.0})
    curve = backend.curve(tracker.run_id, "loss")
    assert [step for step, _ in curve] == [0, 1, 2]
    assert [value for _, value in curve] == pytest.approx([4.0, 2.56, 1.6384])
    assert backend.curve(tracker.run_id, "after") == [(3, 1.0)]
    assert backend.config(tracker.run_id) == {"lr": 0.1}
    assert backend.status(tracker.run_id) == "finished"


def test_the_digest_is_the_one_that_wandb_gives(backend: Backend, project: str, tmp_path: Path) -> None:
    files = {"b.txt": "hello", "a/c.txt": "", "a.txt": "x", "ü.txt": "y"}
    with backend.tracker(project) as tracker:
        ref = tracker.publish(write_files(tmp_path / "made", files), "pca", Kind.LEARNER, {})
    # From md5sum, over "wandb-artifact-manifest-v1" and a line `path:base64 MD5` per file in order of path.
    assert backend.digest(ref) == "d8d4269d7fd14b748807423292886c2a"
