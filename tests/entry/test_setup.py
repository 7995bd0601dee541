"""The corpora of a study: those chosen, and the organism's own where they are asked for."""

from pathlib import Path

from diffing.entry import setup
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


def test_an_organism_without_training_data_adds_none(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> None:
    overrides = overrides_of(base_folder, adapter_folder, tmp_path)
    config = composed(overrides, "preprocessing.training_corpus=true", "organism.training_corpus=null")
    assert len(setup.with_training_corpus(config, setup.study(config)).corpora) == 1
