"""Runs an agent over cases and returns one row per sample, graded or not, and Inspect's log of everything said."""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import inspect_ai
import pandas as pd

# There are no public names for the task that goes on with a log (Inspect's own way to do so finds tasks by their
# files), and for the error that a missing key or provider package raises.
from inspect_ai._eval.task import PreviousTask
from inspect_ai._util.error import PrerequisiteError
from inspect_ai.log import EvalLog
from inspect_ai.model import Model, get_model

from diffing.agents import scripted  # noqa: F401  # registers the model
from diffing.agents.agent import Agent
from diffing.agents.prices import known_to_inspect
from diffing.agents.resuming import Unfinished, claimed, finished_samples, settings_of
from diffing.agents.rows import grades_of
from diffing.agents.spending import Purse
from diffing.agents.task import Case, Plan, build_task, plans
from diffing.errors import DiffingError, InvalidSetting, MissingInput
from diffing.specs import JSON

log = logging.getLogger(__name__)
Display = Literal["none", "plain", "rich", "full"]
MAX_RETRIES = 8
"""Of one call, unless `Agent.generation` says otherwise: Inspect by itself asks for ever, also once money is spent."""


class EvaluationFailed(DiffingError):
    """A run that was stopped before each sample had an outcome."""


@dataclass(frozen=True)
class Evaluation:
    """`grades` has one row per sample and repeat; `log` is Inspect's .eval file (`inspect view` shows it)."""

    grades: pd.DataFrame
    log: Path
    verdicts: pd.DataFrame | None = None
    """What judges said of each fact, if any were asked: see `diffing.agents.judging`."""
    spent: float | None = None
    """Dollars of all its calls, those of samples that were cut off or tried again among them; None if unpriced."""


@contextmanager
def evaluating(
    cases: Sequence[Case], agent: Agent, log_dir: Path, display: Display = "none", retry_errors: bool = False
) -> Iterator[Evaluation]:
    """Lets `agent` investigate each case, by every access and within every budget of its own.

    The evaluation is finished when the block ends without an error. Until then the same call, in this process or in a
    later one, goes on with it: samples that ended are not run again. A finished one is never gone on with, unless
    `retry_errors` asks to run again what ended in an error in the last one, and what its cap left out.

    Everything that Inspect writes goes below `log_dir`. A sample that fails is a row with outcome `error`. Raises
    MissingInput for a model that cannot be reached at all (no key, unknown provider), InvalidSetting for no cases,
    AlreadyRunning while another process is at the same evaluation, EvaluationFailed for a run that was stopped.
    """
    if not cases:
        raise InvalidSetting("evaluate needs at least one case, got none")
    planned = plans(cases, agent.access, agent.interactions)
    log_dir.mkdir(parents=True, exist_ok=True)
    settings, count = settings_of(planned, agent), len(planned) * agent.repeats
    with claimed(log_dir / "inspect_state" / "unfinished", settings) as unfinished:
        earlier = finished_samples(log_dir, unfinished, settings, retry_errors)
        if earlier.log:
            log.info("going on with %s: %d of %d samples have ended", earlier.names, len(earlier.samples), count)
        with _kept_inside(log_dir):
            found = _run(planned, agent, log_dir, display, unfinished, {"settings": settings}, earlier.log)
        grades = grades_of(found)
        if len(grades) != count:
            reason = found.error.message if found.error else found.status
            raise EvaluationFailed(f"{len(grades)} of {count} samples ended ({reason}); see {found.location}")
        yield Evaluation(grades, Path(found.location), spent=unfinished.spent if agent.price else None)
        earlier.remove(found)


def evaluate(
    cases: Sequence[Case], agent: Agent, log_dir: Path, display: Display = "none", retry_errors: bool = False
) -> Evaluation:
    """As `evaluating`, and finished when it returns."""
    with evaluating(cases, agent, log_dir, display, retry_errors) as evaluation:
        return evaluation


def _run(
    planned: Sequence[Plan],
    agent: Agent,
    log_dir: Path,
    display: Display,
    unfinished: Unfinished,
    noted: Mapping[str, JSON],
    earlier: EvalLog | None,
) -> EvalLog:
    """The log with all samples, those of `earlier` among them."""
    model, purse = _model(agent.model), Purse(agent.max_dollars, unfinished.spent)
    task = build_task(planned, agent.budget, purse, unfinished.paid)
    price = agent.price
    with known_to_inspect(model, price):
        (found,) = inspect_ai.eval(
            PreviousTask(earlier.eval.task_id, task, {}, model, None, None, earlier, None) if earlier else task,
            model=model,
            epochs=agent.repeats,
            metadata={**noted, "evaluation": unfinished.number, "price": asdict(price) if price else None},
            log_dir=str(log_dir),
            log_buffer=1,
            display=display,
            token_limit=agent.tokens,
            fail_on_error=False,
            score_display=False,
            log_realtime=False,
            ctl_server=False,
            acp_server=False,
            **{"max_retries": MAX_RETRIES, **agent.generation},  # type: ignore[arg-type]  # Inspect checks them
        )
    return found


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
