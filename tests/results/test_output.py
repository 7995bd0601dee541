"""The command, and what it prints and writes."""

import json
import re
import sys
from pathlib import Path

import pandas as pd
import pytest

from diffing.results import ordinal, output
from diffing.results.__main__ import main
from diffing.results.ordinal import Fit, Sampling
from diffing.results.results import NOT_FITTED, Results, compute
from tests.html.test_page import HOSTILE, Page
from tests.results import planted
from tests.results.conftest import PROJECT, Store


@pytest.fixture(scope="module")
def results() -> Results:
    return compute(planted.collected(planted.Study(organisms=3, failing=0.1)), resamples=50)


def stand_in(rhat: float) -> Fit:
    """What a fit comes to, without one."""
    rows = ordinal.observations(*(lambda found: (found.grades, found.verdicts))(planted.collected(planted.Study())))
    effect = {"effect": "kl against blackbox", "mean": 1.0, "low": 0.5, "high": 1.5, "rhat": rhat}
    frame = pd.DataFrame([effect | {"ess_bulk": 900.0, "ess_tail": 900.0}])
    table = ordinal.Table(frame, "Effects.", ordinal.COLUMNS)
    return Fit(table, ordinal.design(rows), ordinal.failed_gates(frame, 0, 4))


def test_the_command_prints_and_writes_all_that_a_store_has(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store.rows("evaluation-kl-smollm2_135m-tea-default", {"level": 5}, {"access": "blackbox", "level": 1})
    store.rows("evaluation-kl-smollm2_135m-none-default", {"level": 5, "no_meaningful_difference": True})
    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["results", "--root", str(store.root), "--project", PROJECT, "--out", str(out)])
    main()
    printed = capsys.readouterr().out
    assert "TOO FEW ORGANISMS" in printed
    assert "NO NULL PAIR" not in printed
    assert re.search(r"\| kl +\| method +\| 0 +\| 5\.00 \(1/1\) \| 5\.00 \(1/1\)", printed)
    assert NOT_FITTED in printed
    assert "<title>study</title>" in (out / "index.html").read_text("utf-8")
    assert len(pd.read_csv(out / "cells.csv")) == 3


def test_the_command_without_evaluations_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["results", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "expected a .eval log" in capsys.readouterr().out


def test_every_table_is_a_file_and_in_the_page_with_its_columns_explained(results: Results, tmp_path: Path) -> None:
    page = Page(output.write(results, tmp_path, "A study").read_text("utf-8"))
    ids, titles = page.attributes("id"), page.attributes("title")
    for name, table in results.tables.items():
        assert list(pd.read_csv(tmp_path / f"{name}.csv").columns) == list(table.frame.columns)
        assert f"table-{name}" in ids
        assert set(table.columns.values()) <= set(titles)
    assert {f"figure-{name}" for name in results.figures} <= set(ids)
    assert {"mean_level", "levels", "contrast_level", "contrast_success"} <= set(results.figures)


def test_figures_say_what_the_tables_do(results: Results) -> None:
    cells, spread = results.tables["cells"].frame, results.tables["levels"].frame
    (heat,) = results.figures["mean_level"].plotly["data"]
    assert heat["x"][-1] == "organism3 (null)"
    shown = [value for row in heat["z"] for value in row]
    assert sorted(shown) == pytest.approx(sorted(cells.level))
    bars = results.figures["levels"].plotly["data"]
    assert sum(sum(bar["customdata"]) for bar in bars) == spread.samples.sum()
    conditions = len(spread.drop_duplicates(["method", "interactions"]))
    assert sum(sum(bar["x"]) for bar in bars) == pytest.approx(conditions)
    (points,) = results.figures["contrast_level"].plotly["data"]
    rows = results.tables["contrasts"].frame.query("measure == 'level'")
    lows = [x - minus for x, minus in zip(points["x"], points["error_x"]["arrayminus"], strict=True)]
    assert lows == pytest.approx(rows.low.tolist())


@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_names_add_no_element(hostile: str) -> None:
    def saying(name: str) -> Page:
        found = planted.collected(planted.Study(organisms=2, budgets=(5,)))
        grades = found.grades.assign(agent=name, source=name)
        grades["pair"] = grades["organism"] = [f"{name} {organism}" for organism in grades.organism]
        verdicts = found.verdicts.assign(judge=[f"{name} {judge}" for judge in found.verdicts.judge])
        return Page(output.page(compute(type(found)(grades, verdicts, [name]), resamples=10), name))

    found, expected = saying(hostile), saying("harmless")
    assert [tag for tag, _ in found.elements] == [tag for tag, _ in expected.elements]
    assert hostile in found.text


def test_a_model_that_converged_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinal, "fit", lambda made, sampling: stand_in(rhat=1.001))
    results = compute(planted.collected(planted.Study(organisms=2, budgets=(5,))), Sampling(), resamples=10)
    assert "converged" in results.model
    assert "1 | 0.5 | 1.5" in re.sub(" +", " ", output.text(results))
    assert "effects" in results.figures


def test_effects_of_a_model_that_failed_are_neither_printed_nor_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ordinal, "fit", lambda made, sampling: stand_in(rhat=1.3))
    results = compute(planted.collected(planted.Study(organisms=2, budgets=(5,))), Sampling(), resamples=10)
    text = output.text(results)
    assert "THE MODEL FAILED: R-hat of 1.300" in text
    assert "must not be read" in text
    assert "1 | 0.5 | 1.5" not in re.sub(" +", " ", text)
    assert "model" not in results.tables
    assert "effects" not in results.figures


def test_without_the_library_all_else_is_there_and_the_message_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "bambi", None)
    found = planted.collected(planted.Study(organisms=2))
    results = compute(found, Sampling(), resamples=10)
    assert "pip install -e .[statistics]" in results.model
    assert results.tables.keys() == compute(found, resamples=10).tables.keys()


def test_without_levels_the_rest_still_stands() -> None:
    found = planted.collected(planted.Study(organisms=2))
    ungraded = found.grades.assign(level=pd.Series(pd.NA, found.grades.index, dtype="Int64"), success=pd.NA)
    ungraded["success"] = ungraded["success"].astype("boolean")
    results = compute(type(found)(ungraded, found.verdicts.iloc[:0]), Sampling(), resamples=10)
    assert "recall" in output.text(results)
    assert "two conditions" in results.model
    assert set(results.tables["contrasts"].frame.measure) == {"fact_recall"}
    json.dumps([figure.plotly for figure in results.figures.values()])
