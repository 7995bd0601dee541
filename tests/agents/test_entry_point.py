"""The command, on a tiny pair: live models by access and budget, and grading anew."""

import re
from pathlib import Path

from tests.test_entry import run, tiny_overrides  # noqa: F401  # a fixture


def test_agents_ask_the_pair_of_the_report_and_what_they_said_is_graded_anew(
    tiny_overrides: list[str],  # noqa: F811
    tmp_path: Path,
) -> None:
    analysed = run("analyze.py", *tiny_overrides, folder=tmp_path)
    assert analysed.returncode == 0, analysed.stderr + analysed.stdout
    kept = [override for override in tiny_overrides if not override.startswith(("corpus", "corpora"))]
    budgets = ["agent.access=[blackbox,method]", "agent.interactions=[6]", "device=cpu"]
    graded = run("evaluate_agents.py", *kept, *budgets, folder=tmp_path)
    assert graded.returncode == 0, graded.stderr + graded.stdout
    assert re.search(r"samples \(method, 6 interactions\)\s+1 submitted", graded.stdout)
    assert len(list((tmp_path / "outputs" / "inspect").glob("*.eval"))) == 1
    again = run("evaluate_agents.py", *kept, "rescore=latest", folder=tmp_path)
    assert again.returncode == 0, again.stderr + again.stdout
    assert re.search(r"evaluation-\S+:v0", again.stdout), "without graders the grades are the same, and so the version"
    assert len(list((tmp_path / "outputs" / "inspect").glob("*.eval"))) == 1, "no agent ran"
