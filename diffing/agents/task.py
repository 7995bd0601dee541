"""One Inspect task: each sample is one pair, investigated by a loop of model and tools, graded by keywords.

The loop is ours because every text has to pass the leak guard *before* a model sees it, because a budget that runs out
has to end in a submission, and because each way to end is an outcome of its own: only a submission is graded, and
nothing else becomes a score of 0.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from itertools import product

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    execute_tools,
    get_model,
)  # fmt: skip
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import Tool, ToolDef
from inspect_ai.util import Limit, sample_limits, store_as

from diffing.agents import prompts
from diffing.agents.grading import grade
from diffing.agents.live import Batching, LiveModels, ask_model
from diffing.agents.progress import Outcome, Progress
from diffing.agents.tools import evidence_tools, submission_tool
from diffing.agents.truth import GroundTruth
from diffing.blinding import Leak
from diffing.errors import DiffingError, InvalidSetting
from diffing.evidence import Evidence

SCRIPTED = "scripted/words"
ROOM = 2
"""So many more turns as costly as the last must fit into a budget; else the next one is the last."""


class Access(StrEnum):
    """What an agent may look at."""

    METHOD = "method"
    """The reports, and the live models if it has interactions."""
    BLACKBOX = "blackbox"
    """The live models alone."""
    SCRIPTED = "scripted"
    """The reports alone, read by a fixed policy in place of a language model."""


class GuardFailed(DiffingError):
    """The guard against leaks lets a name pass, or has no names to look for."""


@dataclass(frozen=True)
class Case:
    """What an agent investigates, and the truth that its submission is graded against. Without reports to show, the
    evidence still says which names must not leak."""

    evidence: Evidence
    truth: GroundTruth
    live: LiveModels | None = None


@dataclass(frozen=True)
class Plan:
    """One sample: a case, and by what means and budget it is investigated."""

    case: Case
    access: Access = Access.METHOD
    interactions: int = 0

    def __post_init__(self) -> None:
        if self.interactions and self.case.live is None:
            raise InvalidSetting(f"{self.interactions} interactions, but no live models; expected 0, or models")

    @property
    def reports(self) -> bool:
        return self.access is not Access.BLACKBOX


def plans(cases: Sequence[Case], access: Sequence[str], interactions: Sequence[int]) -> list[Plan]:
    """All combinations; the scripted policy asks no live models, and so has no budgets to compare."""
    found = []
    for case, means in product(cases, map(Access, access)):
        budgets = [0] if means is Access.SCRIPTED else interactions
        found += [Plan(case, means, budget) for budget in budgets]
    return found


def build_task(planned: Sequence[Plan], turns: int, name: str = "find_the_finetune") -> Task:
    """A task with samples `case_1`, `case_2`, ... Truths are the targets: in the log, never in a message."""
    by_id = {f"case_{number}": plan for number, plan in enumerate(planned, start=1)}
    for plan in planned:
        check_guard(plan.case.evidence)
    samples = [
        Sample(
            id=sample_id,
            input=prompts.task(turns, plan.reports, plan.interactions),
            target=plan.case.truth.as_json(),
            metadata={"access": plan.access.value, "interactions": plan.interactions},
        )
        for sample_id, plan in by_id.items()
    ]
    return Task(dataset=MemoryDataset(samples), solver=_solver(by_id, turns), scorer=keyword_recall(), name=name)


def check_guard(evidence: Evidence) -> None:
    """Raises GuardFailed unless the guard fires for each of its names, in any case and inside of a text."""
    if not evidence.secrets:
        raise GuardFailed("expected names for the guard to look for, got none: would nothing be a leak?")
    for secret in evidence.secrets:
        for text in (secret.text, f'{{"path": "/a/{secret.text}/b"}}', f"({secret.text.upper()})."):
            try:
                evidence.guard(text)
            except Leak:
                continue
            raise GuardFailed(f"the guard lets a name of class '{secret.kind}' pass")


def _solver(by_id: Mapping[str, Plan], turns: int) -> Solver:
    queues = {id(models): Batching(models) for plan in by_id.values() if (models := plan.case.live)}

    # These come by closure: Inspect writes the arguments of a solver into its log.
    @solver
    def investigate() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            plan, progress = by_id[str(state.sample_id)], store_as(Progress)
            try:
                progress.outcome, progress.detail = await _investigate(
                    state, plan, queues.get(id(plan.case.live)), turns
                )
            except Leak as leak:
                progress.outcome, progress.detail = Outcome.LEAKED, leak.kind
            return state

        return solve

    return investigate()


async def _investigate(state: TaskState, plan: Plan, queue: Batching | None, turns: int) -> tuple[Outcome, str]:
    """Runs the loop until it ends; the outcome and what there is to say about it. Raises Leak."""
    progress, evidence, pace = store_as(Progress), plan.case.evidence, _Pace(turns)
    tools = _tools(plan, queue, state.epoch)
    model = get_model(SCRIPTED) if plan.access is Access.SCRIPTED else get_model()
    state.messages.insert(0, ChatMessageSystem(content=prompts.system(plan.reports, plan.interactions > 0)))
    passed = 0
    while True:
        progress.forced = pace.last_because(plan, progress)
        if progress.forced:
            state.messages.append(ChatMessageUser(content=prompts.LAST_TURN))
        _guard(evidence, state.messages[passed:])
        passed = len(state.messages)
        state.output = await model.generate(state.messages, tools[-1:] if progress.forced else tools)
        state.messages.append(state.output.message)
        if state.output.stop_reason == "content_filter":
            return Outcome.REFUSED, state.output.error or ""
        if state.output.stop_reason == "model_length":
            return Outcome.NO_SUBMISSION, "context window"
        if state.output.message.tool_calls:
            state.messages.extend(await _results(state.messages, tools, evidence))
            if progress.submission is not None:
                return Outcome.SUBMITTED, ""
        elif not progress.forced:
            state.messages.append(ChatMessageUser(content=prompts.CONTINUE))
        if progress.forced:
            return Outcome.NO_SUBMISSION, pace.said(progress.forced)


def _tools(plan: Plan, queue: Batching | None, run: int) -> list[Tool]:
    """The submission comes last. What a model reads about tools passes the guard too."""
    tools = evidence_tools(plan.case.evidence) if plan.reports else []
    if plan.interactions and queue:
        tools.append(ask_model(queue, plan.case.evidence, plan.interactions, run))
    tools.append(submission_tool())
    for defined in map(ToolDef, tools):
        plan.case.evidence.guard(f"{defined.name} {defined.description} {defined.parameters.model_dump_json()}")
    return tools


async def _results(messages: list[ChatMessage], tools: Sequence[Tool], evidence: Evidence) -> list[ChatMessage]:
    """Answers to the tool calls of the last message. Texts of errors, which libraries write too, lose their names."""
    results = await execute_tools(messages, tools, max_output=0)
    for message in results.messages:
        if isinstance(message, ChatMessageTool) and message.error:
            message.error.message = evidence.withheld(message.error.message)
            message.content = evidence.withheld(message.text)
    return results.messages


def _guard(evidence: Evidence, messages: Sequence[ChatMessage]) -> None:
    """Raises Leak for a message of ours that names the pair. What the model said itself is its own guess."""
    for message in messages:
        if message.role != "assistant":
            evidence.guard(message.text)
        if isinstance(message, ChatMessageTool) and message.error:
            evidence.guard(message.error.message)


@dataclass
class _Pace:
    """Watches the budgets of a sample, so that its last turn begins while there is still room for one."""

    turns: int
    taken: int = 0
    _used: dict[str, float] = field(default_factory=dict)

    def last_because(self, plan: Plan, progress: Progress) -> str:
        """The budget for which the turn that begins must be the last; empty if there is none."""
        self.taken += 1
        short = self._short()
        if self.taken == self.turns:
            return "turns"
        if not plan.reports and progress.interactions >= plan.interactions > 0:
            return "interactions"
        return short

    def said(self, forced: str) -> str:
        return f"{self.turns} turns" if forced == "turns" else f"budget of {forced}"

    def _short(self) -> str:
        found, limits = "", sample_limits()
        watched: dict[str, Limit] = {"seconds": limits.time, "tokens": limits.token}
        for name, limit in watched.items():
            used = limit.usage - self._used.get(name, 0.0)
            self._used[name] = limit.usage
            if self.taken > 1 and limit.remaining is not None and limit.remaining < ROOM * used:
                found = name
        return found


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
