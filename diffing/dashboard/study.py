"""What a study found, gathered through a tracker: the newest report of each method on each pair, and agents' grades.

This is the one description that every form of the dashboard is drawn from.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd
import yaml

from diffing.entry.choices import CONF, options
from diffing.errors import MissingInput
from diffing.report import Report, Scalar
from diffing.specs import ModelSpec, PairSpec, VariantSpec, artifact_name
from trackers import ArtifactNotFound, ArtifactRef, Kind, LocalStore, Tracker

MOST_FINDINGS = 3
"""Of one report, in a dashboard."""
SCORES = {
    "fact_recall": "share of the facts that were taught which the guess names",
    "domain_recall": "share of the words of the finetune's domain which the guess has",
    "correct_null": "share of the guesses about a null control that say: nothing was changed",
    "false_null": "share of the guesses about a real finetune that say: nothing was changed",
}


@dataclass(frozen=True, order=True)
class Pair:
    """A row of the matrix; null controls come last."""

    is_control: bool
    """Nothing meaningful was finetuned, so what a method finds here is what it finds by itself."""
    organism: str
    variant: str
    model: str

    @classmethod
    def of(cls, spec: PairSpec) -> "Pair":
        return cls(_is_control(spec), spec.organism, spec.variant, spec.base.name)


@dataclass(frozen=True)
class Grade:
    """How one agent did on a report: means over its samples."""

    ref: ArtifactRef
    agent: str
    graded: str | None
    """Version of the report that was read; None where the grades do not say."""
    outcomes: Mapping[str, int]
    scores: Mapping[str, float]
    """Those of `SCORES` that are defined: recalls only for a finetune with facts, `correct_null` only without."""
    guess: str | None
    """Of the first sample that submitted one."""


@dataclass(frozen=True)
class Result:
    """One report, the run that published it if that is known, and its grades."""

    ref: ArtifactRef
    report: Report
    run: str | None = None
    grades: Sequence[Grade] = ()

    @property
    def pair(self) -> Pair:
        return Pair.of(self.report.pair)

    @property
    def page(self) -> str:
        """File name of the report's own page."""
        return f"{self.ref.name}-v{self.ref.version}.html"


@dataclass(frozen=True)
class Dashboard:
    """Results by method and pair."""

    title: str
    project: str
    results: Sequence[Result]

    @property
    def methods(self) -> list[str]:
        return sorted({result.report.method for result in self.results})

    @property
    def pairs(self) -> list[Pair]:
        return sorted({result.pair for result in self.results})

    def of_pair(self, pair: Pair) -> dict[str, Result]:
        """By method."""
        found = {result.report.method: result for result in self.results if result.pair == pair}
        return {method: found[method] for method in self.methods if method in found}

    def of_method(self, method: str) -> dict[Pair, Result]:
        found = {result.pair: result for result in self.results if result.report.method == method}
        return dict(sorted(found.items()))

    def scalars(self, method: str) -> dict[str, dict[Pair, Scalar]]:
        """By name, in the order of the reports."""
        found: dict[str, dict[Pair, Scalar]] = {}
        for pair, result in self.of_method(method).items():
            for name, scalar in result.report.scalars.items():
                found.setdefault(name, {})[pair] = scalar
        return found

    @property
    def graded(self) -> list[tuple[Result, Grade]]:
        ordered = [result for pair in self.pairs for result in self.of_pair(pair).values()]
        return [(result, grade) for result in ordered for grade in result.grades]


def report_names(store: LocalStore, project: str) -> list[str]:
    """Names of all reports that a local store has of a project."""
    found = (each.ref for each in store.index.versions() if each.kind == Kind.REPORT)
    return sorted({ref.name for ref in found if ref.project == project})


def possible_names() -> list[str]:
    """Names that reports of all configured methods, organisms and models would have."""
    names = []
    for organism, model in product(options("organism"), options("model")):
        for variant, bases in _organism(organism)["variants"].items():
            if {model, "*"} & bases.keys():
                base = ModelSpec(name=model, id=model)
                pair = PairSpec(base, VariantSpec(**bases.get(model, bases.get("*"))), organism, variant)
                names += [artifact_name("report", method, pair) for method in options("diffing/method")]
    return names


def gather(tracker: Tracker, names: Iterable[str], title: str, runs: Mapping[str, str] | None = None) -> Dashboard:
    """The newest version of those reports that exist. `runs` says which run published a version, if that is known.

    Raises MissingInput where there is none.
    """
    results = []
    for name in names:
        try:
            ref, folder = tracker.fetch(name, Kind.REPORT)
        except ArtifactNotFound:
            continue
        report = Report.load(folder)
        evaluation = artifact_name("evaluation", report.method, report.pair)
        results.append(Result(ref, report, (runs or {}).get(str(ref)), _grades(tracker, evaluation)))
    if not results:
        raise MissingInput(
            f"no reports in project {tracker.project}: publish some with python analyze.py, or say where they are "
            "(--tracker, --root, --project)"
        )
    return Dashboard(title, tracker.project, results)


def _grades(tracker: Tracker, name: str) -> list[Grade]:
    """The newest grade of each agent by each access; one artifact name has the grades of all, as versions."""
    try:
        newest, folder = tracker.fetch(name, Kind.EVALUATION)
    except ArtifactNotFound:
        return []
    found: dict[str, Grade] = {}
    for version in range(newest.version, -1, -1):
        ref = newest
        if version != newest.version:
            ref, folder = tracker.fetch(f"{name}:v{version}", Kind.EVALUATION)
        frame = pd.read_parquet(folder / "grades.parquet")
        if "access" not in frame.columns:  # of evaluations that knew one access
            frame["access"] = "method"
        for (model, access), rows in frame.groupby(["model", "access"], sort=False):
            agent = str(model) if access != "blackbox" else f"{model}, without the report"
            found.setdefault(agent, _grade(ref, agent, rows))
    return [found[agent] for agent in sorted(found)]


def _grade(ref: ArtifactRef, agent: str, frame: pd.DataFrame) -> Grade:
    means = frame[list(SCORES)].apply(pd.to_numeric).mean().dropna()
    submitted = frame[frame["outcome"] == "submitted"]
    guess = None
    if len(submitted):
        first = submitted.iloc[0]
        guess = "no meaningful difference" if first["no_meaningful_difference"] else first["domain"]
    return Grade(
        ref,
        agent=agent,
        graded=str(frame["report"].iloc[0]) if "report" in frame.columns else None,
        outcomes={str(outcome): int(count) for outcome, count in frame["outcome"].value_counts().items()},
        scores={str(name): float(value) for name, value in means.items()},
        guess=guess,
    )


def _is_control(pair: PairSpec) -> bool:
    """As the organism's config says: without facts there is nothing to find. Unknown organisms are no controls."""
    if pair.finetuned.kind == "identical":
        return True
    return pair.organism in options("organism") and not _organism(pair.organism)["facts"]


def _organism(name: str) -> dict:
    return yaml.safe_load((CONF / "organism" / f"{name}.yaml").read_text("utf-8"))
