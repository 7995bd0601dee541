"""The whole measurement: every method, with its report and without, on a finetune and on a null pair, from artifacts
that come through W&B to a machine that has nothing, by an investigator that is played over HTTP."""

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
import pytest
from inspect_ai.log import read_eval_log

from diffing.entry.choices import options
from diffing.evidence import Evidence
from diffing.results.collect import of_paths
from diffing.results.rates import FALSE_POSITIVES, SENSITIVITY, rates_table
from tests.agents.every_method import publish_all, report_of
from tests.agents.investigators import CLAUDE
from tests.agents.play import said_to_the_model
from tests.agents.policy import policy
from tests.agents.server import agent_server
from tests.test_entry import ROOT, run
from tests.wandb_server.environment import speaking_to
from tests.wandb_server.server import running_server

AGENT = ["agent=claude", f"agent.model={CLAUDE}", "agent.access=[method,blackbox,scripted]", "agent.interactions=[6]"]


def test_every_method_is_measured_on_a_finetune_and_on_its_null_from_artifacts_alone(
    published: tuple[Path, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, pair = published
    nothing = ["organism=none", *(each for each in pair if not each.startswith("organism"))]
    publish_all(folder, nothing)
    secrets = {
        secret.text.lower()
        for organism in ("demo_nautical", "none")
        for method in options("diffing/method")
        for secret in Evidence([report_of(method, folder, organism)]).secrets
    }
    with running_server() as wandb, agent_server(policy, monkeypatch) as service:
        push(folder / "store", speaking_to(wandb.url, tmp_path / "there"))
        elsewhere = tmp_path / "elsewhere"  # nothing is there
        elsewhere.mkdir()
        for overrides in (pair, nothing):
            evaluate_all(overrides, elsewhere, speaking_to(wandb.url, elsewhere))
    assert (wandb.unknown, wandb.refused, service.refused) == (set(), [], [])
    logs = list(elsewhere.rglob("*.eval"))
    said = "\n".join(said_to_the_model(read_eval_log(str(log))) for log in logs).lower()
    assert [secret for secret in secrets if secret in said] == []
    check(of_paths(logs).grades)


def push(store: Path, env: Mapping[str, str]) -> None:
    subprocess.run([sys.executable, "-m", "trackers", "push", "--root", str(store)], cwd=ROOT, env=env, check=True)


def evaluate_all(overrides: list[str], folder: Path, env: Mapping[str, str]) -> None:
    """One command for all methods."""
    given = [each for each in overrides if not each.startswith("tracker")]
    methods = f"diffing/method={','.join(options('diffing/method'))}"
    sweep = f"hydra.sweep.dir={folder / 'hydra'}"
    done = run("evaluate_agents.py", sweep, methods, *given, "tracker=wandb", *AGENT, "-m", folder=folder, **env)
    assert done.returncode == 0, done.stderr + done.stdout


def check(grades: pd.DataFrame) -> None:
    """Every method, access and organism ended in a submission; the null is never taken for a finetune by who reads."""
    assert set(grades.outcome) == {"submitted"}, grades[["method", "access", "organism", "outcome", "detail"]]
    counts = grades.groupby(["organism", "access"])["method"].nunique()
    n = len(options("diffing/method"))
    assert counts.to_dict() == {
        (organism, access): 1 if access == "blackbox" else n
        for organism in ("demo_nautical", "none")
        for access in ("method", "blackbox", "scripted")
    }
    rates = rates_table(grades).frame
    found = rates[rates.rate == FALSE_POSITIVES].set_index(["method", "access"])
    assert set(found.loc[list(options("diffing/method"))]["share"]) == {0.0}
    claimed = rates[rates.rate == SENSITIVITY].set_index(["method", "access"])
    assert set(claimed.loc[list(options("diffing/method"))]["share"]) == {1.0}
