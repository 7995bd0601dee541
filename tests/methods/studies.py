"""Studies of tiny pairs, for the tests of methods that read caches."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from safetensors.torch import save_file

from diffing.activations.collect import collect, store_folder
from diffing.activations.store import ActivationCache
from diffing.activations.tokens import tokenise, tokenizer_digest
from diffing.axes import Side
from diffing.methods.base import LearningMethod, Study
from diffing.models.pair import ModelPair
from diffing.models.sources import pin
from diffing.report import Report
from diffing.specs import CacheSpec, CorpusSpec, TokensSpec
from diffing.text.corpus import Corpus
from tests import tiny

PLANTED_TOKEN = 299


def study_of(pair: ModelPair, caches: Sequence[ActivationCache], folder: Path, method: LearningMethod) -> Study:
    """The study with the method's learners fitted and saved."""
    study = Study(pair, [], caches=caches)
    fitted = method.fit(study, None)
    for name, learner in fitted.items():
        learner.save(folder / name)
    return replace(study, learners={name: folder / name for name in fitted})


def collected(pair: ModelPair, folder: Path, layers: Sequence[int]) -> ActivationCache:
    path = folder / "texts.txt"
    path.write_text("\n\n".join(tiny.TEXTS), "utf-8")
    corpus = Corpus(CorpusSpec(name="few_lines", source="file", id=str(path)))
    tokens_spec = TokensSpec(corpus.spec, tokenizer_digest(pair.tokenizer))
    base = CacheSpec(tokens_spec, pair.spec.base, None, layers, "float32")
    specs = {Side.BASE: base, Side.FINETUNED: replace(base, finetuned=pair.spec.finetuned)}
    tokens = tokenise(corpus, pair.tokenizer, tokens_spec, folder)
    assert collect(pair, tokens, specs, folder, batch_tokens=64, shard_mib=1)
    return ActivationCache(*(store_folder(specs[side], folder) for side in Side))


def rows(report: Report, table: str, **where: object) -> pd.DataFrame:
    frame = report.tables[table].frame
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def planted(base_folder: Path, tmp_path: Path, token: int) -> ModelPair:
    """The finetuned side is the base with the head's row of a token added at layer 2."""
    model = tiny.model()
    direction = model.lm_head.weight[token] / model.model.norm.weight
    save_file({"v": direction.clone() * 5}, tmp_path / "v.safetensors")
    return ModelPair(pin(tiny.pair_spec(base_folder, "steering_vector", tmp_path / "v.safetensors", layer=2)), "cpu")
