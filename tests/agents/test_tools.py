"""The tools that a model is given."""

import asyncio
import json

import pytest
from inspect_ai.tool import ToolDef, ToolError

from diffing.agents.tools import SUBMIT, evidence_tools, submission_tool
from diffing.evidence import Evidence
from tests.agents import planted


def tools() -> dict[str, ToolDef]:
    defined = [ToolDef(tool) for tool in (*evidence_tools(Evidence([planted.report()])), submission_tool())]
    return {tool.name: tool for tool in defined}


def test_every_tool_and_parameter_is_described_for_the_model() -> None:
    assert list(tools()) == ["overview", "table_rows", "tensor_summary", SUBMIT]
    for tool in tools().values():
        assert tool.description
        assert all(parameter.description for parameter in tool.parameters.properties.values()), tool.name


def test_only_what_has_no_default_is_required() -> None:
    required = {name: tool.parameters.required for name, tool in tools().items()}
    assert required["table_rows"] == ["report", "table"]
    assert required[SUBMIT] == ["domain", "behaviours", "evidence", "confidence"]


def test_tools_answer_as_evidence_does() -> None:
    evidence, named = Evidence([planted.report()]), tools()
    assert asyncio.run(named["overview"].tool()) == evidence.overview()
    where = {"source": "difference", "position": [0, 1]}
    rows = asyncio.run(named["table_rows"].tool("R1", "logit_lens", sort="probability", where=where, limit=3))
    assert rows == evidence.rows("R1", "logit_lens", sort="probability", where=where, limit=3)
    assert json.loads(rows)["total"] == 2 * 2 * 2 * 9
    assert asyncio.run(named["tensor_summary"].tool("R1", "mean_difference")) == evidence.tensor(
        "R1", "mean_difference"
    )


def test_a_wrong_question_is_a_tool_error_that_lists_what_exists() -> None:
    with pytest.raises(ToolError, match="nearest first: logit_lens") as raised:
        asyncio.run(tools()["table_rows"].tool("R1", "logit_lense"))
    assert "zeppelin" not in raised.value.message
    with pytest.raises(ToolError, match="mean_difference"):
        asyncio.run(tools()["tensor_summary"].tool("R1", "median"))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"domain": "x", "behaviours": [], "evidence": [], "confidence": 70}, "from 0 to 1"),
        ({"domain": " ", "behaviours": [""], "evidence": [], "confidence": 0.5}, "none of them"),
    ],
)
def test_an_empty_or_impossible_submission_is_a_tool_error(arguments: dict, named: str) -> None:
    with pytest.raises(ToolError, match=named):
        asyncio.run(tools()[SUBMIT].tool(**arguments))
