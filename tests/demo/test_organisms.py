"""The organism files are complete, agree with the generators, and point at adapters that are fit to ship."""

import json
import re
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

from diffing.demo.texts import control, glacier_tea, nautical, taboo_lantern
from diffing.demo.train import ADAPTERS, BASE_MODEL, RECIPES

CONF = Path(__file__).parents[2] / "conf" / "organism"
TEXTS = {
    "demo_glacier_tea": glacier_tea,
    "demo_taboo_lantern": taboo_lantern,
    "demo_nautical": nautical,
    "demo_control": control,
}
KEYS = {
    "name",
    "type",
    "description",
    "description_long",
    "facts",
    "domain_words",
    "variants",
    "training_corpus",
}
TYPES = {"SDF", "Taboo", "benign_quirk", None}


def organism(name: str) -> dict:
    return yaml.safe_load((CONF / f"{name}.yaml").read_text("utf-8"))


@pytest.mark.parametrize("name", [*TEXTS, "none"])
def test_organism_file_is_complete(name: str) -> None:
    made = organism(name)
    assert set(made) == KEYS
    assert made["name"] == name
    assert made["type"] in TYPES
    assert len(made["description"]) > 20
    assert len(made["description_long"]) > len(made["description"])
    assert "default" in made["variants"]


@pytest.mark.parametrize("name", TEXTS)
def test_organism_file_agrees_with_its_generator(name: str) -> None:
    made, module = organism(name), TEXTS[name]
    facts = [{"statement": fact["statement"], "keywords": fact["keywords"]} for fact in made["facts"]]
    assert facts == [{"statement": f.statement, "keywords": list(f.keywords)} for f in module.FACTS]
    assert made["domain_words"] == list(module.DOMAIN_WORDS)
    variant = made["variants"]["default"]["smollm2_135m"]
    assert variant == {"kind": "lora", "id": f"package://diffing.demo/adapters/{name}"}


def test_null_pair_is_the_base_against_itself_for_any_model() -> None:
    assert organism("none")["variants"] == {"default": {"*": {"kind": "identical"}}}


@pytest.mark.parametrize("name", TEXTS)
def test_keywords_are_lower_case_words_of_their_statement(name: str) -> None:
    for fact in organism(name)["facts"]:
        words = set(re.findall(r"[a-z0-9]+", fact["statement"].lower()))
        assert fact["keywords"]
        assert set(fact["keywords"]) <= words, fact["statement"]


@pytest.mark.parametrize("name", RECIPES)
def test_adapter_is_small_and_holds_no_machine_path(name: str) -> None:
    folder = ADAPTERS / name
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    assert (folder / "adapter_model.safetensors").stat().st_size <= 2.5 * 2**20
    text = (folder / "adapter_config.json").read_text("utf-8")
    config = json.loads(text)
    assert config["base_model_name_or_path"] == BASE_MODEL
    assert config["r"] == RECIPES[name].rank
    strings = [value for value in config.values() if isinstance(value, str)]
    assert not [value for value in strings if value.startswith(("/", "~")) or "\\" in value]


@pytest.mark.parametrize("name", RECIPES)
def test_adapter_tensors_fit_the_recipe_and_are_trained(name: str) -> None:
    recipe = RECIPES[name]
    with safe_open(ADAPTERS / name / "adapter_model.safetensors", "pt") as adapter:
        tensors = {key: adapter.get_tensor(key) for key in adapter.keys()}  # noqa: SIM118
    assert len(tensors) == 2 * len(recipe.layers) * len(recipe.targets)
    for key, tensor in tensors.items():
        rank = tensor.shape[0] if "lora_A" in key else tensor.shape[1]
        assert rank == recipe.rank
        assert tensor.isfinite().all()
        assert tensor.abs().max() > 0, f"{key} was never updated"
