"""`python -m trackers`, as a person types it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.trackers.harness import LocalBackend, read_files, write_files
from trackers import ArtifactRef, Kind

ROOT = Path(__file__).parents[2]


def trackers(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    clean = {name: value for name, value in os.environ.items() if name != "TRACKER_ROOT"}
    command = [sys.executable, "-m", "trackers", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True)


@pytest.fixture
def filled(local: LocalBackend, tmp_path: Path) -> LocalBackend:
    """activations -> two learners -> one report; and one name that is in two projects."""
    with local.tracker("demo", "cache") as tracker:
        made = write_files(tmp_path / "a", {"shard-0.h5": b"0" * 2_500_000, "spec.json": "{}"})
        tracker.publish(made, "acts", Kind.ACTIVATIONS, {"tokens": 1000})
    for number in (0, 1):
        with local.tracker("demo", "train") as tracker:
            tracker.fetch("acts", Kind.ACTIVATIONS)
            made = write_files(tmp_path / "b", {"weights": f"{number}"})
            tracker.publish(made, "pca", Kind.LEARNER, {"k": number}, aliases=["best"] if number == 0 else [])
    with local.tracker("demo", "analyze") as tracker:
        tracker.fetch("pca:best", Kind.LEARNER)
        tracker.publish(write_files(tmp_path / "c", {"report.json": "{}"}), "report", Kind.REPORT, {})
    with local.tracker("other", "cache") as tracker:
        tracker.publish(tmp_path / "a", "acts", Kind.ACTIVATIONS, {})
    return local


def test_ls_lists_every_version_in_columns(filled: LocalBackend) -> None:
    done = trackers("ls", TRACKER_ROOT=str(filled.root))
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["NAME", "VERSION", "ALIASES", "KIND", "SIZE", "CREATED", "RUN"]
    assert [line.split()[:4] for line in lines] == [
        ["demo/acts", "v0", "latest", "activations"],
        ["demo/pca", "v0", "best", "learner"],
        ["demo/pca", "v1", "latest", "learner"],
        ["demo/report", "v0", "latest", "report"],
        ["other/acts", "v0", "latest", "activations"],
    ]
    assert "2.5 MB" in lines[0]
    assert all(line[header.index("KIND") :].startswith(line.split()[3]) for line in lines)
    assert re.search(r"cache [0-9a-f]{8} \(finished\)", lines[0])


def test_show_prints_all_that_is_known(filled: LocalBackend) -> None:
    done = trackers("show", "pca:best", "--root", filled.root)
    version = filled.store.index.versions()[1]
    assert done.returncode == 0
    for part in (
        "demo/pca:v0",
        "learner",
        version.digest,
        version.sha256,
        version.run,
        '"k": 0',
        "weights",
        "demo/acts:v0",
    ):
        assert part in done.stdout


def test_get_copies_the_files_or_names_their_folder(filled: LocalBackend, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    done = trackers("get", "demo/acts", "--to", target, "--root", filled.root)
    assert done.stdout == f"demo/acts:v0 {target}\n"
    assert read_files(target) == read_files(tmp_path / "a")
    (target / "spec.json").write_text("a copy may be changed")
    again = trackers("get", "demo/acts", "--to", target, "--root", filled.root)
    assert (again.returncode, again.stdout) == (2, "")
    assert "empty folder" in again.stderr
    ref, folder = trackers("get", "demo/acts:v0", "--root", filled.root).stdout.split()
    assert ref == "demo/acts:v0"
    assert read_files(Path(folder)) == read_files(tmp_path / "a")


def test_lineage_is_a_tree_in_both_directions(filled: LocalBackend) -> None:
    done = trackers("lineage", "report", "--root", filled.root)
    assert done.stdout.splitlines()[:6] == [
        "demo/report:v0",
        "made from",
        "  `-- demo/pca:v0",
        "      `-- demo/acts:v0",
        "used for",
        "  nothing",
    ]
    done = trackers("lineage", "demo/acts", "--root", filled.root)
    assert done.stdout.splitlines()[:7] == [
        "demo/acts:v0",
        "made from",
        "  nothing",
        "used for",
        "  |-- demo/pca:v0",
        "  |   `-- demo/report:v0",
        "  `-- demo/pca:v1",
    ]
    assert len(re.findall(r"train [0-9a-f]{8}", done.stdout.splitlines()[7])) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("show", "pcaa"), "no artifact 'pcaa:latest'; there is: demo/pca"),
        (("get", "demo/pca:v7"), "there is: demo/pca:v"),
        (("lineage", "acts"), "demo/acts:latest, other/acts:latest"),
        (("show", "a b"), "letters, digits"),
    ],
)
def test_what_cannot_be_found_is_a_message_and_code_2(
    filled: LocalBackend, arguments: tuple[str, ...], said: str
) -> None:
    done = trackers(*arguments, "--root", filled.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_store_is_a_message_and_code_2_and_is_not_made(tmp_path: Path) -> None:
    done = trackers("ls", "--root", tmp_path / "absent")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no store at" in done.stderr
    assert not (tmp_path / "absent").exists()


def test_damage_is_a_message_and_code_2(filled: LocalBackend) -> None:
    filled.damage(ArtifactRef("demo", "report", 0), "report.json")
    done = trackers("get", "demo/report", "--root", filled.root)
    assert done.returncode == 2
    assert "'report.json' should have digest" in done.stderr


@pytest.mark.parametrize("arguments", [("push",), ("pull", "demo/pca")])
def test_without_a_key_push_and_pull_say_so_and_do_nothing(
    filled: LocalBackend, no_wandb: Path, arguments: tuple[str, ...]
) -> None:
    done = trackers(*arguments, "--root", filled.root)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.search(r"no API key.*nothing was (sent|copied)", done.stderr)
    assert "Traceback" not in done.stderr


def test_help_names_every_command() -> None:
    done = trackers("--help")
    assert done.returncode == 0
    for command in ("ls", "show", "get", "lineage", "push", "pull"):
        assert command in done.stdout
        assert "REF" in trackers("show", "--help").stdout
