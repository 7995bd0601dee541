"""Every sweep names settings that exist and optimises a number that a run of it really logs."""

import itertools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate

import analyze
import evaluate_agents
from diffing.entry.choices import CONF, check_choices
from tests.entry.preparing import overrides_of
from tests.wandb_server.server import running_server
from trackers import LocalStore

ROOT = Path(__file__).parents[1]
SWEEPS = sorted((ROOT / "sweeps").glob("*.yaml"))
PROGRAMS = {"analyze.py": analyze.main, "evaluate_agents.py": evaluate_agents.main}
ANSWERS = {"answers.prompts": "[Bread?]", "answers.max_new_tokens": 2, "top": 4, "patchscope_scales": "[1.0]"}
DICTIONARY = {
    **ANSWERS, "k": 2, "rows_per_latent": 1, "training.batch_size": 16, "training.max_steps": 4, "min_steps": 4,
    "read": 1, "drawn": 1, "candidates": 2, "bridge_documents": 2, "bridge_tokens": 8, "bridge_sizes": "[1]",
    "examples": 2, "per_band": 0, "steered": 1, "steering_layers": "[]",
}  # fmt: skip
SMALL: dict[str, dict[str, object]] = {
    "activation_difference_lens": {**ANSWERS, "layers": "[1]", "n_positions": 8, "steering_layers": "[]"},
    "pca": {**ANSWERS, "n_components": 4, "read": 1, "steered": 1, "steering_layers": "[]"},
    "sae_difference": DICTIONARY,
    "crosscoder": {**DICTIONARY, "training.k_start": 4, "training.k_annealing_steps": 1},
}
"""Settings of the methods that make a run on the tiny pair last a second."""


def combinations(sweep: Mapping[str, Any]) -> Iterator[dict[str, object]]:
    """What the grid hands out."""
    parameters = sweep["parameters"]
    axes = [each["values"] if "values" in each else [each["value"]] for each in parameters.values()]
    yield from (dict(zip(parameters, point, strict=True)) for point in itertools.product(*axes))


def written(settings: Mapping[str, object]) -> list[str]:
    """As `${args_no_hyphens}` writes them."""
    return [f"{key}={value}" for key, value in settings.items()]


def small(method: str) -> dict[str, object]:
    return {f"diffing.method.{key}": value for key, value in SMALL[method].items()}


def run(program: str, overrides: list[str]) -> None:
    """One run of an entry point, in this process."""
    with initialize_config_dir(str(CONF), version_base=None):
        HydraConfig.instance().set_config(compose(Path(program).stem, overrides, return_hydra_config=True))
        config = compose(Path(program).stem, overrides)
    PROGRAMS[program].__wrapped__(config)


@pytest.fixture
def tiny_pair(base_folder: Path, adapter_folder: Path, tmp_path: Path) -> dict[str, object]:
    """Overrides that put the tiny pair in the place of a real one, and everything below `tmp_path`."""
    given = (each.split("=", 1) for each in overrides_of(base_folder, adapter_folder, tmp_path))
    kept = {key: value for key, value in given if not key.startswith("diffing")}
    return {**kept, "html_dir": tmp_path / "html", "hydra.run.dir": tmp_path / "hydra"}


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_every_combination_of_a_sweep_is_a_config(path: Path) -> None:
    sweep = yaml.safe_load(path.read_text("utf-8"))
    for combination in combinations(sweep):
        check_choices(written(combination), required=("organism", "diffing/method"))
        with initialize_config_dir(str(CONF), version_base=None):
            config = compose(Path(sweep["program"]).stem, written(combination))
        assert config.tracker.project == sweep["project"]
        for group in (config.diffing.method, config.get("agent")):
            instantiate(group, _convert_="object")


@pytest.mark.parametrize("path", SWEEPS, ids=lambda path: path.stem)
def test_the_metric_of_a_sweep_is_logged(path: Path, tiny_pair: dict[str, object], tmp_path: Path) -> None:
    sweep = yaml.safe_load(path.read_text("utf-8"))
    first = next(combinations(sweep))
    method = str(first["diffing/method"])
    if sweep["program"] == "evaluate_agents.py":  # reads what analyze.py published
        run("analyze.py", written({"diffing/method": method, **tiny_pair, **small(method)}))
        kept = {
            key: value for key, value in tiny_pair.items() if key.partition(".")[0] in ("tracker", "organism", "model")
        }
        mine = {**kept, "agent": "scripted", "html_dir": tmp_path / "html", "log_dir": tmp_path / "inspect"}
    else:
        mine = {**tiny_pair, **small(method)}
    run(sweep["program"], written({**first, **mine}))
    index = LocalStore(tmp_path / "store").index
    assert sweep["metric"]["name"] in index.summary(index.versions()[-1].run)


def test_the_real_agent_runs_what_a_sweep_hands_out(tiny_pair: dict[str, object], tmp_path: Path) -> None:
    sweep = yaml.safe_load((ROOT / "sweeps" / "pca_targets.yaml").read_text("utf-8"))
    fixed = {**tiny_pair, **small("pca"), "tracker": "wandb"}
    fixed["hydra.run.dir"] = f"{tmp_path}/hydra_${{diffing.method.target}}"
    sweep["parameters"] |= {key: {"value": str(value)} for key, value in fixed.items()}
    sweep["program"] = str(ROOT / sweep["program"])
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(sweep, sort_keys=False), "utf-8")
    with running_server() as server:
        folders = {name: str(tmp_path / name) for name in ("HOME", "WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR")}
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WANDB_")}
        path = f"{Path(sys.executable).parent}:{clean['PATH']}"  # where the agent finds `python`
        mine = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40, "PYTHONPATH": str(ROOT), "PATH": path}

        def wandb(*words: str) -> str:
            done = subprocess.run(
                [sys.executable, "-m", "wandb", *words],
                cwd=tmp_path, env=clean | folders | mine, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
            return done.stdout + done.stderr

        (agent,) = re.findall(r"wandb agent (\S+)", wandb("sweep", "sweep.yaml"))
        wandb("agent", "--count", "1", agent)  # a run takes 15 seconds
        (done,) = server.state.runs.values()
    assert (done.state, done.sweep, done.project) == ("finished", agent.rpartition("/")[2], sweep["project"])
    assert done.config["diffing.method.target"]["value"] == "difference"
    assert sweep["metric"]["name"] in done.summary
