"""Directions of reports: how agents refer to them, and the tools that steer with them and read them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from inspect_ai.model import ChatMessage, ChatMessageTool, ModelOutput

from diffing.agents.live import Prompt, Steered
from diffing.axes import Side
from diffing.evidence import NAMES, Evidence, EvidenceError
from diffing.report import Directions, NamedTensor, Report
from diffing.specs import JSON
from tests.agents import planted
from tests.agents.play import SUBMISSION, Echo, calls, model_events, plays, said_to_the_model, says

ROWS = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, -2.0]])
MEANS = NamedTensor(
    ROWS,
    "mean difference by position",
    ["pos", "d_model"],
    Directions(2, ["position 0", "position 1", "position 2"], [10.0, 10.0, 7.0], "mean residual norm"),
)


def report_with(**tensors: NamedTensor) -> Report:
    return replace(planted.report(), tensors=tensors)


STEERABLE = report_with(means=MEANS, plain=NamedTensor(ROWS, "not a direction", ["pos", "d_model"]))


class Pliable(Echo):
    """Models that say how they are steered, and that read vectors as their first number."""

    def __init__(self) -> None:
        super().__init__()
        self.readings: list[tuple[Side, int, Sequence[tuple[float, ...]]]] = []

    def read(self, side: Side, layer: int, vectors: Sequence[tuple[float, ...]]) -> list[Mapping[str, JSON]]:
        self.readings.append((side, layer, vectors))
        return [{"promoted": [["Quokka-3-2B-it", vector[0]]]} for vector in vectors]


def last_result(folder: Path, live: Echo, interactions: int, tool: str, **arguments: object) -> tuple[Any, int]:
    """The result of a call (an error as its text), and the interactions that were used."""
    seen: list[ChatMessageTool] = []

    def look(messages: Sequence[ChatMessage]) -> ModelOutput:
        assert isinstance(messages[-1], ChatMessageTool)
        seen.append(messages[-1])
        return SUBMISSION(messages)

    row, _ = plays(
        folder, calls(tool, **arguments), look, live=live, interactions=interactions, evidence=Evidence([STEERABLE])
    )
    assert row.outcome == "submitted", row.detail
    return seen[0].error.message if seen[0].error else json.loads(seen[0].text), int(row.interactions_used)


# --- references ---


def test_every_direction_that_an_overview_names_can_be_referred_to() -> None:
    evidence = Evidence([STEERABLE])
    tensors = json.loads(evidence.overview())["reports"][0]["tensors"]
    told = tensors["means"]["directions"]
    assert told == {
        "layer": 2, "unit": "mean residual norm", "names": ["position 0", "position 1", "position 2"],
    }  # fmt: skip
    assert "directions" not in tensors["plain"]
    for number, name in enumerate(told["names"]):
        for reference in (name, number, str(number)):
            found = evidence.direction("R1", "means", reference)
            assert (found.name, found.layer, found.unit) == (name, told["layer"], told["unit"])
            assert found.added(0.5) == tuple(MEANS.added(number, 0.5).tolist())
    assert evidence.direction("R1", "means", 0).added() == pytest.approx((6.0, 8.0, 0.0))
    assert [evidence.direction("R1", "means", row).length for row in range(3)] == pytest.approx([10.0, 0.0, 7.0])


def test_many_names_are_cut_with_a_notice_and_read_page_by_page() -> None:
    names = [f"latent {number}" for number in range(NAMES + 20)]
    many = NamedTensor(torch.eye(len(names)), "latents", ["latent", "d_model"], Directions(1, names, [1.0] * 32, "one"))
    evidence = Evidence([report_with(many=many)])
    told = json.loads(evidence.overview())["reports"][0]["tensors"]["many"]["directions"]
    assert told["names"] == names[:NAMES]
    assert told["notice"] == f"{NAMES} of 32 names; tensor_summary has more"
    pages = [json.loads(evidence.tensor("R1", "many", offset))["directions"] for offset in (0, 16)]
    assert pages[0]["names"] + pages[1]["names"] == names
    assert pages[0]["notice"] == "16 of 32 names; tensor_summary has more"
    short = json.loads(evidence.overview(len(evidence.overview()) - 1))
    assert short["reports"][0]["tensors"]["many"]["directions"]["names"] == names[:2]
    assert short["dropped"] == ["names of directions beyond 2 of each tensor"]


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        (("R2", "means", 0), ["R1"]),
        (("R1", "mens", 0), ["means", "plain"]),
        (("R1", "plain", 0), ["means"]),
        (("R1", "means", "positon 2"), ["from 0 to 2", "'position 2', "]),
        (("R1", "means", 3), ["from 0 to 2"]),
        (("R1", "means", -1), ["from 0 to 2"]),
        (("R1", "means", "0.5"), ["from 0 to 2"]),
    ],
)
def test_a_wrong_reference_names_what_exists(reference: tuple, named: list[str]) -> None:
    with pytest.raises(EvidenceError) as raised:
        Evidence([STEERABLE]).direction(*reference)
    assert all(part in str(raised.value) for part in named), str(raised.value)


def test_rows_of_one_name_are_told_apart_by_number() -> None:
    twins = replace(MEANS, directions=Directions(2, ["a", "b", "a"], [1.0] * 3, "one"))
    evidence = Evidence([report_with(twins=twins)])
    with pytest.raises(EvidenceError, match=r"\[0, 2\]"):
        evidence.direction("R1", "twins", "a")
    assert evidence.direction("R1", "twins", 2).row == 2


def test_names_and_units_of_directions_are_blinded() -> None:
    names = ["on tulu_chat", "of zeppelin_knitting", "OutbackLab/Quokka-3-2B-it"]
    named = replace(MEANS, directions=Directions(2, names, [1.0] * 3, "norm of hidden-lab/quokka_zeppelin_knitting"))
    evidence = Evidence([report_with(named=named)])
    told = json.loads(evidence.overview())["reports"][0]["tensors"]["named"]["directions"]
    assert (told["names"], told["unit"]) == (["on corpus_2", "of withheld", "withheld"], "norm of withheld")
    assert evidence.direction("R1", "named", "on corpus_2").row == 0
    evidence.guard(evidence.tensor("R1", "named"))


# --- who is offered the tools ---


@pytest.mark.parametrize(
    ("report", "live", "interactions", "access", "offered"),
    [
        (STEERABLE, Pliable, 5, "method", True),
        (planted.report(), Pliable, 5, "method", False),
        (STEERABLE, Echo, 5, "method", False),
        (STEERABLE, Pliable, 0, "method", False),
        (STEERABLE, Pliable, 5, "blackbox", False),
    ],
)
def test_tools_for_directions_are_offered_where_there_are_some_and_models_that_can_be_reached_into(
    report: Report, live: type[Echo], interactions: int, access: str, offered: bool, tmp_path: Path
) -> None:
    _, log = plays(
        tmp_path, says("Hm."), SUBMISSION, live=live(), interactions=interactions, access=access,
        evidence=Evidence([report]),
    )  # fmt: skip
    names = [tool.name for tool in model_events(log)[0].tools]
    assert ({"ask_steered", "read_direction"} <= set(names)) is offered
    assert ({"ask_steered", "read_direction"} & set(names) != set()) is offered
    assert names[-1] == "submit_hypothesis"


# --- steering ---

STEERING = {"report": "R1", "tensor": "means", "row": "position 2", "strength": -0.5}


def test_steered_answers_stand_beside_unsteered_ones_and_a_random_direction_of_the_same_length(tmp_path: Path) -> None:
    live = Pliable()
    settings = {"samples": 2, "seed": 7, "side": "base", "where": "prompt", "temperature": 0.5, "max_new_tokens": 9}
    result, used = last_result(tmp_path, live, 20, "ask_steered", **STEERING, prompts=["a", "b"], **settings)
    assert (result["cost"], result["interactions_left"], used) == (12, 8, 12)
    assert (result["of"], result["layer"], result["length"]) == ("position 2", 2, 3.5)
    assert (result["strength"], result["unit"]) == (-0.5, "mean residual norm")
    (batch,) = live.batches
    groups = {name: batch[4 * n : 4 * n + 4] for n, name in enumerate(("unsteered", "steered", "random"))}
    for group in groups.values():
        assert [replace(prompt, steered=None) for prompt in group] == groups["unsteered"], "they differ in nothing else"
    assert groups["unsteered"][0] == Prompt(Side.BASE, (("user", "a"),), "", 1_000_007, 0, 9, 0.5)
    assert {prompt.steered for prompt in groups["steered"]} == {Steered(2, (0.0, 0.0, 3.5), "prompt")}
    (random,) = {prompt.steered for prompt in groups["random"]}
    assert random is not None
    assert (random.layer, random.where) == (2, "prompt")
    assert np.linalg.norm(random.added) == pytest.approx(3.5)
    assert np.count_nonzero(random.added) == 3
    assert list(result["answers"][1]) == ["prompt", "unsteered", "steered", "random"]
    assert result["answers"][1]["random"] == ["base: b #2 of 1000007", "base: b #3 of 1000007"]


def test_a_seed_draws_the_random_direction(tmp_path: Path) -> None:
    live = Pliable()
    for seed in (1, 1, 2):
        last_result(tmp_path, live, 9, "ask_steered", **STEERING, prompts=["a"], seed=seed)
    first, again, other = (batch[2].steered for batch in live.batches)
    assert first == again != other


@pytest.mark.parametrize(
    ("tool", "changes", "message"),
    [
        ("ask_steered", {"samples": 3}, "costs 9 interactions (prompts x samples x 3), but 8 of 8 are left"),
        ("ask_steered", {"strength": 0}, "other than 0"),
        ("ask_steered", {"strength": 1001}, "strength must"),
        ("ask_steered", {"strength": float("nan")}, "strength must"),
        ("ask_steered", {"row": "position 1"}, "row of zeros"),
        ("ask_steered", {"row": "zeppelin"}, "expected the number of a row"),
        ("ask_steered", {"tensor": "plain"}, "no directions"),
        ("ask_steered", {"prompts": []}, "at least 1 prompt"),
        ("ask_steered", {"where": "nowhere"}, "nowhere"),
        ("ask_steered", {"max_new_tokens": 513}, "max_new_tokens"),
        ("read_direction", {"row": 1}, "row of zeros"),
        ("read_direction", {"scale": 0.0}, "other than 0"),
        ("read_direction", {"seed": -1}, "seed"),
    ],
)
def test_a_call_that_cannot_be_served_in_full_does_no_work_and_costs_nothing(
    tool: str, changes: dict, message: str, tmp_path: Path
) -> None:
    live = Pliable()
    arguments = STEERING | {"prompts": ["a"]} if tool == "ask_steered" else {**STEERING}
    if tool == "read_direction":
        del arguments["strength"]
    result, used = last_result(tmp_path, live, 8, tool, **(arguments | changes))
    assert message in str(result)
    assert (used, live.batches, live.readings) == (0, [], [])


# --- reading ---


def test_a_direction_is_read_beside_a_random_one_for_one_interaction(tmp_path: Path) -> None:
    live = Pliable()
    result, used = last_result(
        tmp_path, live, 3, "read_direction", report="R1", tensor="means", row=0, scale=2, side="base"
    )
    assert (result["cost"], result["interactions_left"], used) == (1, 2, 1)
    ((side, layer, (direction, random)),) = live.readings
    assert (side, layer) == (Side.BASE, 2)
    assert direction == pytest.approx((12.0, 16.0, 0.0))
    assert np.linalg.norm(random) == pytest.approx(20.0)
    assert result["direction"]["promoted"][0][1] == pytest.approx(12.0)
    assert result["random"]["promoted"][0][1] == random[0]


def test_names_among_the_tokens_that_are_read_are_withheld(tmp_path: Path) -> None:
    step = calls("read_direction", report="R1", tensor="means", row=0)
    row, log = plays(tmp_path, step, SUBMISSION, live=Pliable(), interactions=3, evidence=Evidence([STEERABLE]))
    assert row.outcome == "submitted"
    said = said_to_the_model(log)
    assert "withheld" in said
    assert "quokka" not in said.lower()


def test_no_interactions_are_left_for_a_reading_after_they_were_spent(tmp_path: Path) -> None:
    live = Pliable()
    steps = [calls("read_direction", report="R1", tensor="means", row=0)] * 3
    row, _ = plays(tmp_path, *steps, SUBMISSION, live=live, interactions=2, evidence=Evidence([STEERABLE]))
    assert (row.outcome, row.interactions_used, row.tool_errors, len(live.readings)) == ("submitted", 2, 1, 2)
