"""Fit what a method needs before it can run: caches and learners.

python train.py diffing/method=activation_difference_lens organism=demo_glacier_tea
"""

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from diffing.entry import console
from diffing.entry.choices import check_choices
from diffing.errors import InvalidSetting


@hydra.main(version_base=None, config_path="conf", config_name="train")
def main(config: DictConfig) -> None:
    method = HydraConfig.get().runtime.choices["diffing/method"]
    with console.errors_without_traceback():
        raise InvalidSetting(
            f"{method} needs no training: it reads the models directly; run\n"
            f"  python analyze.py diffing/method={method} organism={config.organism.name}"
        )


if __name__ == "__main__":
    with console.errors_without_traceback():
        check_choices(sys.argv[1:], required=("organism", "diffing/method"))
    main()
