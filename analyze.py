"""Run a diffing method on a pair of models and publish its report.

python analyze.py diffing/method=activation_difference_lens organism=demo_glacier_tea
"""

import sys
import tempfile
import time
from pathlib import Path

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig

from diffing.entry import caches, console, learners, setup
from diffing.entry.choices import check_choices
from diffing.entry.provenance import provenance
from diffing.html.page import write
from diffing.methods.base import CacheReader, DiffingMethod, LearningMethod
from diffing.report import Report
from diffing.specs import JSON, artifact_name
from trackers import ArtifactRef, Kind, Tracker


@hydra.main(version_base=None, config_path="conf", config_name="analyze")
def main(config: DictConfig) -> None:
    console.set_up_logging()
    with console.errors_without_traceback():
        method: DiffingMethod = instantiate(config.diffing.method, _convert_="object")
        study = setup.study(config)
        with setup.tracker(config, job="analyze") as tracker:
            started = time.monotonic()
            used: list[ArtifactRef] = []
            if not isinstance(method, LearningMethod):  # for those, its cache is made with the others
                study = setup.with_training_corpus(config, study)
            if isinstance(method, LearningMethod):
                study, used = learners.with_caches(config, study, tracker)
                study, learner = learners.with_learners(config, method, study, tracker, used)
                used.append(learner)
            elif isinstance(method, CacheReader):
                study, used = caches.with_existing(config, method, study, tracker)
            report = method.run(study)
            report = report.with_provenance(
                provenance(
                    seed=config.seed,
                    device=str(study.pair.device),
                    seconds=time.monotonic() - started,
                    uses=[str(ref) for ref in used],
                )
            )
            ref = publish(report, tracker)
            page = Path(config.html_dir) / f"{ref.name}-v{ref.version}.html"
            write(report, page)
            console.summary(
                f"{method.name} on {study.pair.spec.base.name} and {study.pair.spec.organism}",
                {"report": str(ref), "run": tracker.describe(), "page": str(page.resolve())},
                [finding.claim for finding in report.findings],
            )


def publish(report: Report, tracker: Tracker) -> ArtifactRef:
    """Log everything of a report that a run page can show, and publish the report itself."""
    tracker.log({name: scalar.value for name, scalar in report.scalars.items()})
    for name, table in report.tables.items():
        tracker.log_table(name, table.frame)
    for name, figure in report.figures.items():
        tracker.log_figure(name, figure.plotly)
    metadata: dict[str, JSON] = {
        "method": report.method,
        "pair": report.pair.as_json(),
        "pair_digest": report.pair.digest,
        "corpora": [spec.as_json() for spec in report.corpora],
        "no_difference": report.no_difference,
    }
    with tempfile.TemporaryDirectory() as folder:
        report.save(Path(folder))
        return tracker.publish(Path(folder), artifact_name("report", report.method, report.pair), Kind.REPORT, metadata)


if __name__ == "__main__":
    with console.errors_without_traceback():
        check_choices(sys.argv[1:], required=("organism", "diffing/method"))
    main()
