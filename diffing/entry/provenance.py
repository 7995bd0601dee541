"""What made a result: code, packages, device, time."""

import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from diffing.specs import JSON

PACKAGES = ("torch", "transformers", "peft", "tokenizers", "datasets", "lightning", "inspect_ai", "wandb", "numpy")


def provenance(*, seed: int, device: str, seconds: float, uses: Sequence[str]) -> dict[str, JSON]:
    """`uses` are the exact versions of the artifacts that went in; `seconds` is wall time."""
    return {
        "code": _code(),
        "packages": _packages(),
        "seed": seed,
        "device": device,
        "wall_seconds": round(seconds, 1),
        "uses": list(uses),
    }


def _code() -> Mapping[str, JSON]:
    """Commit of this checkout, and whether it has changes; null outside of one."""
    root = Path(__file__).parents[2]

    def git(*words: str) -> str | None:
        try:
            return subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True).stdout
        except (OSError, subprocess.CalledProcessError):
            return None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    return {"commit": commit.strip() if commit else None, "dirty": None if changes is None else bool(changes)}


def _packages() -> Mapping[str, JSON]:
    found: dict[str, JSON] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found
