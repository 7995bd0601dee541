"""The Activation Difference Lens around the start of answers, below a planted shift, and with searched strengths."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from diffing.errors import InvalidSetting
from diffing.lenses.scale import SCALES
from diffing.lenses.strength import StrengthSearch
from diffing.methods.activation_difference_lens import ActivationDifferenceLens
from diffing.methods.base import Study
from diffing.models.pair import ModelPair
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from tests import tiny
from tests.judge_server import Fails, Reply, Says, judge_server, quick_clients
from tests.methods.studies import rows
from tests.methods.test_activation_difference_lens import METHOD

SEARCHED = replace(
    METHOD, strengths=None, positions=[0, 1], patchscope_scales=[0.5, 1.0, 2.0],
    search=StrengthSearch(["Bread?", "Boats?"], largest=4.0, decisions=3, samples=2, references=2),
)  # fmt: skip


@pytest.fixture
def chats(tmp_path: Path) -> Corpus:
    path = tmp_path / "chats.jsonl"
    talks = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(tiny.TEXTS, reversed(tiny.TEXTS), strict=True)
    ]
    path.write_text("\n".join(json.dumps({"messages": talk}) for talk in talks), "utf-8")
    return Corpus(CorpusSpec(name="talks", source="file", id=str(path), format="chat", column="messages"))


def test_conversations_are_read_around_the_start_of_the_answer(planted_pair: ModelPair, chats: Corpus) -> None:
    report = METHOD.run(Study(planted_pair, [chats]))
    frame = report.tables["positions"].frame
    assert frame["position"].tolist() == list(range(-3, 10))
    assert set(report.tables["logit_lens"].frame["position"]) == {-3, -2, -1, 0, 1, 2}
    stored = report.tensors["talks_layer_2_difference"]
    assert stored.tensor.shape == (13, tiny.WIDTH)
    assert "row 0 is position -3" in stored.about
    torch.testing.assert_close(
        stored.tensor, planted_pair._steering_vector.expand_as(stored.tensor), rtol=1e-4, atol=1e-4
    )


def test_texts_and_conversations_are_read_in_one_run(planted_pair: ModelPair, corpus: Corpus, chats: Corpus) -> None:
    report = replace(METHOD, steering_positions=[-1, 1]).run(Study(planted_pair, [corpus, chats]))
    steered = report.tables["steering"].frame.groupby("corpus")["position"].unique()
    assert {name: sorted(positions) for name, positions in steered.items()} == {"few_lines": [1], "talks": [-1, 1]}


def test_conversations_need_a_chat_template(tmp_path: Path, chats: Corpus) -> None:
    folder = tiny.save_model(tmp_path / "plain")
    tiny.tokenizer(None).save_pretrained(folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    pair = ModelPair(tiny.pair_spec(folder), "cpu")
    with pytest.raises(InvalidSetting, match="chat template"):
        METHOD.run(Study(pair, [chats]))


def test_a_layer_at_which_nothing_differs_is_said_to_be_so_and_not_read(
    planted_pair: ModelPair, corpus: Corpus
) -> None:
    method = replace(METHOD, layers=[0, 2], steering_layers=[0, 2])
    report = method.run(Study(planted_pair, [corpus]))
    assert not report.no_difference
    assert "On few_lines, layer 0, both sides have the same activations." in [f.claim for f in report.findings]
    for name in ("logit_lens", "patchscope", "steering"):
        assert set(report.tables[name].frame["layer"]) == {2}, name


def test_the_strength_is_searched_and_used(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = SEARCHED.run(Study(lora_pair, [corpus]))
    thresholds = report.tables["strengths"].frame
    assert thresholds["prompt"].tolist() == ["Bread?", "Boats?"]
    probes = report.tables["coherence"].frame
    assert set(probes["coherent"] + probes["incoherent"]) == {2}
    strength = thresholds["strength"].mean()
    steered = rows(report, "steering", kind="steered")
    if strength > 0:
        assert steered["strength"].unique().tolist() == pytest.approx([strength])
        norm = report.scalars["residual_norm"].value
        assert steered["length"].unique().tolist() == pytest.approx([strength * norm])
        counts = Counter(report.tables["steering"].frame["kind"])
        assert counts == {"unsteered": 4, "steered": 4, "random": 4}
    else:
        assert steered.empty
        assert any("does not steer" in finding.claim for finding in report.findings)


def test_the_patchscope_shows_the_chosen_scale_and_scale_1(lora_pair: ModelPair, corpus: Corpus) -> None:
    report = SEARCHED.run(Study(lora_pair, [corpus]))
    chosen = report.tables["patchscope_scales"].frame
    assert len(chosen) == 2 * 4
    assert set(chosen["scale"]) <= {0.5, 1.0, 2.0}
    scope = report.tables["patchscope"].frame
    for row in chosen.itertuples():
        here = scope[(scope["source"] == row.source) & (scope["position"] == row.position)]
        assert set(here["scale"]) == {1.0, row.scale}
        assert set(here.loc[here["chosen"], "scale"]) == {row.scale}
        assert here.loc[here["selected"], "token"].tolist() == list(row.selected)


def test_the_usual_scales_are_the_thirty_of_the_paper(lora_pair: ModelPair, corpus: Corpus) -> None:
    method = replace(METHOD, patchscope_scales=None, positions=[1], steering_layers=[])
    assert isinstance(method, ActivationDifferenceLens)
    found = method.run(Study(lora_pair, [corpus])).tables["patchscope_scales"].frame
    assert set(found["scale"]) <= set(SCALES)
    assert len(SCALES) == 30


def half_failing(question: str, before: int) -> Reply:
    """Grades each second question; the others it refuses to answer for good."""
    if sum(question.encode()) % 2:
        return Fails(400)
    return Says("It reads well.\nVERDICT: COHERENT" if "coherent?" in question else "No idea.\nVERDICT: none")


def test_a_judge_that_fails_half_the_time_loses_nothing_else(
    lora_pair: ModelPair, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick_clients(monkeypatch)
    with judge_server(half_failing) as server:
        monkeypatch.setenv("PLANNED_BASE_URL", server.url)
        search = replace(SEARCHED.search, samples=6)
        report = replace(SEARCHED, judge="openai-api/planned/judge", search=search).run(Study(lora_pair, [corpus]))
    probes = report.tables["coherence"].frame
    graded = probes["coherent"] + probes["incoherent"]
    assert (graded + probes["unanswered"] == 6).all()
    assert probes["unanswered"].sum() > 0
    assert (probes.loc[probes["coherent"] > 0, "share"] > 0.5).all(), "what is not graded is not scored as 0"
    scales = report.tables["patchscope_scales"].frame
    assert scales["scale"].isna().all()
    assert set(scales["reason"]) <= {"failed (HTTP 400)", "no verdict"}
    claims = [finding.claim for finding in report.findings]
    assert any(claim.startswith("The judge did not grade") for claim in claims)
    assert any("no patchscope scale was chosen" in claim for claim in claims)
    assert len(report.tables["logit_lens"].frame)
    assert len(report.tables["steering"].frame)
