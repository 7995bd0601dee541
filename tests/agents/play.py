"""Models that take planned steps, and what they were told."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
from inspect_ai.event import ModelEvent
from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from inspect_ai.model import ChatMessage, ModelAPI, ModelOutput, modelapi

from diffing.agents.evaluation import Agent, Evaluation, evaluate
from diffing.agents.live import LiveModels, Prompt
from diffing.agents.task import Case
from diffing.agents.tools import SUBMIT
from diffing.evidence import Evidence
from diffing.live_tools import LiveTool
from diffing.report import Report
from tests.agents import planted

SCRIPTED = Agent(model="scripted/words")
Step = Callable[[Sequence[ChatMessage]], ModelOutput]
PLAYS: dict[str, Sequence[Step]] = {}


class Play(ModelAPI):
    """Takes the steps of PLAYS under its own name, and repeats the last."""

    async def generate(self, input, tools, tool_choice, config) -> ModelOutput:
        steps = PLAYS[self.model_name]
        turn = sum(message.role == "assistant" for message in input)
        return steps[min(turn, len(steps) - 1)](input)


@modelapi(name="play")
def play() -> type[ModelAPI]:
    return Play


def calls(tool: str, **arguments: object) -> Step:
    return lambda _: ModelOutput.for_tool_call("play", tool, arguments)


def says(text: str, stop_reason="stop") -> Step:
    return lambda _: ModelOutput.from_content("play", text, stop_reason=stop_reason)


def fails(text: str) -> Step:
    def step(_: Sequence[ChatMessage]) -> ModelOutput:
        raise RuntimeError(text)

    return step


SUBMISSION = calls(SUBMIT, domain="zeppelins", behaviours=["knitting"], evidence=["R1"], confidence=0.5)


def run(folder: Path, report: Report, truth=planted.TRUTH, agent: Agent = SCRIPTED) -> Evaluation:
    return evaluate([Case(Evidence([report]), truth)], agent, folder)


def plays(
    folder: Path,
    *steps: Step,
    turns: int = 5,
    tokens: int | None = None,
    evidence: Evidence | None = None,
    live: LiveModels | None = None,
    access: str = "method",
    interactions: int = 0,
    tools: Sequence[LiveTool] = (),
) -> tuple[pd.Series, EvalLog]:
    name = f"play_{len(PLAYS)}"
    PLAYS[name] = steps
    case = Case(evidence or Evidence([planted.report()]), planted.TRUTH, live, tools)
    agent = Agent(f"play/{name}", turns=turns, tokens=tokens, access=[access], interactions=[interactions])
    evaluation = evaluate([case], agent, folder)
    return evaluation.grades.iloc[0], read_eval_log(str(evaluation.log))


class Echo:
    """Live models that say who they are, what they were asked, and by which draw; `batches` are the calls."""

    def __init__(self) -> None:
        self.batches: list[list[Prompt]] = []

    def check(self, prompts: Sequence[Prompt]) -> None:
        pass

    def answers(self, prompts: Sequence[Prompt]) -> list[str]:
        self.batches.append(list(prompts))
        return [f"{each.side}: {each.messages[-1][1]} #{each.stream} of {each.seed}" for each in prompts]


def sample_of(log: EvalLog) -> EvalSample:
    assert log.samples
    return log.samples[0]


def model_events(log: EvalLog) -> list[ModelEvent]:
    return [event for event in sample_of(log).events if isinstance(event, ModelEvent)]


def said_to_the_model(log: EvalLog) -> str:
    """All messages and events of a log: everything but the truth, which Inspect keeps with the sample."""
    texts = []
    for sample in log.samples or []:
        texts += [message.model_dump_json() for message in sample.messages]
        texts += [event.model_dump_json() for event in sample.events if event.event in ("model", "tool")]
        texts += list(sample.attachments.values())
    return "\n".join(texts)
