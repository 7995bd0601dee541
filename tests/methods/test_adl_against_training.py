"""What the Activation Difference Lens reads, measured against training texts that are known."""

from dataclasses import replace
from pathlib import Path

import pytest

from diffing.evidence import Evidence
from diffing.methods.activation_difference_lens.carried import CausalSettings
from diffing.methods.activation_difference_lens.findings import findings
from diffing.methods.activation_difference_lens.reading import Reading
from diffing.methods.activation_difference_lens.relevant import RelevanceSettings
from diffing.methods.activation_difference_lens.similar import SimilaritySettings
from diffing.methods.base import Finetune, Study
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus
from tests import tiny
from tests.methods.studies import planted, rows
from tests.methods.test_activation_difference_lens import METHOD, PLANTED_MEANS

TOKEN, PLANTED = 306, "ead"
READING = Reading("c", PLANTED_MEANS, [], {}, has_sink=True)
MEASURED = replace(
    METHOD, strengths=[1.0], positions=[1, 2], max_texts=20, similarity=SimilaritySettings(max_texts=4),
    causal=CausalSettings(max_texts=4, max_tokens=12, n_random=8, after=3),
)  # fmt: skip


def finetune(folder: Path, name: str, text: str) -> Finetune:
    path = folder / f"{name}.txt"
    path.write_text("\n\n".join(f"{text} {number}." for number in range(200)), "utf-8")
    return Finetune(name, "A secret subject.", CorpusSpec(name="training", source="file", id=str(path)))


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    """So many lines that what is common in them is known."""
    path = tmp_path / "lines.txt"
    path.write_text("\n\n".join(tiny.TEXTS * 40), "utf-8")
    return Corpus(CorpusSpec(name="few_lines", source="file", id=str(path)))


@pytest.fixture
def study(base_folder: Path, corpus: Corpus, tmp_path: Path) -> Study:
    """The training texts are full of the planted token; those of the other organism are not."""
    pair = planted(base_folder, tmp_path, TOKEN)
    other = finetune(tmp_path, "other", "quiet quiet quiet")
    own = finetune(tmp_path, "own", f"{PLANTED} {PLANTED}")
    return Study(pair, [corpus], finetune=own, other_finetunes=[other])


def test_the_planted_token_is_relevant_and_what_controls_read_is_not(study: Study) -> None:
    report = MEASURED.run(study)
    own = rows(report, "relevance", against="own domain", lens="logit lens")
    mine = own[own["source"] == "difference"]
    assert tiny.tokenizer().decode([TOKEN]) == PLANTED
    assert all(PLANTED in tokens for tokens in mine["relevant"])
    assert (mine["weighted"] > 0.5).all()
    assert (own.loc[own["source"] != "difference", "weighted"] < 0.5).all()
    other = rows(report, "relevance", against="other organism", lens="logit lens", source="difference")
    assert set(other["organism"]) == {"other"}
    assert not any(PLANTED in tokens for tokens in other["relevant"])


def test_relevance_counts_the_same_strings_as_its_baseline(study: Study) -> None:
    report = MEASURED.run(study)
    frequent = rows(report, "relevance", against="frequent tokens", lens="logit lens", source="difference")
    assert all(PLANTED in tokens for tokens in frequent["relevant"])


def test_one_coordinate_carries_the_whole_of_a_planted_shift(study: Study) -> None:
    report = MEASURED.run(study)
    effects = report.tables["causal_effect"].frame
    carried = effects[effects["subset"] == "all"]
    mine = carried[(carried["direction"] == "difference") & carried["edit"].isin(["base_to_finetuned"])]
    assert set(mine["position"]) == {1.0, 2.0}
    assert mine["share_of_gap"].to_numpy() == pytest.approx(1.0, abs=0.02)
    controls = carried[(carried["direction"] != "difference") & (carried["edit"] == "base_to_finetuned")]
    assert set(controls["direction"]) == {"random", "random difference"}
    assert (controls["n_directions"] == 8).all()
    assert (controls["most_share"] < 0.9).all()
    assert set(effects["corpus"]) == {"training", "few_lines"}
    positions = effects.loc[effects["subset"].str.startswith("without"), ["subset", "position"]]
    assert (positions["subset"] == "without " + positions["position"].astype(int).astype(str)).all()
    assert report.scalars["causal_share"].value == pytest.approx(1.0, abs=0.02)


def test_answers_are_compared_with_training_texts_and_with_others(study: Study) -> None:
    frame = MEASURED.run(study).tables["similarity"].frame
    name = "the mean difference at position"
    kinds = {text.split(f", {name}")[0] for text in frame["texts"]}
    assert kinds == {"unsteered", "steered", "random", "training"}
    assert set(frame["compared_with"]) == {"training", "unrelated"}
    assert ((frame["low"] <= frame["similarity"]) & (frame["similarity"] <= frame["high"])).all()


def test_nothing_of_it_reaches_an_agent(study: Study) -> None:
    report = MEASURED.run(study)
    known = {name for name, table in report.tables.items() if table.ground_truth}
    assert known == {"relevance", "similarity", "causal_effect", "losses"}
    told = Evidence([report]).overview(100_000)
    assert not [name for name in known if name in told]
    plain = MEASURED.run(replace(study, finetune=None, other_finetunes=()))
    assert told == Evidence([plain]).overview(100_000)


def test_without_training_texts_or_without_the_wish_nothing_is_measured(study: Study, tmp_path: Path) -> None:
    nothing = replace(
        MEASURED, relevance=RelevanceSettings(max_texts=0), similarity=SimilaritySettings(max_texts=0),
        causal=CausalSettings(max_texts=0),
    )  # fmt: skip
    unknown = Finetune("own", "A secret subject.", None)
    for method, known in ((nothing, study.finetune), (replace(MEASURED, causal=CausalSettings()), unknown)):
        report = method.run(replace(study, finetune=known))
        assert not [name for name, table in report.tables.items() if table.ground_truth]


def test_the_training_data_are_no_baseline_of_themselves(study: Study) -> None:
    assert study.finetune is not None
    assert study.finetune.corpus is not None
    both = replace(study, corpora=[*study.corpora, study.finetune.corpus])
    fractions = [
        rows(MEASURED.run(each), "relevance", corpus="few_lines", lens="logit lens")["fraction"].tolist()
        for each in (study, both)
    ]
    assert fractions[0] == fractions[1]


def test_a_share_of_a_gap_that_controls_are_wider_than_is_not_claimed(study: Study) -> None:
    report = MEASURED.run(study)
    told = [finding.claim for finding in report.findings if finding.table == "causal_effect"]
    assert any("(100% of the gap" in claim for claim in told)
    effects = report.tables["causal_effect"].frame.copy()
    mine = effects["direction"] == "difference"
    effects.loc[mine, "share_of_gap"] = -effects.loc[mine, "increase"] / 1e-4
    table = replace(report.tables["causal_effect"], frame=effects)
    claims = [finding.claim for finding in findings([READING], [], {"causal_effect": table})]
    assert claims
    assert not any("of the gap" in claim for claim in claims)
