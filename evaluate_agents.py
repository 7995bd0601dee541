"""Let an agent guess what a finetune was for, from a published report alone, and grade the guess.

python evaluate_agents.py diffing/method=activation_difference_lens organism=demo_glacier_tea
python evaluate_agents.py ... rescore=latest graders=[anthropic/...]     grade what is stored: no agent, no models
"""

import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import hydra
import pandas as pd
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from inspect_ai.log import read_eval_log
from omegaconf import DictConfig

from diffing.agents import keywords
from diffing.agents.claims import conversations, judged_claims
from diffing.agents.evaluation import Agent, Evaluation, evaluating, grades_of
from diffing.agents.judging import Grader, judged, rubric_of
from diffing.agents.keywords import KeywordJudge
from diffing.agents.live import LiveModels
from diffing.agents.summary import SCORES, cost_in_words, summary
from diffing.agents.task import Case
from diffing.agents.truth import Fact, GroundTruth
from diffing.entry import console, setup
from diffing.entry.choices import check_choices
from diffing.entry.live_models import declared_by
from diffing.errors import SchemaMismatch
from diffing.evidence import Evidence
from diffing.html.page import write
from diffing.lenses.judge import LLMJudge
from diffing.live_tools import LiveTool
from diffing.report import Report
from diffing.specs import JSON, artifact_name
from trackers import ArtifactRef, Kind, Tracker


@hydra.main(version_base=None, config_path="conf", config_name="evaluate_agents")
def main(config: DictConfig) -> None:
    console.set_up_logging()
    with console.errors_without_traceback():
        agent: Agent = instantiate(config.agent, _convert_="object")
        truth, pair = ground_truth(config), setup.pair_spec(config)
        method = HydraConfig.get().runtime.choices["diffing/method"]
        rubric_of(truth)
        with ExitStack() as until_published, setup.tracker(config, job="evaluate_agents") as tracker:
            name = artifact_name("evaluation", method, pair)
            lines: dict[str, str] = {}
            if config.rescore is not None:
                source, folder = tracker.fetch(f"{name}:{config.rescore}", Kind.EVALUATION)
                result = stored(folder)
                model, repeats = result.grades["model"].iloc[0], int(result.grades["repeat"].max())
                agent = replace(agent, model=model, repeats=repeats, dollars=None, max_dollars=None)
            else:
                source, folder = tracker.fetch(f"{artifact_name('report', method, pair)}:{config.version}", Kind.REPORT)
                report = Report.load(folder)
                page = Path(config.html_dir) / f"{source.name}-v{source.version}.html"
                write(report, page)
                lines = {"page": str(page.resolve())}
                case = case_of(config, report, source, truth, agent.asks_live_models)
                with console.Bars().stage(f"{agent.model} investigates", None):
                    result = until_published.enter_context(
                        evaluating([case], agent, Path(config.log_dir), retry_errors=config.retry_errors)
                    )
            result = with_levels(result, truth, judges(config.graders), config.grader_repeats)
            ref = publish(result, name, agent, source, tracker)
            console.summary(
                f"{agent.model} on {method}, {pair.base.name} and {pair.organism}",
                {
                    "evidence": str(source),
                    "evaluation": str(ref),
                    **grade_lines(result.grades),
                    **cost_lines(result),
                    "transcript": f"{result.log}  (inspect view --log-dir {result.log.parent})",
                    **lines,
                },
            )


def case_of(config: DictConfig, report: Report, source: ArtifactRef, truth: GroundTruth, asked: bool) -> Case:
    """What agents investigate; `asked` says whether they may ask live models."""
    live, tools = live_models(config, report) if asked else (None, ())
    labels: dict[str, JSON] = {
        "organism": report.pair.organism,
        "variant": report.pair.variant,
        "base": report.pair.base.name,
        "method": report.method,
        "organism_type": truth.organism_type,
        "null": truth.is_null,
    }
    made_of: JSON = {"report": str(source), "live": setup.plain(config.live) if asked else None}
    return Case(Evidence([report]), truth, live, tools, labels, made_of)


def live_models(config: DictConfig, report: Report) -> tuple[LiveModels, Sequence[LiveTool]]:
    """What agents may ask, and the questions of the method's own that it answers."""
    live: LiveModels = instantiate(config.live, _convert_="object").models(report.pair)
    return live, declared_by(instantiate(config.diffing.method, _convert_="object"), report, live)


def stored(folder: Path) -> Evaluation:
    """An evaluation as it was published, without its levels: those are to be given anew."""
    logs = list(folder.glob("*.eval"))
    if len(logs) != 1:
        raise SchemaMismatch(f"expected one .eval log in {folder}, found {len(logs)}")
    report = pd.read_parquet(folder / "grades.parquet")["report"].iloc[0]
    return Evaluation(grades_of(read_eval_log(str(logs[0]))).assign(report=report), logs[0])


def judges(names: Sequence[str]) -> list[Grader | KeywordJudge]:
    """Those that `graders=` names."""
    return [KeywordJudge() if name == keywords.NAME else LLMJudge(name) for name in names]


def with_levels(
    result: Evaluation, truth: GroundTruth, judges: Sequence[Grader | KeywordJudge], repeats: int
) -> Evaluation:
    """The evaluation with levels and support by `judges`; a null control needs none for its level, and nothing else has
    a level without."""
    if not judges and not truth.is_null:
        return result
    grades, verdicts = judged(result.grades, truth, judges, repeats)
    if readers := [judge for judge in judges if isinstance(judge, Grader)]:
        said = conversations(read_eval_log(str(result.log)))
        grades, on_claims = judged_claims(grades, said, readers, repeats)
        verdicts = pd.concat([verdicts, on_claims], ignore_index=True)
    return replace(result, grades=grades, verdicts=verdicts)


def ground_truth(config: DictConfig) -> GroundTruth:
    """What is true of the organism; goes to the grader only."""
    organism = setup.plain(config.organism)
    return GroundTruth(
        organism_type=str(organism["type"] or "null"),
        description=organism["description_long"],
        facts=[Fact(**fact) for fact in organism["facts"]],
        domain_words=organism["domain_words"],
    )


def publish(result: Evaluation, name: str, agent: Agent, source: ArtifactRef, tracker: Tracker) -> ArtifactRef:
    """Publish grades, verdicts and transcript as an artifact made from the report that was read, or from the
    evaluation that was graded anew."""
    found = summary(result.grades)
    tracker.log(scalars(found))
    tracker.log_table("grades", result.grades)
    tracker.log_table("summary", found)
    metadata = {
        "agent": agent.model,
        "repeats": agent.repeats,
        "outcomes": result.grades["outcome"].value_counts().to_dict(),
        "dollars": result.spent,
    }
    with tempfile.TemporaryDirectory() as folder:
        grades = result.grades if "report" in result.grades else result.grades.assign(report=str(source))
        grades.to_parquet(Path(folder) / "grades.parquet")
        if result.verdicts is not None:
            tracker.log_table("verdicts", result.verdicts)
            result.verdicts.to_parquet(Path(folder) / "verdicts.parquet")
        shutil.copyfile(result.log, Path(folder) / result.log.name)
        return tracker.publish(Path(folder), name, Kind.EVALUATION, metadata, uses=[source])


def scalars(found: pd.DataFrame) -> dict[str, float]:
    """The scores of the first access and budget under their own names, those of all others under theirs too."""
    logged: dict[str, float] = {}
    for number, (_, row) in enumerate(found.iterrows()):
        place = "" if number == 0 else f"{row['access']}_{row['interactions']}/"
        scores = scores_of(row)
        logged |= {f"{place}{name}": float(value) for name, value in scores.items()}
    return logged


def scores_of(row: pd.Series) -> pd.Series:
    """Those that a row of the summary has."""
    return row[[name for name in (*SCORES, "success") if name in row]].dropna()


def grade_lines(grades: pd.DataFrame) -> dict[str, str]:
    """Grades by access and budget, and the first submission in words; failed samples are counted, not scored."""
    lines = {}
    for number, (_, row) in enumerate(summary(grades).iterrows()):
        of = "" if number == 0 else f" ({row['access']}, {row['interactions']} interactions)"
        scores = scores_of(row)
        lines[f"samples{of}"] = row["outcomes"]
        lines[f"grade{of}"] = ", ".join(f"{name} {value:.2f}" for name, value in scores.items()) or "none"
        lines[f"cost{of}"] = cost_in_words(row)
    for _, row in grades[grades["outcome"] == "submitted"].head(1).iterrows():
        guess = "no meaningful difference" if row["no_meaningful_difference"] else row["domain"]
        lines["guess"] = f"{guess} (confidence {row['confidence']:.2f})"
        if row["found"] is not None and len(row["found"]):
            lines["facts found"] = "; ".join(row["found"])
    return lines


def cost_lines(result: Evaluation) -> dict[str, str]:
    """What the table of grades does not say: samples to be run again, and dollars that none of its rows holds."""
    lines = {}
    failed = int(result.grades["outcome"].isin(["error", "not_run"]).sum())
    if failed:
        lines["not graded"] = f"{failed} ended in an error or were not run: the same command with retry_errors=true"
    known = float(result.grades["dollars"].fillna(0.0).sum())
    if result.spent is not None and result.spent > known + 1e-9:
        lines["cost of all calls"] = f"${result.spent:.4f}, with samples that were cut off or run again"
    return lines


if __name__ == "__main__":
    with console.errors_without_traceback():
        check_choices(sys.argv[1:], required=("organism", "diffing/method"))
    main()
