"""Every sweep names settings that exist and optimises a number that is really logged."""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from diffing.entry.choices import CONF, check_choices
from diffing.methods.base import Study
from diffing.models.pair import ModelPair
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from tests import tiny

SWEEPS = sorted((Path(__file__).parents[1] / "sweeps").glob("*.yaml"))
SMALL = {"layers": [1], "steering_layers": [], "n_positions": 8, "max_texts": 4, "patchscope_scales": [1.0]}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_key_of_a_sweep_exists_and_its_metric_is_logged(path: Path, lora_pair: ModelPair, tmp_path: Path) -> None:
    sweep = yaml.safe_load(path.read_text("utf-8"))
    longest = max(len(parameter.get("values", [1])) for parameter in sweep["parameters"].values())
    for number in range(longest):
        overrides = []
        for key, parameter in sweep["parameters"].items():
            values = parameter.get("values", [parameter.get("value")])
            overrides.append(f"{key}={values[number % len(values)]}")
        check_choices(overrides, required=("organism", "diffing/method"))
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose(Path(sweep["program"]).stem, overrides)
        instantiate(config.diffing.method, _convert_="object")
    lines = tmp_path / "lines.txt"
    lines.write_text("\n\n".join(tiny.TEXTS), "utf-8")
    corpus = Corpus(CorpusSpec(name="lines", source="file", id=str(lines)))
    report = instantiate(config.diffing.method, _convert_="object", **SMALL).run(Study(lora_pair, [corpus]))
    assert sweep["metric"]["name"] in report.scalars
