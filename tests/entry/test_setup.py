"""The corpora of a study: those chosen, and the organism's own where they are asked for."""

from pathlib import Path

import pytest

from diffing.entry import setup
from diffing.errors import UnknownName
from tests.entry.preparing import composed, overrides_of


def test_the_training_corpus_is_read_only_where_it_is_asked_for(
    base_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    overrides = overrides_of(base_folder, adapter_folder, tmp_path)
    names = {}
    for asked in ("false", "true"):
        config = composed(overrides, f"preprocessing.training_corpus={asked}")
        study = setup.with_training_corpus(config, setup.study(config))
        names[asked] = [corpus.spec.name for corpus in study.corpora]
    assert names == {"false": ["file"], "true": ["file", "training"]}
    assert next(iter(study.corpora[1]))


def test_the_finetune_is_known_and_those_of_other_organisms_where_they_are_named(
    base_folder: Path, adapter_folder: Path, tmp_path: Path
) -> None:
    overrides = overrides_of(base_folder, adapter_folder, tmp_path)
    study = setup.study(composed(overrides, "baseline_organisms=[demo_nautical,none]"))
    assert study.finetune is not None
    assert study.finetune.corpus is not None
    assert [(each.organism, each.corpus is None) for each in study.other_finetunes] == [
        ("demo_nautical", False), ("none", True),
    ]  # fmt: skip
    with pytest.raises(UnknownName, match="demo_nautical"):
        setup.study(composed(overrides, "baseline_organisms=[demo_nautic]"))


def test_an_organism_without_training_data_adds_none(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    overrides = overrides_of(base_folder, adapter_folder, tmp_path)
    config = composed(overrides, "preprocessing.training_corpus=true", "organism.training_corpus=null")
    assert len(setup.with_training_corpus(config, setup.study(config)).corpora) == 1
