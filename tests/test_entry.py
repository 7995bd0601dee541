"""The commands as a user types them: what they say when they work, and when the input is wrong."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from diffing.entry.choices import CONF, GROUPS, check_choices, choose_variant, options
from diffing.entry.setup import pair_spec, plain
from diffing.errors import MissingInput, UnknownName
from tests import tiny
from tests.wandb_server.environment import speaking_to
from tests.wandb_server.server import running_server

ROOT = Path(__file__).parents[1]
METHOD = "diffing/method=activation_difference_lens"


def run(script: str, *overrides: str, folder: Path, **env: str) -> subprocess.CompletedProcess:
    """One command in a scratch folder with a store of its own; never the network, never the user's W&B."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
    return subprocess.run(
        [sys.executable, str(ROOT / script), f"hydra.run.dir={folder / 'hydra'}", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env=clean | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "HF_HUB_OFFLINE": "1"} | env,
    )


@pytest.fixture(scope="module")
def tiny_overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Overrides that put a tiny LoRA pair under the name of a real model and organism."""
    folder = tmp_path_factory.mktemp("pair")
    base = tiny.save_model(folder / "base")
    adapter = tiny.save_adapter(folder / "adapter", tiny.model())
    text = folder / "texts.txt"
    text.write_text("\n\n".join(tiny.TEXTS), "utf-8")
    return [
        METHOD, "organism=demo_nautical", "tracker=local", "corpus=[file]", f"corpora.file.id={text}",
        f"model.id={base}", "model.bundled=null", f"organism.variants.default.smollm2_135m.id={adapter}",
        "diffing.method.layers=[1]", "diffing.method.steering_layers=[1]", "diffing.method.n_positions=8",
        "diffing.method.answers.max_new_tokens=3", "diffing.method.answers.prompts=[Bread?]",
    ]  # fmt: skip


def test_analyze_then_evaluate_ends_in_a_grade(tiny_overrides: list[str], tmp_path: Path) -> None:
    analysed = run("analyze.py", *tiny_overrides, folder=tmp_path)
    assert analysed.returncode == 0, analysed.stderr + analysed.stdout
    name = "report-activation_difference_lens-smollm2_135m-demo_nautical-default"
    assert f"model-diffing/{name}:v0" in analysed.stdout
    page = tmp_path / "outputs" / "html" / f"{name}-v0.html"
    assert page.is_file()
    kept = [o for o in tiny_overrides if not o.startswith(("corpus", "corpora"))]
    page.unlink()
    graded = run("evaluate_agents.py", *kept, folder=tmp_path)
    assert graded.returncode == 0, graded.stderr + graded.stdout
    assert re.search(r"grade\s+fact_recall \d\.\d\d", graded.stdout)
    assert page.is_file()  # drawn anew from the fetched artifact, not from a results folder
    lineage = run_trackers(tmp_path, "lineage", name.replace("report", "evaluation"))
    assert name in lineage.stdout
    again = run("analyze.py", *tiny_overrides, folder=tmp_path)
    assert again.returncode == 0, again.stderr


def test_the_same_commands_run_on_wandb_and_pass_the_report_through_it(
    tiny_overrides: list[str], tmp_path: Path
) -> None:
    with running_server() as server:
        wandb = speaking_to(server.url, tmp_path)
        online = [override for override in tiny_overrides if override != "tracker=local"]
        analysed = run("analyze.py", *online, folder=tmp_path, **wandb)
        assert analysed.returncode == 0, analysed.stderr + analysed.stdout
        assert "tracking with W&B" in analysed.stdout
        (tmp_path / "elsewhere").mkdir()
        kept = [override for override in online if not override.startswith(("corpus", "corpora"))]
        graded = run("evaluate_agents.py", *kept, folder=tmp_path / "elsewhere", **wandb)
        assert graded.returncode == 0, graded.stderr + graded.stdout
    assert "report-activation_difference_lens-smollm2_135m-demo_nautical-default:v0" in graded.stdout
    assert "evaluation-activation_difference_lens-smollm2_135m-demo_nautical-default:v0" in graded.stdout


def run_trackers(folder: Path, *words: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "trackers", *words, "--root", str(folder / "outputs" / "store")],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([METHOD, "organism=demo_glacier_te"], "unknown organism 'demo_glacier_te'; known, nearest first: demo_glac"),
        (
            [METHOD, "organism=none", "model=smollm2_13m"],
            "unknown model 'smollm2_13m'; known, nearest first: smollm2_1",
        ),
        (["diffing/method=activation_diff_lens", "organism=none"], "nearest first: activation_difference_lens"),
        (
            [METHOD, "organism=none", "corpus=[python_doc]"],
            "unknown corpus 'python_doc'; known, nearest first: python_",
        ),
        ([METHOD], "say which organism to use, for example organism="),
        ([METHOD, "organism=demo_control", "organism_variant=defualt"], "unknown variant of demo_control 'defualt'"),
    ],
)
def test_a_name_that_does_not_exist_is_answered_with_the_nearest(
    overrides: list[str], message: str, tmp_path: Path
) -> None:
    found = run("analyze.py", *overrides, folder=tmp_path)
    assert found.returncode == 2
    assert message in found.stdout
    assert "Traceback" not in found.stdout + found.stderr


def test_an_unpublished_report_cannot_be_evaluated(tmp_path: Path) -> None:
    found = run("evaluate_agents.py", METHOD, "organism=none", "tracker=local", folder=tmp_path)
    assert found.returncode == 2
    assert "report-activation_difference_lens-smollm2_135m-none-default" in found.stdout
    assert "Traceback" not in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("diffing.method.layers=[9]", "layer 9 is out of range"),
        ("corpora.file.id=nowhere.txt", "nowhere.txt"),
        ("organism.variants.default.smollm2_135m.id=./no_adapter", "no_adapter"),
        ("diffing.method.positions=[99]", "positions [99] are not among"),
        ("tracker.kind=paper", "expected auto, local or wandb"),
        ("model.dtype=float12", "model.dtype=float12"),
    ],
)
def test_a_wrong_setting_is_named_without_a_traceback(
    override: str, message: str, tiny_overrides: list[str], tmp_path: Path
) -> None:
    extra = ["diffing.method.steering_layers=[9]"] if "layers=[9]" in override else []
    found = run("analyze.py", *tiny_overrides, override, *extra, folder=tmp_path)
    assert found.returncode == 2, found.stdout + found.stderr
    assert message in found.stdout
    assert "Traceback" not in found.stdout + found.stderr
    assert not list((tmp_path / "outputs").glob("store/**/report.json"))


def test_an_empty_corpus_is_refused(tiny_overrides: list[str], tmp_path: Path) -> None:
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n", "utf-8")
    found = run("analyze.py", *tiny_overrides, f"corpora.file.id={empty}", folder=tmp_path)
    assert found.returncode == 2, found.stdout + found.stderr
    assert "gives no documents" in found.stdout


def test_an_unknown_setting_of_a_method_is_refused(tmp_path: Path) -> None:
    found = run("analyze.py", METHOD, "organism=none", "diffing.method.pathscope_scales=[1]", folder=tmp_path)
    assert found.returncode != 0
    assert "pathscope_scales" in found.stdout + found.stderr
    assert "Traceback" not in found.stdout + found.stderr


def test_training_a_method_that_needs_none_says_so(tmp_path: Path) -> None:
    found = run("train.py", METHOD, "organism=none", folder=tmp_path)
    assert found.returncode == 2
    assert "needs no training" in found.stdout


@pytest.mark.parametrize("script", ["analyze.py", "evaluate_agents.py", "train.py"])
def test_help_shows_a_command_to_copy(script: str, tmp_path: Path) -> None:
    found = run(script, "--help", folder=tmp_path)
    assert found.returncode == 0
    assert "organism=demo_glacier_tea" in found.stdout


def test_choices_understand_lists_and_sweeps() -> None:
    check_choices(["-m", "organism=none,demo_control", "corpus=[python_docs,chat_prompts]"], required=("organism",))
    with pytest.raises(UnknownName, match="'chat_prompt'"):
        check_choices(["corpus=[python_docs,chat_prompt]"])
    with pytest.raises(MissingInput, match="organism"):
        check_choices([METHOD], required=("organism",))


def test_a_base_without_an_entry_lists_those_that_have_one() -> None:
    variants = {"default": {"gemma3_1B": {"kind": "lora", "id": "a/b"}}}
    with pytest.raises(UnknownName, match=r"base model of caps \(default\) 'gemma3_4B'; .*gemma3_1B"):
        choose_variant("caps", variants, "default", "gemma3_4B")


@pytest.mark.parametrize("organism", options("organism"))
@pytest.mark.parametrize("method", options("diffing/method"))
def test_every_organism_and_method_composes_and_instantiates(organism: str, method: str) -> None:
    for root in ("analyze", "evaluate_agents"):
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose(root, [f"organism={organism}", f"diffing/method={method}"])
        spec = pair_spec(config)
        assert spec.organism == organism
        assert instantiate(config.diffing.method, _convert_="object").name == method
        assert plain(config)["organism"]["description"]


def test_a_model_may_say_how_its_activations_are_cached() -> None:
    with initialize_config_dir(str(CONF), version_base=None):
        config = compose("train", ["diffing/method=pca", "organism=none"])
        assert (config.preprocessing.layers, config.infrastructure.shard_mib) == ([0.5, 0.97], 32)
        overridden = compose("train", ["diffing/method=pca", "organism=none", "preprocessing.layers=[3]"])
        assert overridden.preprocessing.layers == [3]


@pytest.mark.parametrize("group", GROUPS)
def test_every_group_has_options(group: str) -> None:
    assert options(group)
