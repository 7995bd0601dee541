"""Fit what a method needs before it can run: activation caches, and the learners on them.

python train.py diffing/method=pca organism=demo_glacier_tea
"""

import sys

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from diffing.entry import console, learners, setup
from diffing.entry.caches import Mode, mode_of
from diffing.entry.choices import check_choices
from diffing.errors import InvalidSetting
from diffing.methods.base import LearningMethod


@hydra.main(version_base=None, config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    console.set_up_logging()
    with console.errors_without_traceback():
        method = instantiate(config.diffing.method, _convert_="object")
        then = f"python analyze.py diffing/method={method.name} organism={config.organism.name}"
        if not isinstance(method, LearningMethod):
            raise InvalidSetting(f"{method.name} needs no training: it reads the models directly; run\n  {then}")
        study = setup.study(config)
        with setup.tracker(config, job="train") as tracker:
            study, used = learners.with_caches(config, study, tracker)
            lines = {
                cache.corpus: f"{ref}, {cache.n_rows:,} rows" for cache, ref in zip(study.caches, used, strict=True)
            }
            if mode_of(config) is not Mode.PREPROCESSING:
                study, learner = learners.with_learners(config, method, study, tracker, used)
                lines |= {"learner": f"{learner}: {', '.join(study.learners) or 'nothing to fit'}"}
            lines |= {"caches": config.infrastructure.activations_dir, "run": tracker.describe(), "next": then}
            console.summary(f"{method.name} on {study.pair.spec.base.name} and {study.pair.spec.organism}", lines)


if __name__ == "__main__":
    with console.errors_without_traceback():
        check_choices(sys.argv[1:], required=("organism", "diffing/method"))
    main()
