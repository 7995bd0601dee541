"""One Inspect task: each sample is one pair, investigated by a loop of model and tools, graded by keywords.

The loop is ours because every text has to pass the leak guard *before* a model sees it, because a budget that runs out
has to end in a submission, and because each way to end is an outcome of its own: only a submission is graded, and
nothing else becomes a score of 0.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from functools import partial
from itertools import product

from inspect_ai import Task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageSystem,
    ChatMessageTool,
    ChatMessageUser,
    Model,
    ModelOutput,
    execute_tools,
    get_model,
)  # fmt: skip

# The public count of a sample's dollars leaves out a call that ended it by another limit.
from inspect_ai.model._model import sample_total_cost
from inspect_ai.scorer import Score, Scorer, Target, scorer
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.tool import Tool, ToolDef, ToolFunction
from inspect_ai.util import apply_limits, store_as, time_limit

from diffing.agents import prompts
from diffing.agents.declared import check_names, declared_tools
from diffing.agents.directions import direction_tools
from diffing.agents.grading import grade
from diffing.agents.interactions import Interactions
from diffing.agents.live import Batching, LiveModels, ask_model
from diffing.agents.pace import Budget, Pace
from diffing.agents.prices import SCRIPTED
from diffing.agents.progress import Outcome, Progress
from diffing.agents.replies import whole_reply
from diffing.agents.spending import Meter, Purse, Tariff, TooDear
from diffing.agents.tools import SUBMIT, evidence_tools, submission_tool
from diffing.agents.transcript import own_words
from diffing.agents.truth import GroundTruth
from diffing.blinding import Leak
from diffing.errors import DiffingError, InvalidSetting
from diffing.evidence import Evidence
from diffing.live_tools import LiveTool
from diffing.specs import JSON

LABELS = ("organism", "variant", "base", "method", "organism_type", "null")
"""What may be said of a case where no model reads it: columns of the grades."""


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
    tools: Sequence[LiveTool] = ()
    """Further questions to the live models, for agents that have reports and interactions."""

    labels: Mapping[str, JSON] = field(default_factory=dict)
    """Some of LABELS. They go into the log and the grades, and never into a message."""
    source: JSON = None
    """What else tells this case from another with the same evidence: pinned versions, settings of live models."""

    def __post_init__(self) -> None:
        check_names(self.tools)
        if unknown := [name for name in self.labels if name not in LABELS]:
            raise InvalidSetting(f"unknown labels {unknown}; expected some of {', '.join(LABELS)}")


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


def build_task(
    planned: Sequence[Plan],
    budget: Budget,
    purse: Purse | None = None,
    note: Callable[[float], object] = lambda dollars: None,
) -> Task:
    """A task with samples `case_1`, `case_2`, ... Truths are the targets: in the log, never in a message. `purse` is
    what all samples may spend together, and `note` is told what each call cost."""
    by_id = {f"case_{number}": plan for number, plan in enumerate(planned, start=1)}
    for plan in planned:
        check_guard(plan.case.evidence)
    samples = [
        Sample(
            id=sample_id,
            input=prompts.task(budget.turns, plan.reports, plan.interactions),
            target=plan.case.truth.as_json(),
            metadata={**plan.case.labels, "access": plan.access.value, "interactions": plan.interactions},
        )
        for sample_id, plan in by_id.items()
    ]
    solver = _solver(by_id, budget, purse or Purse(), note)
    return Task(dataset=MemoryDataset(samples), solver=solver, scorer=keyword_recall(), name="find_the_finetune")


def told(plan: Plan, turns: int) -> list[str]:
    """All that a model is told before it has done anything, and what it may be told to go on."""
    queue = Batching(plan.case.live) if plan.case.live else None
    described = [_described(tool) for tool in _tools(plan, queue, run=0)]
    first = [_system(plan), prompts.task(turns, plan.reports, plan.interactions)]
    return [*first, prompts.CONTINUE, prompts.LAST_TURN, *described]


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


def _solver(by_id: Mapping[str, Plan], budget: Budget, purse: Purse, note: Callable[[float], object]) -> Solver:
    queues = {id(models): Batching(models) for plan in by_id.values() if (models := plan.case.live)}

    # These come by closure: Inspect writes the arguments of a solver into its log.
    @solver
    def investigate() -> Solver:
        async def solve(state: TaskState, generate: Generate) -> TaskState:
            plan, progress = by_id[str(state.sample_id)], store_as(Progress)
            tariff = Tariff() if plan.access is Access.SCRIPTED else budget.tariff
            meter = Meter(tariff, sample_total_cost, note)
            async with purse.opened(meter) as admitted:
                if admitted:
                    await _timed(state, plan, queues.get(id(plan.case.live)), budget, meter)
                else:
                    progress.outcome, progress.detail = Outcome.NOT_RUN, f"${purse.cap} for the evaluation"
            return state

        return solve

    return investigate()


async def _timed(state: TaskState, plan: Plan, queue: Batching | None, budget: Budget, meter: Meter) -> None:
    """Investigates, and writes down how that ended. The clock starts here: a sample may have waited for its share."""
    progress = store_as(Progress)
    with apply_limits([clock := time_limit(budget.seconds)], catch_errors=True) as scope:
        try:
            pace = Pace(budget, clock, meter)
            progress.outcome, progress.detail = await _investigate(state, plan, queue, pace)
        except Leak as leak:
            progress.outcome, progress.detail = Outcome.LEAKED, leak.kind
        except TooDear as dear:
            progress.outcome, progress.detail = Outcome.NO_SUBMISSION, f"budget of dollars: {dear}"
    if scope.limit_error and progress.outcome is None:
        submitted = progress.submission is not None
        progress.outcome = Outcome.SUBMITTED if submitted else Outcome.NO_SUBMISSION
        progress.detail = "" if submitted else f"time limit {budget.seconds}"


async def _investigate(state: TaskState, plan: Plan, queue: Batching | None, pace: Pace) -> tuple[Outcome, str]:
    """Runs the loop until it ends; the outcome and what there is to say about it. Raises Leak and TooDear.

    The last turn is asked for in words alone, so that all that came before stays in the service's cache. Who does not
    submit then is asked once more, and offered nothing else.
    """
    progress, evidence = store_as(Progress), plan.case.evidence
    tools = _tools(plan, queue, state.epoch)
    pace.meter.offers([_described(tool) for tool in tools])
    model = get_model(SCRIPTED) if plan.access is Access.SCRIPTED else get_model()
    state.messages.insert(0, ChatMessageSystem(content=_system(plan)))
    passed = 0
    while True:
        insisting = bool(progress.forced)
        nothing_left = not plan.reports and progress.interactions >= plan.interactions > 0
        progress.forced = progress.forced or pace.last_because(state.messages, nothing_left)
        if progress.forced:
            state.messages.append(ChatMessageUser(content=prompts.LAST_TURN))
        _guard(evidence, state.messages[passed:])
        passed = len(state.messages)
        pace.meter.plans(state.messages)
        state.output = await whole_reply(partial(_reply, model, state.messages, tools, insisting, pace.meter))
        state.messages.append(state.output.message)
        pace.meter.paid(state.output, state.messages)
        progress.unmetered += state.output.usage is None and str(model) != SCRIPTED
        progress.guessed = sorted({*progress.guessed, *evidence.named(own_words(state.output.message))})
        if state.output.stop_reason == "content_filter":
            return Outcome.REFUSED, state.output.error or ""
        if state.output.stop_reason == "model_length":
            return Outcome.NO_SUBMISSION, "context window"
        if state.output.message.tool_calls:
            state.messages.extend(await _results(state.messages, tools[-1:] if progress.forced else tools, evidence))
            if progress.submission is not None:
                return Outcome.SUBMITTED, ""
        elif not progress.forced:
            state.messages.append(ChatMessageUser(content=prompts.CONTINUE))
        if insisting:
            return Outcome.NO_SUBMISSION, pace.said(progress.forced)


async def _reply(
    model: Model, messages: list[ChatMessage], tools: Sequence[Tool], insisting: bool, meter: Meter
) -> ModelOutput:
    """One call, if it can be paid for."""
    meter.check()
    if insisting:
        return await model.generate(messages, tools[-1:], tool_choice=ToolFunction(SUBMIT))
    return await model.generate(messages, tools)


def _system(plan: Plan) -> str:
    return prompts.system(plan.reports, plan.interactions > 0)


def _described(tool: Tool) -> str:
    defined = ToolDef(tool)
    return f"{defined.name} {defined.description} {defined.parameters.model_dump_json()}"


def _tools(plan: Plan, queue: Batching | None, run: int) -> list[Tool]:
    """The submission comes last. What a model reads about tools passes the guard too."""
    tools = evidence_tools(plan.case.evidence) if plan.reports else []
    if plan.interactions and queue:
        paying = Interactions(plan.interactions, plan.case.evidence)
        tools.append(ask_model(queue, paying, run))
        if plan.reports:
            tools += direction_tools(queue, plan.case.evidence, paying, run)
            tools += declared_tools(plan.case.tools, queue, paying)
    tools.append(submission_tool())
    for tool in tools:
        plan.case.evidence.guard(_described(tool))
    return tools


async def _results(messages: list[ChatMessage], tools: Sequence[Tool], evidence: Evidence) -> list[ChatMessage]:
    """Answers to the tool calls of the last message. Texts of errors, which libraries write too, lose their names."""
    results = await execute_tools(messages, tools, max_output=0)
    guessed = store_as(Progress).guessed
    for message in results.messages:
        if isinstance(message, ChatMessageTool) and message.error:
            message.error.message = evidence.withheld(message.error.message, guessed)
            message.content = evidence.withheld(message.text, guessed)
    return results.messages


def _guard(evidence: Evidence, messages: Sequence[ChatMessage]) -> None:
    """Raises Leak for a message of ours that names the pair. What the model said itself is its own guess, and so is
    what tools repeat of it."""
    guessed = store_as(Progress).guessed
    for message in messages:
        if message.role != "assistant":
            evidence.guard(message.text, guessed if message.role == "tool" else ())
        if isinstance(message, ChatMessageTool) and message.error:
            evidence.guard(message.error.message, guessed)


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
