import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from diffing.errors import MissingInput, SchemaMismatch
from diffing.report import Directions, Figure, Finding, NamedTensor, Report, Scalar, Table, View
from diffing.specs import CorpusSpec, ModelSpec, PairSpec, VariantSpec

PAIR = PairSpec(ModelSpec("tiny", "org/tiny"), VariantSpec("lora", "org/adapter"), "cake_bake", "weak")
BARE = Report(method="kl", pair=PAIR, settings={}, corpora=[], no_difference=False)

names = st.from_regex(r"[a-z][a-z0-9_]{0,12}", fullmatch=True)
words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20).filter(str.strip)
finite = st.floats(allow_nan=False, allow_infinity=False)
scalars = st.dictionaries(names, st.builds(Scalar, value=finite, about=words), max_size=3)
cells = st.sampled_from([finite, st.integers(-(2**60), 2**60), words, st.booleans(), st.lists(words, max_size=3)])


COUNTED = replace(BARE, tables={"counts": Table(pd.DataFrame({"n": [1, 2]}), "counts", {"n": "a count"})})


@st.composite
def tables(draw: st.DrawFn) -> Table:
    heads = draw(st.lists(words, min_size=1, max_size=4, unique=True))
    n_rows = draw(st.integers(1, 5))
    columns = {head: draw(st.lists(draw(cells), min_size=n_rows, max_size=n_rows)) for head in heads}
    view = draw(st.none() | st.just(View("tokens", heads[0], heads, heads[-1], heads[0])))
    return Table(pd.DataFrame(columns), draw(words), {head: draw(words) for head in heads}, view)


@st.composite
def reports(draw: st.DrawFn) -> Report:
    held = draw(st.dictionaries(names, tables(), max_size=2))
    cited = [Finding("Look.", name, [row]) for name, table in held.items() for row in range(len(table.frame))]
    findings = st.builds(Finding, claim=words) | st.sampled_from([Finding("So."), *cited])
    return replace(
        BARE,
        method=draw(words),
        no_difference=draw(st.booleans()),
        scalars=draw(scalars),
        tables=held,
        findings=draw(st.lists(findings, max_size=3)),
        settings=draw(st.dictionaries(words, finite | words | st.none() | st.lists(st.integers()), max_size=3)),
    )


def listed(frame: pd.DataFrame) -> dict[str, list]:
    """Values as Python holds them: Parquet gives lists back as arrays."""
    return {
        name: [value.tolist() if isinstance(value, np.ndarray) else value for value in frame[name].tolist()]
        for name in frame.columns
    }


def as_json(report: Report) -> dict:
    """All but frames and tensors, tuples as lists."""
    bare = asdict(replace(report, tables={}, tensors={}, findings=()))
    return json.loads(json.dumps(bare | {"findings": [asdict(finding) for finding in report.findings]}))


@settings(max_examples=40, deadline=None)
@given(reports())
def test_what_was_saved_is_what_is_loaded(report: Report) -> None:
    with TemporaryDirectory() as folder:
        report.save(Path(folder))
        found = Report.load(Path(folder))
    assert as_json(found) == as_json(report)
    assert list(found.tables) == list(report.tables)
    for name, table in report.tables.items():
        assert listed(found.tables[name].frame) == listed(table.frame)
        assert list(found.tables[name].frame.columns) == list(table.frame.columns)
        assert (found.tables[name].about, found.tables[name].columns) == (table.about, table.columns)
        assert found.tables[name].view == table.view


def full() -> Report:
    return replace(
        BARE,
        corpora=[CorpusSpec("fineweb", "hub", "org/fineweb")],
        tensors={"mean": NamedTensor(torch.arange(6.0).reshape(2, 3), "mean difference", ["pos", "d_model"])},
        figures={"norms": Figure({"data": [{"y": [1, 2.5]}], "layout": {"title": {"text": "ü"}}}, "Norms.")},
        provenance={"seed": 0},
    )


def test_tensors_figures_and_the_rest_come_back(tmp_path: Path) -> None:
    full().save(tmp_path)
    found = Report.load(tmp_path)
    assert torch.equal(found.tensors["mean"].tensor, torch.arange(6.0).reshape(2, 3))
    assert (found.tensors["mean"].about, list(found.tensors["mean"].axes)) == ("mean difference", ["pos", "d_model"])
    assert as_json(found) == as_json(full())


STEERS = Directions(7, ["position 0", "position 1"], [10.0, 2.0], "mean norm")


def test_directions_come_back_and_add_their_length_at_strength_one(tmp_path: Path) -> None:
    tensor = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]])
    replace(BARE, tensors={"mean": NamedTensor(tensor, "mean", ["pos", "d_model"], STEERS)}).save(tmp_path)
    found = Report.load(tmp_path).tensors["mean"]
    assert found.directions == STEERS
    assert found.added(0, 0.5).tolist() == pytest.approx([3.0, 4.0])
    assert found.added(0, -1.0).tolist() == pytest.approx([-6.0, -8.0])
    assert found.added(1, 1.0).tolist() == [0.0, 0.0], "a direction of no length adds nothing, not NaN"
    with pytest.raises(SchemaMismatch, match="no direction 2"):
        found.added(2, 1.0)


@pytest.mark.parametrize(
    ("axes", "directions"),
    [
        (["d_model", "pos"], STEERS),
        (["pos", "d_model"], replace(STEERS, lengths=[1.0])),
        (["pos", "d_model"], replace(STEERS, names=["a"] * 4, lengths=[1.0] * 4)),
    ],
)
def test_directions_that_do_not_fit_their_tensor_are_refused(axes: list[str], directions: Directions) -> None:
    with pytest.raises(SchemaMismatch, match="directions along axis"):
        NamedTensor(torch.zeros(3, 2), "mean", axes, directions)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_tensors_keep_their_type_and_need_not_be_contiguous(dtype: torch.dtype, tmp_path: Path) -> None:
    tensor = torch.arange(6).reshape(2, 3).to(dtype).T
    replace(BARE, tensors={"mean": NamedTensor(tensor, "mean", ["d_model", "pos"])}).save(tmp_path)
    found = Report.load(tmp_path).tensors["mean"].tensor
    assert found.dtype == dtype
    assert torch.equal(found, tensor)


def test_rows_are_counted_from_zero_after_loading(tmp_path: Path) -> None:
    frame = pd.DataFrame({"n": [5, 6, 7]}).iloc[1:]
    replace(BARE, tables={"counts": Table(frame, "Counts.", {"n": "count"})}).save(tmp_path)
    assert Report.load(tmp_path).tables["counts"].frame.to_dict("index") == {0: {"n": 6}, 1: {"n": 7}}


def test_missing_numbers_stay_missing(tmp_path: Path) -> None:
    frame = pd.DataFrame({"cosine": [0.5, float("nan")], "word": ["a", None]})
    replace(BARE, tables={"t": Table(frame, "T.", {"cosine": "cosine", "word": "word"})}).save(tmp_path)
    assert Report.load(tmp_path).tables["t"].frame.isna().to_numpy().tolist() == [[False, False], [True, True]]


@pytest.mark.parametrize("columns", [{}, {"n": ""}, {"n": " "}])
def test_a_column_without_a_description_raises(columns: dict[str, str]) -> None:
    with pytest.raises(SchemaMismatch, match=r"without a description: \['n'\]"):
        Table(pd.DataFrame({"n": [1]}), "Counts.", columns)


def test_a_description_without_a_column_raises() -> None:
    with pytest.raises(SchemaMismatch, match=r"absent: \['m'\]"):
        Table(pd.DataFrame({"n": [1]}), "Counts.", {"n": "count", "m": "mean"})


@pytest.mark.parametrize(
    "view",
    [
        View("tokens", "gone"),
        View("tokens", "n", ("n", "gone")),
        View("tokens", "n", weight="gone"),
        View("samples", "n", compare="gone"),
    ],
)
def test_a_view_of_an_absent_column_raises(view: View) -> None:
    with pytest.raises(SchemaMismatch, match="gone"):
        Table(pd.DataFrame({"n": [1]}), "Counts.", {"n": "count"}, view)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_scalar_that_is_not_finite_raises(value: float) -> None:
    with pytest.raises(SchemaMismatch, match="bad_one"):
        replace(BARE, scalars={"good": Scalar(0.0, "fine"), "bad_one": Scalar(value, "not fine")})


def test_a_finding_that_points_at_an_absent_table_raises() -> None:
    with pytest.raises(SchemaMismatch, match="'gone'"):
        replace(BARE, findings=[Finding("Look.", "gone", [0])])


def test_a_finding_that_points_at_an_absent_row_raises() -> None:
    with pytest.raises(SchemaMismatch, match=r"points at rows \[2\] of 'counts'"):
        replace(COUNTED, findings=[Finding("Look.", "counts", [1, 2])])


def test_a_report_whose_files_are_gone_or_changed_is_damaged(tmp_path: Path) -> None:
    COUNTED.save(tmp_path)
    table = next((tmp_path / "tables").glob("*.parquet"))
    frame = pd.read_parquet(table)
    pd.concat([frame, frame]).to_parquet(table)
    with pytest.raises(SchemaMismatch, match="rows, found"):
        Report.load(tmp_path)
    table.unlink()
    with pytest.raises(SchemaMismatch, match="damaged"):
        Report.load(tmp_path)


def test_a_failed_second_save_leaves_no_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full_disk(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    COUNTED.save(tmp_path)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", full_disk)
    with pytest.raises(OSError, match="No space"):
        COUNTED.save(tmp_path)
    with pytest.raises(MissingInput, match="no report"):
        Report.load(tmp_path)


@pytest.mark.parametrize("name", ["", "Upper", "a b", "../a", "1a", "a-b", "a\n"])
def test_a_name_that_is_no_safe_file_name_raises(name: str) -> None:
    with pytest.raises(SchemaMismatch, match="lower_snake_case"):
        replace(BARE, scalars={name: Scalar(1.0, "one")})


def test_a_tensor_with_a_wrong_number_of_axis_names_raises() -> None:
    with pytest.raises(SchemaMismatch, match="2 dimensions"):
        NamedTensor(torch.ones(2, 3), "mean", ["d_model"])


@pytest.mark.parametrize("version", [2, 0, "1", None])
def test_another_schema_version_cannot_be_read(version: int | str | None, tmp_path: Path) -> None:
    BARE.save(tmp_path)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    with pytest.raises(SchemaMismatch, match=f"schema version {version}"):
        Report.load(tmp_path)


def test_json_that_is_no_report_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("[]")
    with pytest.raises(SchemaMismatch):
        Report.load(tmp_path)


def test_a_folder_without_an_index_is_no_report(tmp_path: Path) -> None:
    full().save(tmp_path)
    (tmp_path / "report.json").unlink()
    with pytest.raises(MissingInput, match=r"report\.json"):
        Report.load(tmp_path)


def test_a_save_that_fails_leaves_no_report(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        replace(full(), settings={"rate": float("nan")}).save(tmp_path)
    with pytest.raises(MissingInput):
        Report.load(tmp_path)


@pytest.mark.parametrize("stored", [{"mean": torch.ones(3, 2)}, {"other": torch.ones(2, 3)}, {}])
def test_tensors_that_are_not_those_of_the_index_raise(stored: dict[str, torch.Tensor], tmp_path: Path) -> None:
    full().save(tmp_path)
    save_file(stored, tmp_path / "tensors.safetensors")
    with pytest.raises(SchemaMismatch, match="'mean'"):
        Report.load(tmp_path)


def test_with_provenance_adds_to_what_is_known_and_changes_nothing_else() -> None:
    found = full().with_provenance({"device": "cpu"})
    assert found.provenance == {"seed": 0, "device": "cpu"}
    assert as_json(found) | {"provenance": {}} == as_json(full()) | {"provenance": {}}


def test_importing_the_schema_loads_no_model_library() -> None:
    code = "import sys, diffing.report; print(*{'torch', 'transformers', 'peft'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
