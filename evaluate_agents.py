"""Let an agent guess what a finetune was for, from a published report alone, and grade the guess.

python evaluate_agents.py diffing/method=activation_difference_lens organism=demo_glacier_tea
"""

import shutil
import sys
import tempfile
from pathlib import Path

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from diffing.agents.evaluation import Agent, Evaluation, evaluate
from diffing.agents.task import Case
from diffing.agents.truth import Fact, GroundTruth
from diffing.entry import console, setup
from diffing.entry.choices import check_choices
from diffing.evidence import Evidence
from diffing.html.page import write
from diffing.report import Report
from diffing.specs import artifact_name
from trackers import ArtifactRef, Kind, Tracker

SCORES = ("fact_recall", "domain_recall", "correct_null", "false_null")


@hydra.main(version_base=None, config_path="conf", config_name="evaluate_agents")
def main(config: DictConfig) -> None:
    console.set_up_logging()
    with console.errors_without_traceback():
        agent: Agent = instantiate(config.agent, _convert_="object")
        pair = setup.pair_spec(config)
        method = HydraConfig.get().runtime.choices["diffing/method"]
        with setup.tracker(config, job="evaluate_agents") as tracker:
            name = artifact_name("report", method, pair)
            source, folder = tracker.fetch(f"{name}:{config.version}", Kind.REPORT)
            report = Report.load(folder)
            page = Path(config.html_dir) / f"{source.name}-v{source.version}.html"
            write(report, page)
            with console.Bars().stage(f"{agent.model} reads the evidence", agent.repeats) as advance:
                result = evaluate([Case(Evidence([report]), ground_truth(config))], agent, Path(config.log_dir))
                advance(agent.repeats)
            ref = publish(result, artifact_name("evaluation", method, pair), agent, source, tracker)
            console.summary(
                f"{agent.model} on {method}, {pair.base.name} and {pair.organism}",
                {
                    "evidence": str(source),
                    "evaluation": str(ref),
                    **grade_lines(result.grades),
                    "transcript": f"{result.log}  (inspect view --log-dir {config.log_dir})",
                    "page": str(page.resolve()),
                },
            )


def ground_truth(config: DictConfig) -> GroundTruth:
    """What is true of the organism; goes to the grader only."""
    organism = setup.plain(config.organism)
    return GroundTruth(
        organism_type=str(organism["type"]),
        description=organism["description_long"],
        facts=[Fact(**fact) for fact in organism["facts"]],
        domain_words=organism["domain_words"],
    )


def publish(result: Evaluation, name: str, agent: Agent, source: ArtifactRef, tracker: Tracker) -> ArtifactRef:
    """Publish grades and transcript as an artifact made from the report that was read."""
    scored = result.grades[list(SCORES)].apply(pd.to_numeric).mean().dropna()
    tracker.log({str(score): float(value) for score, value in scored.items()})
    tracker.log_table("grades", result.grades)
    metadata = {
        "agent": agent.model,
        "repeats": agent.repeats,
        "outcomes": result.grades["outcome"].value_counts().to_dict(),
    }
    with tempfile.TemporaryDirectory() as folder:
        result.grades.assign(report=str(source)).to_parquet(Path(folder) / "grades.parquet")
        shutil.copyfile(result.log, Path(folder) / result.log.name)
        return tracker.publish(Path(folder), name, Kind.EVALUATION, metadata, uses=[source])


def grade_lines(grades: pd.DataFrame) -> dict[str, str]:
    """Grade and submission in words; failed samples are counted, not scored."""
    outcomes = ", ".join(f"{count} {outcome}" for outcome, count in grades["outcome"].value_counts().items())
    means = grades[list(SCORES)].apply(pd.to_numeric).mean().dropna()
    lines = {"samples": outcomes, "grade": ", ".join(f"{name} {value:.2f}" for name, value in means.items()) or "none"}
    for _, row in grades[grades["outcome"] == "submitted"].head(1).iterrows():
        guess = "no meaningful difference" if row["no_meaningful_difference"] else row["domain"]
        lines["guess"] = f"{guess} (confidence {row['confidence']:.2f})"
        if row["found"] is not None and len(row["found"]):
            lines["facts found"] = "; ".join(row["found"])
    return lines


if __name__ == "__main__":
    with console.errors_without_traceback():
        check_choices(sys.argv[1:], required=("organism", "diffing/method"))
    main()
