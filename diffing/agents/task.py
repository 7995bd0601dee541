"""One Inspect task: each sample is one Evidence, investigated by a loop of model and tools, graded by keywords.

The loop is ours because every text has to pass the leak guard *before* a model sees it, and because each way to end
is an outcome of its own: only a submission is graded, and nothing else becomes a score of 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import ChatMessage, ChatMessageSystem, ChatMessageTool, ChatMessageUser, execute_tools, get_model
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import store_as

from diffing.agents.grading import grade
from diffing.agents.prompts import CONTINUE, LAST_TURN, SYSTEM, TASK
from diffing.agents.tools import Progress, evidence_tools, submission_tool
from diffing.agents.truth import GroundTruth
from diffing.blinding import Leak
from diffing.evidence import Evidence


class Outcome(StrEnum):
    """How a sample ended."""

    SUBMITTED = "submitted"
    NO_SUBMISSION = "no_submission"
    """Turns, tokens or time ran out."""
    LEAKED = "leaked"
    """A text for the model held a name of the pair; the model never got it."""
    REFUSED = "refused"
    ERROR = "error"


@dataclass(frozen=True)
class Case:
    """What an agent investigates, and the truth that its submission is graded against."""

    evidence: Evidence
    truth: GroundTruth


def build_task(cases: Sequence[Case], turns: int, name: str = "find_the_finetune") -> Task:
    """A task with samples `case_1`, `case_2`, ... Truths are the targets: in the log, never in a message."""
    evidence = {f"case_{number}": case.evidence for number, case in enumerate(cases, start=1)}
    samples = [
        Sample(id=case_id, input=TASK.format(turns=turns), target=case.truth.as_json())
        for case_id, case in zip(evidence, cases, strict=True)
    ]
    return Task(dataset=MemoryDataset(samples), solver=_solver(evidence, turns), scorer=keyword_recall(), name=name)


def _solver(evidence: Mapping[str, Evidence], turns: int) -> Solver:
    # Evidence comes by closure: Inspect writes the arguments of a solver into its log.
    @solver
    def investigate() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            progress = store_as(Progress)
            progress.outcome, progress.detail = await _investigate(state, evidence[str(state.sample_id)], turns)
            return state

        return solve

    return investigate()


async def _investigate(state: TaskState, evidence: Evidence, turns: int) -> tuple[Outcome, str]:
    """Runs the loop until it ends; the outcome and what there is to say about it."""
    tools = [*evidence_tools(evidence), submission_tool()]
    progress = store_as(Progress)
    state.messages.insert(0, ChatMessageSystem(content=SYSTEM))
    passed = 0
    for turn in range(1, turns + 1):
        if turn == turns:
            state.messages.append(ChatMessageUser(content=LAST_TURN))
            progress.last_turn = True
        try:
            _guard(evidence, state.messages[passed:])
        except Leak as leak:
            return Outcome.LEAKED, leak.kind
        passed = len(state.messages)
        state.output = await get_model().generate(state.messages, tools[-1:] if turn == turns else tools)
        state.messages.append(state.output.message)
        if state.output.stop_reason == "content_filter":
            return Outcome.REFUSED, state.output.error or ""
        if state.output.message.tool_calls:
            results = await execute_tools(state.messages, tools, max_output=0)
            state.messages.extend(results.messages)
            if progress.submission is not None:
                return Outcome.SUBMITTED, ""
        elif turn < turns:
            state.messages.append(ChatMessageUser(content=CONTINUE))
    return Outcome.NO_SUBMISSION, f"{turns} turns"


def _guard(evidence: Evidence, messages: Sequence[ChatMessage]) -> None:
    """Raises Leak for a message of ours that names the pair. What the model said itself is its own guess."""
    for message in messages:
        if message.role != "assistant":
            evidence.guard(message.text)
        if isinstance(message, ChatMessageTool) and message.error:
            evidence.guard(message.error.message)


@scorer(metrics=[])
def keyword_recall() -> Scorer:
    """Grades by `diffing.agents.grading`; undefined parts of a grade are NaN, a sample without submission unscored."""

    async def score(state: TaskState, target: Target) -> Score:
        progress = state.store_as(Progress)
        submission = progress.submitted()
        if submission is None:
            return Score.unscored(explanation=f"{progress.outcome or 'limit'}: {progress.detail}")
        parts = asdict(grade(submission, GroundTruth.from_json(target.text)))
        found = parts.pop("found")
        value = {name: math.nan if part is None else float(part) for name, part in parts.items()}
        return Score(value=value, answer=submission.domain, metadata={"found": found})

    return score
