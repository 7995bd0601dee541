"""What the tests of several methods look at."""

from pathlib import Path

import pytest

from diffing.models.pair import ModelPair
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from tests import tiny
from tests.methods.studies import PLANTED_TOKEN, planted


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(tiny.TEXTS), "utf-8")
    return Corpus(CorpusSpec(name="few_lines", source="file", id=str(path)))


@pytest.fixture
def planted_pair(base_folder: Path, tmp_path: Path) -> ModelPair:
    return planted(base_folder, tmp_path, PLANTED_TOKEN)
