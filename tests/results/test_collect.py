"""Which samples there are: the newest of each condition, of stores old and new, and of logs."""

from pathlib import Path

import pandas as pd
import pytest
from inspect_ai.log import read_eval_log, write_eval_log

from diffing.agents.evaluation import Agent, evaluate
from diffing.agents.task import LABELS, Case
from diffing.errors import MissingInput, SchemaMismatch
from diffing.evidence import Evidence
from diffing.results.collect import differing, of_paths, of_store, without_difference
from diffing.results.tables import cells_table
from evaluate_agents import publish as publish_evaluation
from tests.agents import planted as agents_planted
from tests.results import planted
from tests.results.conftest import PROJECT, Store
from trackers import Kind, LocalTracker, TrackerError

NAME = "evaluation-kl-smollm2_135m-tea-default"


def test_of_each_agent_access_and_budget_the_newest_version_counts(store: Store) -> None:
    store.rows(NAME, {"level": 1}, {"level": 1}, {"model": "other", "level": 2}, {"interactions": 5, "level": 3})
    newer = store.rows(NAME, {"level": 4}, {"access": "blackbox", "level": 5})
    found = of_store(store.root, PROJECT)
    key = ["agent", "method", "access", "interactions", "level", "source"]
    old = f"{PROJECT}/{NAME}:v0"
    assert sorted(found.grades[key].itertuples(index=False, name=None)) == [
        ("other", "kl", "method", 0, 2, old),
        ("someone/agent", "kl", "method", 0, 4, str(newer)),
        ("someone/agent", "kl", "method", 5, 3, old),
        ("someone/agent", "no report", "blackbox", 0, 5, str(newer)),
    ]
    assert found.sources == sorted([old, str(newer)])


def test_evaluations_of_other_projects_and_other_kinds_are_not_read(store: Store, tmp_path: Path) -> None:
    store.rows(NAME, {"level": 1})
    with LocalTracker(store.root, "another", "evaluate_agents", {}) as tracker:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "report.json").write_text("{}", "utf-8")
        tracker.publish(tmp_path / "report", "report-kl-smollm2_135m-tea-default", Kind.REPORT, {}, uses=[])
    assert len(of_store(store.root, PROJECT).grades) == 1
    with pytest.raises(MissingInput, match=r"python evaluate_agents\.py"):
        of_store(store.root, "another")
    with pytest.raises(TrackerError, match="no store"):
        of_store(tmp_path / "nowhere", PROJECT)


def test_what_has_no_labels_has_them_from_its_name_and_scores(store: Store) -> None:
    rows = [{"false_null": 0.0}, {"outcome": "error"}]
    store.rows(NAME, *rows, drop=[*LABELS, "access", "interactions", "dollars", "level"])
    store.rows("evaluation-kl-llama-none-mix", {"correct_null": 1.0, "model": "scripted/words"},
               drop=[*LABELS, "access", "interactions"])  # fmt: skip
    grades = of_store(store.root, PROJECT).grades.set_index("organism")
    assert grades.loc["tea", ["method", "base", "variant", "access"]].drop_duplicates().to_numpy().tolist() == [
        ["kl", "smollm2_135m", "default", "method"]
    ]
    assert (~grades.null["tea"]).all(), "also of the sample that failed"
    assert grades.loc["none", ["null", "access", "pair"]].tolist() == [True, "scripted", "none / mix / llama"]
    assert grades.dollars["tea"].isna().all()
    assert grades.success["tea"].isna().all()


def test_a_pair_of_which_nobody_says_whether_it_differs_counts_neither_way(store: Store) -> None:
    store.rows(NAME, {"outcome": "error"}, {"outcome": "refused"}, drop=LABELS)
    found = of_store(store.root, PROJECT)
    assert len(found.grades) == 2
    assert differing(found.grades).empty
    assert without_difference(found.grades).empty
    assert found.notes == [
        "2 samples do not say whether their pair differs; they count neither as pairs that differ nor not"
    ]


def test_an_evaluation_of_nobody_knows_what_is_left_out_and_said(store: Store) -> None:
    store.rows(NAME, {"level": 1})
    made = planted.frame([planted.graded("case_1", 1, "kl", 0)])
    store.publish("mine", made)
    found = of_store(store.root, PROJECT)
    assert len(found.grades) == 1
    (note,) = found.notes
    assert note.startswith(f"left out: {PROJECT}/mine:v0")


def test_a_label_that_is_missing_loses_no_sample(store: Store) -> None:
    store.rows(NAME, {"level": 2, "method": None, "variant": None})
    found = of_store(store.root, PROJECT)
    (row,) = cells_table(found.grades).frame.to_dict("records")
    assert (row["method"], row["samples"]) == ("unknown", 1)


def test_verdicts_go_with_the_samples_that_count(store: Store) -> None:
    first = planted.graded("case_1", 1, "kl", 0) | planted.labels("kl", "tea", False)
    second = first | {"sample": "case_2", "interactions": 5}
    for judge in ("old", "new"):
        rows = [first, second] if judge == "old" else [first]
        verdicts = pd.DataFrame([planted.verdict(row, judge, 3) for row in rows])
        store.publish(NAME, planted.frame([row | {"level": 3} for row in rows]), verdicts)
    found = of_store(store.root, PROJECT)
    assert sorted(zip(found.verdicts.judge, found.verdicts["sample"], strict=True)) == [
        ("new", "case_1"),
        ("old", "case_2"),
    ]
    assert set(found.verdicts.run) == set(found.grades.run)


def test_an_evaluation_that_was_cut_off_and_went_on_counts_once(log: Path, tmp_path: Path) -> None:
    """It has two logs, the newer with all samples; what they have in common is their number."""
    first = read_eval_log(str(log))
    assert first.samples is not None
    part = first.model_copy(update={"samples": first.samples[:1]})
    write_eval_log(part, str(tmp_path / f"1999-{log.name}"))
    (tmp_path / log.name).write_bytes(log.read_bytes())
    found = of_paths([tmp_path])
    assert sorted(found.grades["repeat"]) == [1, 2]
    assert set(found.grades.log) == {log.name}
    assert found.notes == ["1 samples were found more than once and count once"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    report = agents_planted.report()
    labels = planted.labels("activation_difference_lens", "zeppelin_knitting", False)
    case = Case(Evidence([report]), agents_planted.TRUTH, labels=labels)
    return evaluate([case], Agent("scripted/words", repeats=2), tmp_path_factory.mktemp("logs")).log


def test_logs_stand_alone_and_the_same_log_twice_counts_once(log: Path) -> None:
    for paths in ([log], [log.parent], [log, log.parent]):
        found = of_paths(paths)
        assert len(found.grades) == 2
        assert set(found.grades.organism) == {"zeppelin_knitting"}
        assert found.grades.level.isna().all()
        assert found.grades.fact_recall.gt(0).all()
        assert len(found.notes) == (len(paths) == 2)


def test_a_folder_of_an_evaluation_has_its_levels_and_its_log_is_not_read_beside_it(log: Path, tmp_path: Path) -> None:
    grades = of_paths([log]).grades
    (tmp_path / "artifact").mkdir()
    kept = [
        "sample",
        "repeat",
        "model",
        "access",
        "interactions",
        "outcome",
        "no_meaningful_difference",
        "log",
        "seconds",
    ]
    grades = grades[[*kept, *LABELS, "fact_recall", "correct_null"]].assign(level=4)
    grades.to_parquet(tmp_path / "artifact" / "grades.parquet")
    (tmp_path / "artifact" / log.name).write_bytes(log.read_bytes())
    found = of_paths([tmp_path, log])
    assert found.grades.level.tolist() == [4, 4], "graded where it is graded anywhere"
    assert set(found.grades.source) == {str(tmp_path / "artifact")}


def test_paths_without_evaluations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"expected a \.eval log"):
        of_paths([tmp_path])


def test_a_log_without_labels_is_refused(tmp_path: Path) -> None:
    result = evaluate(
        [Case(Evidence([agents_planted.report()]), agents_planted.TRUTH)], Agent("scripted/words"), tmp_path
    )
    with pytest.raises(SchemaMismatch, match="no labels"):
        of_paths([result.log])


def test_what_the_entry_point_publishes_is_read(tmp_path: Path) -> None:
    report, agent = agents_planted.report(), Agent("scripted/words")
    labels = planted.labels("activation_difference_lens", "zeppelin_knitting", False)
    result = evaluate([Case(Evidence([report]), agents_planted.TRUTH, labels=labels)], agent, tmp_path / "logs")
    with LocalTracker(tmp_path / "store", PROJECT, "evaluate_agents", {}) as tracker:
        (tmp_path / "report").mkdir()
        (tmp_path / "report" / "report.json").write_text("{}", "utf-8")
        source = tracker.publish(tmp_path / "report", "report-x", Kind.REPORT, {}, uses=[])
        publish_evaluation(result, NAME, agent, source, tracker)
    (row,) = of_store(tmp_path / "store", PROJECT).grades.to_dict("records")
    assert (row["organism"], row["claimed"], row["agent"]) == ("zeppelin_knitting", True, "scripted/words")
