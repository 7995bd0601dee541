"""Runs an agent over cases and returns one row per sample, graded or not, and Inspect's log of everything said."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import inspect_ai
import pandas as pd

# There is no public name for the error that a missing key or provider package raises.
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.log import EvalLog, EvalSample
from inspect_ai.model import ChatMessageAssistant, ChatMessageTool, Model, get_model

from diffing.agents import scripted  # noqa: F401  # registers the model
from diffing.agents.progress import Outcome, Progress
from diffing.agents.task import SCRIPTED, Access, Case, build_task, plans
from diffing.errors import DiffingError, InvalidSetting, MissingInput
from diffing.specs import JSON


class EvaluationFailed(DiffingError):
    """A run that was stopped before each sample had an outcome."""


@dataclass(frozen=True)
class Agent:
    """Which model plays the agent, and how far it may go."""

    model: str
    """As Inspect AI names it: `anthropic/...`, `openai/...`, `openai-api/<service>/...`, `scripted/words`."""
    turns: int = 30
    """Messages of the model per sample; the last may only submit."""
    tokens: int | None = None
    """Limit on the tokens of a sample, input and output. Where it comes near, the next turn may only submit."""
    seconds: int | None = None
    """Limit on the time of a sample, likewise."""
    repeats: int = 1
    """Independent runs of each case, access and budget."""
    access: Sequence[str] = (Access.METHOD.value,)
    """What it may look at, each for itself: see `Access`."""
    interactions: Sequence[int] = (0,)
    """Budgets of texts that live models generate, each for itself."""
    generation: Mapping[str, JSON] = field(default_factory=dict)
    """Inspect's `GenerateConfig`: temperature, seed, max_connections, reasoning_effort, ..."""

    def __post_init__(self) -> None:
        if self.turns < 2 or self.repeats < 1:
            raise InvalidSetting(f"an agent needs turns >= 2 and repeats >= 1, got {self.turns} and {self.repeats}")
        unknown = [name for name in self.access if name not in [*Access]]
        if unknown or not self.access or not self.interactions or min(self.interactions) < 0:
            raise InvalidSetting(
                f"an agent needs one access or more of {', '.join(Access)}, and budgets of interactions that are 0 or "
                f"more; got access {list(self.access)} and interactions {list(self.interactions)}"
            )

    @property
    def asks_live_models(self) -> bool:
        return max(self.interactions) > 0 and any(name != Access.SCRIPTED for name in self.access)


@dataclass(frozen=True)
class Evaluation:
    """`grades` has one row per sample and repeat; `log` is Inspect's .eval file (`inspect view` shows it)."""

    grades: pd.DataFrame
    log: Path
    verdicts: pd.DataFrame | None = None
    """What judges said of each fact, if any were asked: see `diffing.agents.judging`."""


def evaluate(
    cases: Sequence[Case], agent: Agent, log_dir: Path, display: Literal["none", "plain", "rich", "full"] = "none"
) -> Evaluation:
    """Lets `agent` investigate each case, by every access and within every budget of its own.

    Everything that Inspect writes goes below `log_dir`. A sample that fails is a row with outcome `error`. Raises
    MissingInput for a model that cannot be reached at all (no key, unknown provider), InvalidSetting for no cases,
    EvaluationFailed for a run that was stopped.
    """
    if not cases:
        raise InvalidSetting("evaluate needs at least one case, got none")
    planned = plans(cases, agent.access, agent.interactions)
    log_dir.mkdir(parents=True, exist_ok=True)
    with _kept_inside(log_dir):
        logs = inspect_ai.eval(
            build_task(planned, agent.turns),
            model=_model(agent.model),
            epochs=agent.repeats,
            log_dir=str(log_dir),
            display=display,
            token_limit=agent.tokens,
            time_limit=agent.seconds,
            fail_on_error=False,
            score_display=False,
            log_realtime=False,
            ctl_server=False,
            acp_server=False,
            **agent.generation,  # type: ignore[arg-type]  # Inspect checks them
        )
    grades, log = grades_of(logs[0]), Path(logs[0].location)
    if len(grades) != len(planned) * agent.repeats:
        reason = logs[0].error.message if logs[0].error else logs[0].status
        raise EvaluationFailed(f"{len(grades)} of {len(planned) * agent.repeats} samples ended ({reason}); see {log}")
    return Evaluation(grades, log)


def grades_of(log: EvalLog) -> pd.DataFrame:
    """One row per sample of a log, also of one read back with `inspect_ai.log.read_eval_log`."""
    return pd.DataFrame([_row(sample, log) for sample in log.samples or []])


def _row(sample: EvalSample, log: EvalLog) -> dict[str, object]:
    progress = sample.store_as(Progress)
    score = (sample.scores or {}).get("keyword_recall")
    value = score.value if score and isinstance(score.value, dict) else {}
    calls = [
        call.function
        for message in sample.messages
        if isinstance(message, ChatMessageAssistant)
        for call in message.tool_calls or ()
    ]
    tool_errors = sum(isinstance(message, ChatMessageTool) and message.error is not None for message in sample.messages)
    usage = list(sample.model_usage.values())
    submission = progress.submission or {}
    outcome, detail = _outcome(sample, progress)
    metadata = sample.metadata
    return {
        "sample": str(sample.id),
        "repeat": sample.epoch,
        "model": SCRIPTED if metadata.get("access") == Access.SCRIPTED else log.eval.model,
        "access": metadata.get("access"),
        "interactions": metadata.get("interactions"),
        "outcome": outcome.value,
        "detail": detail,
        **{name: value.get(name) for name in ("fact_recall", "domain_recall", "correct_null", "false_null")},
        "found": list((score.metadata or {}).get("found", [])) if score and value else None,
        **{name: submission.get(name) for name in ("domain", "behaviours", "evidence", "confidence")},
        "no_meaningful_difference": submission.get("no_meaningful_difference"),
        "forced": progress.forced,
        "interactions_used": progress.interactions,
        "messages": len(sample.messages),
        "tool_calls": len(calls),
        "tool_errors": tool_errors,
        "input_tokens": sum(use.input_tokens for use in usage),
        "output_tokens": sum(use.output_tokens for use in usage),
        "seconds": sample.total_time,
        "log": Path(log.location).name,
    }


def _outcome(sample: EvalSample, progress: Progress) -> tuple[Outcome, str]:
    if sample.error:
        return Outcome.ERROR, sample.error.message
    if sample.limit and progress.submission is None:
        return Outcome.NO_SUBMISSION, f"{sample.limit.type} limit {sample.limit.limit}"
    return Outcome(progress.outcome or Outcome.NO_SUBMISSION), progress.detail


def _model(name: str) -> Model:
    try:
        # Its own per run: the clients of Inspect's shared ones belong to the event loop that made them.
        return get_model(name, memoize=False)
    except (PrerequisiteError, ValueError) as error:
        raise MissingInput(
            f"model '{name}' cannot be used: {error}\nagent=scripted needs neither a key nor a network"
        ) from error


@contextmanager
def _kept_inside(folder: Path) -> Iterator[None]:
    """Inspect keeps traces and buffers in the user's folders, and takes over the root logger. Here it does neither:
    its state goes below `folder`, and the environment and the root logger are afterwards what they were."""
    names = ("XDG_DATA_HOME", "XDG_CACHE_HOME")
    before = {name: os.environ.get(name) for name in names}
    root = logging.getLogger()
    level, handlers = root.level, list(root.handlers)
    os.environ.update(dict.fromkeys(names, str((folder / "inspect_state").resolve())))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        root.setLevel(level)
        for handler in set(root.handlers) - set(handlers):
            root.removeHandler(handler)
