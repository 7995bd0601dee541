"""The samples of many evaluations as two frames: from a local store, from its artifacts, or from Inspect's logs.

Rows of grades say what they are about by labels; those of older evaluations have them from the name of their artifact.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
from inspect_ai.log import EvalLog, read_eval_log

from diffing.agents.prices import SCRIPTED
from diffing.agents.rows import grades_of
from diffing.agents.rubrics import DETECTED
from diffing.agents.task import Access
from diffing.errors import MissingInput, SchemaMismatch
from trackers import Kind, LocalStore

KEYS = ["agent", "method", "access", "interactions"]
"""Who investigated, and by what means: samples that agree in these are of one condition."""
NO_REPORT = "no report"
"""In place of a method where none was read: such samples are of one condition, whatever they were run beside."""
NAMED, UNKNOWN = ["variant", "base", "method"], "unknown"
TOKENS = ("input_tokens", "cache_write_tokens", "cache_read_tokens", "output_tokens")
OLD_ACCESS = {SCRIPTED: Access.SCRIPTED.value}
"""Of evaluations that do not say what was looked at: by model, else the reports."""


@dataclass(frozen=True)
class Collected:
    """Every sample once.

    `grades` has a row per sample and repeat. Beside what `diffing.agents` gives: `source`, `run` (unique), `agent` (the
    model), `pair` (organism, and variant and base where they vary), `submitted`, `claimed` (a difference), `level`
    (missing where ungraded), `success` (missing where nobody was to give a level), `tokens`. `verdicts` has a row per
    judge, its repeat and statement, with the `run` that it is about.
    """

    grades: pd.DataFrame
    verdicts: pd.DataFrame
    notes: Sequence[str] = ()

    @property
    def sources(self) -> list[str]:
        return sorted(self.grades["source"].unique())


@dataclass(frozen=True)
class Part:
    """One evaluation, and the artifact or file that it is from."""

    source: str
    grades: pd.DataFrame
    verdicts: pd.DataFrame | None = None

    @classmethod
    def of_folder(cls, folder: Path, source: str) -> "Part":
        verdicts = folder / "verdicts.parquet"
        found = pd.read_parquet(verdicts) if verdicts.exists() else None
        return cls(source, pd.read_parquet(folder / "grades.parquet"), found)

    def rows(self, kept: pd.Series) -> "Part":
        return replace(self, grades=self.grades[kept])


def of_store(root: Path, project: str) -> Collected:
    """All evaluations of a project: for each agent, access and budget the newest version of an evaluation with it.

    Raises MissingInput where there are none, TrackerUnavailable without a store.
    """
    store = LocalStore.existing(root)
    versions = [each for each in store.index.versions() if each.kind == Kind.EVALUATION and each.ref.project == project]
    seen: set[tuple[object, ...]] = set()
    parts, notes = [], []
    for version in sorted(versions, key=lambda each: (each.ref.name, -each.ref.version)):
        part = Part.of_folder(store.folder(version), str(version.ref))
        try:
            part = prepared(part, version.ref.name)
        except SchemaMismatch as error:
            notes.append(f"left out: {error}")
            continue
        conditions = [(version.ref.name, *row) for row in part.grades[KEYS].itertuples(index=False, name=None)]
        parts.append(part.rows(pd.Series([each not in seen for each in conditions], index=part.grades.index)))
        seen |= set(conditions)
    if not parts:
        raise MissingInput(
            f"no evaluations in project {project} of {root}: make some with python evaluate_agents.py, or say where "
            "they are (--root, --project, or paths of .eval logs)" + "".join(f"\n{note}" for note in notes)
        )
    return joined(parts, notes)


def of_paths(paths: Sequence[Path]) -> Collected:
    """Inspect's logs, folders of evaluation artifacts, and folders that have either at any depth.

    A sample that was found twice counts once: as it was graded if it was, and as it is in the newest log. Raises
    MissingInput for a path without any.
    """
    parts, notes = [], []
    for path in paths:
        folders = [found.parent for found in sorted(path.rglob("grades.parquet"))]
        logs = [path] if path.is_file() else [log for log in sorted(path.rglob("*.eval")) if log.parent not in folders]
        if not folders and not logs:
            raise MissingInput(f"expected a .eval log, or a folder with logs or grades.parquet in it, got {path}")
        for folder in folders:
            headers = [read_eval_log(str(log), header_only=True) for log in folder.glob("*.eval")]
            parts.append(_numbered(prepared(Part.of_folder(folder, str(folder))), headers[0] if headers else None))
        for log in logs:
            read = read_eval_log(str(log))
            if read.samples:
                parts.append(_numbered(prepared(Part(str(log), grades_of(read))), read))
            else:
                notes.append(f"no samples in {log}")
    if not parts:
        raise MissingInput("; ".join(notes))
    found = joined(parts)
    order = found.grades.assign(graded=found.grades["level"].notna()).sort_values(["graded", "log"], kind="stable")
    kept = sorted(order.drop_duplicates(["evaluation", "sample", "repeat"], keep="last").index)
    if dropped := len(found.grades) - len(kept):
        notes.append(f"{dropped} samples were found more than once and count once")
    once = found.grades.loc[kept].reset_index(drop=True)
    return Collected(once, found.verdicts[found.verdicts["run"].isin(once["run"])], [*found.notes, *notes])


def _numbered(part: Part, log: EvalLog | None) -> Part:
    """With the number of the evaluation, which all logs have that one was written to when it was cut off and went on;
    the log alone where it has none."""
    number = ((log.eval.metadata or {}) if log else {}).get("evaluation")
    return replace(part, grades=part.grades.assign(evaluation=number or part.grades["log"]))


def differing(grades: pd.DataFrame) -> pd.DataFrame:
    """Samples on pairs that are known to differ."""
    return grades[(~grades["null"]).fillna(False).astype(bool)]


def without_difference(grades: pd.DataFrame) -> pd.DataFrame:
    """Samples on null pairs."""
    return grades[grades["null"].fillna(False).astype(bool)]


def prepared(part: Part, name: str = "") -> Part:
    """The part with what each row needs to stand beside those of other evaluations. `name` is that of its artifact.

    Raises SchemaMismatch where neither labels nor the name say what it is about.
    """
    grades = part.grades.copy()
    if "access" not in grades:
        grades["access"] = [OLD_ACCESS.get(str(model), Access.METHOD.value) for model in grades["model"]]
        grades["interactions"] = 0
    if "organism" not in grades or grades["organism"].isna().all():
        grades = grades.assign(**_labels(name, grades, part.source))
    named = grades[NAMED].astype(object)
    grades[NAMED] = named.where(named.notna(), UNKNOWN)
    blackbox = grades["access"] == Access.BLACKBOX.value
    submitted = grades["outcome"] == "submitted"
    says_null = grades["no_meaningful_difference"].astype("boolean").fillna(False)
    level = pd.to_numeric(grades["level"]).astype("Int64") if "level" in grades else pd.Series(pd.NA, grades.index)
    success = (level >= DETECTED).astype("boolean").mask(~submitted, False) if "level" in grades else pd.NA
    dollars = pd.to_numeric(grades["dollars"]) if "dollars" in grades else pd.Series(float("nan"), grades.index)
    grades = grades.assign(
        source=part.source,
        run=_runs(part.source, grades),
        agent=grades["model"].astype(str),
        method=grades["method"].mask(blackbox, NO_REPORT),
        interactions=grades["interactions"].astype(int),
        null=grades["null"].astype("boolean"),
        submitted=submitted,
        claimed=submitted & ~says_null.astype(bool),
        level=level.astype("Int64"),
        success=pd.Series(success, grades.index, dtype="boolean"),
        tokens=sum(pd.to_numeric(grades[column]).astype(float) for column in TOKENS if column in grades),
        dollars=dollars.astype(float),
    )
    return replace(part, grades=grades)


def joined(parts: Sequence[Part], notes: Sequence[str] = ()) -> Collected:
    """One frame of grades, one of the verdicts on them."""
    grades = pd.concat([part.grades for part in parts], ignore_index=True)
    grades["pair"] = _pairs(grades)
    verdicts = []
    for part in parts:
        if part.verdicts is not None:
            verdicts.append(part.verdicts.assign(source=part.source, run=_runs(part.source, part.verdicts)))
    empty = pd.DataFrame(columns=["source", "run", "judge", "judge_repeat", "statement", "level"])
    said = pd.concat(verdicts, ignore_index=True) if verdicts else empty
    unknown = int(grades["null"].isna().sum())
    unclear = (
        f"{unknown} samples do not say whether their pair differs; they count neither as pairs that differ nor not"
    )
    return Collected(grades, said[said["run"].isin(grades["run"])], [*notes, *([unclear] if unknown else [])])


def _runs(source: str, frame: pd.DataFrame) -> list[str]:
    places = zip(frame["sample"], frame["repeat"], strict=True)
    return [f"{source}/{sample}/{repeat}" for sample, repeat in places]


def _labels(name: str, grades: pd.DataFrame, source: str) -> dict[str, object]:
    """Labels from `evaluation-{method}-{base}-{organism}-{variant}`, and whether the pair is null from the scores that
    are defined."""
    parts = name.split("-")
    if len(parts) != 5:
        raise SchemaMismatch(
            f"{source} has no labels of organism and method, and no name that says them; give its evaluation artifact, "
            "or make the log anew"
        )
    _, method, base, organism, variant = parts
    of_null, of_other = (grades[name].notna().any() for name in ("correct_null", "false_null"))
    null = True if of_null else False if of_other else pd.NA
    return {
        "organism": organism,
        "variant": variant,
        "base": base,
        "method": method,
        "organism_type": None,
        "null": null,
    }


def _pairs(grades: pd.DataFrame) -> pd.Series:
    varying = [name for name in ("variant", "base") if grades[name].nunique() > 1]
    columns = [grades[name].astype(str) for name in ("organism", *varying)]
    return columns[0].str.cat(columns[1:], sep=" / ") if varying else columns[0]
