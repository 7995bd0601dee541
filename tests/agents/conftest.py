"""Reports of every method, made once."""

from pathlib import Path

import pytest

from tests import tiny
from tests.agents.every_method import publish_all
from tests.entry.preparing import pair_overrides


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder of a store with the reports of a tiny pair, and overrides that name the pair."""
    folder = tmp_path_factory.mktemp("every_method")
    base = tiny.save_model(folder / "base")
    pair = pair_overrides(base, tiny.save_adapter(folder / "adapter", tiny.model()), folder)
    publish_all(folder, pair)
    return folder, pair
