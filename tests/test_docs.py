"""The made-up method of the docs works as it is written there, and the README names only what exists."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from hydra.utils import instantiate

from diffing.entry.choices import CONF, options
from diffing.methods.base import Study
from diffing.models.pair import ModelPair
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from tests import tiny

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "adding_a_method.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)[number]


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The method's file, as a module under the name that its yaml gives."""
    module = ModuleType("diffing.methods.layer_angle")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(block("python"), module.__dict__)
    return module


def test_the_made_up_method_runs_and_its_yaml_instantiates_it(
    made_up: ModuleType, full_pair: ModelPair, identical_pair: ModelPair, tmp_path: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("\n\n".join(tiny.TEXTS), "utf-8")
    corpus = Corpus(CorpusSpec(name="lines", source="file", id=str(path)))
    method = instantiate(yaml.safe_load(block("yaml")), _convert_="object")
    assert list(method.layers) == list(made_up.LayerAngle().layers)
    report = method.run(Study(full_pair, [corpus]))
    assert abs(report.scalars["least_cosine"].value) < 0.99
    assert method.run(Study(identical_pair, [corpus])).no_difference


def test_the_tests_of_the_made_up_method_can_be_read_by_python() -> None:
    compile(block("python", 1), "test_layer_angle.py", "exec")


def test_the_readme_lists_every_choice() -> None:
    for group in ("diffing/method", "organism", "model", "corpus", "agent", "tracker"):
        line = next(line for line in README.splitlines() if line.startswith(f"| `{group}=`"))
        assert [name for name in options(group) if name not in line] == []


def test_links_of_the_docs_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert target.startswith("http") or (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_organism_says_what_is_true_of_it() -> None:
    for name in options("organism"):
        organism = yaml.safe_load((CONF / "organism" / f"{name}.yaml").read_text("utf-8"))
        assert organism["name"] == name
        assert organism["description"].strip()
        assert organism["description_long"].strip()
        assert all(fact["keywords"] for fact in organism["facts"])
