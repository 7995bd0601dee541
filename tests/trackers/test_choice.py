"""Which tracker is chosen, and how soon W&B gives up without a key or a network."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

from trackers import LocalTracker, TrackerUnavailable, WandbTracker, auto_tracker
from trackers.credentials import key_source, server_url

KEY = "k" * 40


def choose(root: Path) -> tuple[type, str]:
    tracker, line = auto_tracker(root, "demo", "job", {})
    return type(tracker), line


def test_without_a_key_the_local_store_is_chosen(no_wandb: Path, tmp_path: Path) -> None:
    kind, line = choose(tmp_path / "store")
    assert kind is LocalTracker
    assert "no API key" in line
    assert "\n" not in line


def test_a_key_in_the_environment_chooses_wandb(
    no_wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    kind, line = choose(tmp_path)
    assert kind is WandbTracker
    assert "WANDB_API_KEY" in line
    assert KEY not in line


@pytest.mark.parametrize("host", ["api.wandb.ai", "api.forge.coreweave.com"])
def test_a_key_in_netrc_chooses_wandb(no_wandb: Path, tmp_path: Path, host: str) -> None:
    (no_wandb / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    kind, line = choose(tmp_path)
    assert kind is WandbTracker
    assert str(no_wandb / ".netrc") in line
    assert KEY not in line


def test_a_key_for_another_host_does_not_count(no_wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "elsewhere"
    netrc.write_text(f"machine example.org\n  login user\n  password {KEY}\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert key_source() is None
    monkeypatch.setenv("WANDB_BASE_URL", "https://example.org/")
    assert key_source() == str(netrc)


def test_the_clients_settings_file_says_which_server(no_wandb: Path) -> None:
    assert server_url() == "https://api.forge.coreweave.com"
    settings = no_wandb / ".config" / "wandb" / "settings"
    settings.parent.mkdir(parents=True)
    settings.write_text("[default]\nbase_url = https://wandb.example.org\n")
    assert server_url() == "https://wandb.example.org"


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_offline_modes_choose_the_local_store(
    no_wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", mode)
    kind, line = choose(tmp_path)
    assert kind is LocalTracker
    assert f"WANDB_MODE={mode}" in line


def test_a_broken_netrc_counts_as_none(no_wandb: Path) -> None:
    (no_wandb / ".netrc").write_text("machine\n password")
    assert key_source() is None


def test_without_a_key_wandb_says_to_use_the_local_tracker(no_wandb: Path, tmp_path: Path) -> None:
    with pytest.raises(TrackerUnavailable, match="tracker=local"), WandbTracker(tmp_path, "demo", "job", {}):
        pass


def test_without_a_network_wandb_says_to_use_the_local_tracker(
    no_wandb: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]  # free again once the block ends
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    with (
        pytest.raises(TrackerUnavailable, match=r"does not answer.*tracker=local.*python -m trackers push"),
        WandbTracker(tmp_path, "d", "j", {}),
    ):
        pass


def test_a_server_that_refuses_the_key_is_reported(
    wandb_server: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "too-short")
    with pytest.raises(TrackerUnavailable, match="tracker=local"), WandbTracker(tmp_path, "demo", "job", {}):
        pass


def test_choosing_imports_neither_wandb_nor_lightning(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from trackers import auto_tracker
tracker, _ = auto_tracker(Path(sys.argv[1]), "demo", "job", {})
with tracker:
    tracker.log({"x": 1})
print(sorted({"wandb", "lightning", "torch", "pandas"} & set(sys.modules)))
"""
    environment = {"HOME": str(tmp_path), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "store"], env=environment, capture_output=True, text=True,
        cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.stdout == "[]\n", done.stderr
