"""Scripted investigators, and whole evaluations in which they are played by a service over HTTP."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from diffing.agents.evaluation import Agent, Evaluation, evaluate
from diffing.agents.task import Case
from diffing.agents.tools import SUBMIT
from diffing.evidence import Evidence
from diffing.specs import JSON
from tests.agents import planted
from tests.agents.play import Echo
from tests.agents.script import Acts, Seen, Tokens

CLAUDE, COMPATIBLE = MODELS = ("anthropic/claude-planned", "openai-api/planned/model")
GENERATION: dict[str, JSON] = {"max_tokens": 1000, "max_retries": 6}
STREAMED = GENERATION | {"max_tokens": 10_000}
"""Anthropic's client streams what may become long, ..."""
THINKING = GENERATION | {"reasoning_effort": "low"}
"""... and what is thought about."""


def submits(domain: str, *behaviours: str) -> Acts:
    given = {"domain": domain, "behaviours": list(behaviours), "evidence": ["R1/logit_lens"], "confidence": 0.8}
    return Acts([(SUBMIT, given)], "I am done.")


def investigator(seen: Seen) -> Acts:
    """Looks at what the overview names first, and submits the tokens that it read there; guesses without reports."""
    if "overview" not in seen.tools and seen.turn == 0 and "ask_model" in seen.tools:
        return Acts([("ask_model", {"prompts": ["Hi", "Ho"]}), ("ask_model", {"prompts": ["Hm"], "samples": 9})])
    if "overview" not in seen.tools:
        return submits("something", "nothing in particular")
    if seen.turn == 0:
        return Acts([("overview", {}), ("no_such_tool", {})], "Let me look.")
    if seen.turn == 1:
        table = next(iter(json.loads(seen.results[0])["reports"][0]["tables"]))
        where = {"source": "difference", "direction": "promoted"}
        arguments = {"report": "R1", "table": table, "where": where, "columns": ["token"]}
        return Acts([("table_rows", arguments), ("tensor_summary", {"report": "R1", "tensor": "mean_difference"})])
    words = sorted({row[0].strip() for row in json.loads(seen.results[2])["rows"]})
    return submits("airships", *words)


def evaluated(
    folder: Path,
    model: str = CLAUDE,
    access: Sequence[str] = ("method",),
    generation: Mapping[str, JSON] = GENERATION,
    turns: int = 8,
    **more: object,
) -> Evaluation:
    """An evaluation of a planted case by a model that a service plays."""
    case = Case(Evidence([planted.report()]), planted.TRUTH, Echo())
    agent = Agent(model, turns=turns, access=access, generation=generation, **more)  # type: ignore[arg-type]
    return evaluate([case], agent, folder)


def tokens(grades: pd.DataFrame) -> dict[str, int]:
    """Sums of what the samples say that they were charged for, by the names of `Tokens`."""
    columns = {
        "uncached": "input_tokens", "written": "cache_write_tokens", "read": "cache_read_tokens",
        "output": "output_tokens", "thinking": "reasoning_tokens",
    }  # fmt: skip
    return {name: int(grades[column].fillna(0).sum()) for name, column in columns.items()}


def by_name(used: Tokens) -> dict[str, int]:
    return asdict(used)
