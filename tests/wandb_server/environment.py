"""What the environment of a process says to a wandb client: which server, and folders of its own."""

from pathlib import Path

PRIVATE = ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "WANDB_ARTIFACT_DIR")


def speaking_to(url: str, folder: Path) -> dict[str, str]:
    """Variables of a machine whose client knows this server alone, and keeps what it has under `folder`."""
    server = {"WANDB_BASE_URL": url, "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"}
    return server | {name: str(folder / name.lower()) for name in PRIVATE}
