"""Evaluations that were cut off go on where they were.

An evaluation has a place on disk from its first call until whoever wanted it has it: a small file, named after all that
its samples depend on, which says which logs are its own and what each call cost. The process at work holds an flock on
it, which the kernel gives back when the process dies, however it dies; who finds such a file without a holder goes on.
Inspect writes a log anew whenever a sample ends, and replaces the one before as a whole. What it offers to go on with a
log runs samples again that ended in an error; here these have an outcome like any other, and stay unless it is asked
for.
"""

import fcntl
import hashlib
import json
import logging
import os
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4
from zipfile import BadZipFile

import inspect_ai
from inspect_ai.log import EvalLog, EvalSample, read_eval_log
from zstandard import ZstdError

from diffing.agents.agent import Agent
from diffing.agents.progress import Outcome
from diffing.agents.rows import grades_of, outcome_of
from diffing.agents.task import Plan, told
from diffing.errors import DiffingError
from diffing.specs import JSON

log = logging.getLogger(__name__)

SENDING = {
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "batch", "cache", "cache_prompt",
}  # fmt: skip
"""Settings of generation that say how requests are sent, and not what comes of them."""
CANCELLED = ("CancelledError(", "Cancelled(")
"""How the error of a sample begins that was under way when its run was stopped."""
UNREADABLE = (
    OSError, ValueError, LookupError, TypeError, EOFError, NotImplementedError, BadZipFile, ZstdError, struct.error,
    zlib.error,
)  # fmt: skip
"""What reading a damaged log raises."""


class AlreadyRunning(DiffingError):
    """Another process is at the same evaluation."""


def settings_of(planned: Sequence[Plan], agent: Agent) -> str:
    """A digest of all that samples depend on. The cap of the evaluation is not among it: it says how many may run."""
    sent = {name: value for name, value in agent.generation.items() if name not in SENDING}
    about: JSON = {
        "inspect": inspect_ai.__version__,
        "agent": [agent.model, agent.turns, agent.tokens, agent.seconds, agent.dollars, agent.repeats, sent],
        "prices": dict(agent.prices or {}),
        "samples": [
            {
                "evidence": plan.case.evidence.digest(),
                "truth": plan.case.truth.as_json(),
                "labels": dict(plan.case.labels),
                "source": plan.case.source,
                "access": plan.access.value,
                "interactions": plan.interactions,
                "told": list(told(plan, agent.turns)),
            }
            for plan in planned
        ],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class Unfinished:
    """The place of an evaluation that is not finished."""

    path: Path
    number: str
    """Logs of this evaluation have it in their metadata."""
    spent: float
    """Dollars paid so far."""

    def paid(self, dollars: float) -> None:
        """Notes a call before anything else is done with its answer."""
        self.spent += dollars
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"{dollars!r}\n")

    def take_up(self, number: str, log: EvalLog | None) -> None:
        """Becomes the evaluation that `log` finished, with what its samples cost."""
        known = grades_of(log)["dollars"].dropna() if log and log.samples else []
        self.number, self.spent = number, float(sum(known))
        self.path.write_text(f"{self.number}\n{self.spent!r}\n", "utf-8")


@contextmanager
def claimed(folder: Path, settings: str) -> Iterator[Unfinished]:
    """The place of the evaluation with these settings, which is gone once the block ends without an error. Raises
    AlreadyRunning."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{settings}.txt"
    handle = _locked(path)
    try:
        yield _read(path)
        path.unlink()
    finally:
        os.close(handle)


@dataclass(frozen=True)
class Earlier:
    """What need not run again."""

    samples: Sequence[EvalSample]
    logs: Mapping[Path, EvalLog]
    """Where it is from."""

    @property
    def log(self) -> EvalLog | None:
        """The last of `logs` with all samples of them; None if there are none."""
        last = list(self.logs.values())[-1:]
        return last[0].model_copy(update={"samples": list(self.samples)}) if self.samples else None

    @property
    def names(self) -> str:
        return ", ".join(path.name for path in self.logs)

    def remove(self, final: EvalLog) -> None:
        """Removes logs that hold nothing which `final` does not."""
        kept = {sample.uuid for sample in final.samples or ()}
        for path, found in self.logs.items():
            if {sample.uuid for sample in found.samples or ()} <= kept:
                path.unlink(missing_ok=True)


def finished_samples(log_dir: Path, unfinished: Unfinished, settings: str, retry_errors: bool) -> Earlier:
    """The samples of this evaluation that have ended, if it was cut off; else, with `retry_errors`, those of the last
    one with the same settings, which is taken up again.

    What the cap left out is not among them, nor, with `retry_errors`, what ended in an error.
    """
    files = sorted(log_dir.glob("*.eval"), key=lambda path: path.stat().st_mtime_ns)
    headers = {path: header for path in files if (header := _readable(path, header_only=True))}
    alike = [header for header in headers.values() if _noted(header, "settings") == settings]
    if retry_errors and alike and not any(_noted(header, "evaluation") == unfinished.number for header in alike):
        unfinished.take_up(str(_noted(alike[-1], "evaluation")), _readable(Path(alike[-1].location)))
    own = [path for path, header in headers.items() if _noted(header, "evaluation") == unfinished.number]
    logs = {path: found for path in own if (found := _readable(path))}
    again = {Outcome.NOT_RUN, Outcome.ERROR} if retry_errors else {Outcome.NOT_RUN}
    samples = {
        (sample.id, sample.epoch): _settled(sample)
        for found in logs.values()
        for sample in found.samples or ()
        if outcome_of(sample)[0] not in again and not _was_cut_off(sample)
    }
    return Earlier(list(samples.values()), logs)


def _noted(header: EvalLog, name: str) -> object:
    return (header.eval.metadata or {}).get(name)


def _was_cut_off(sample: EvalSample) -> bool:
    return sample.error is not None and sample.error.message.startswith(CANCELLED)


def _settled(sample: EvalSample) -> EvalSample:
    """Inspect runs a sample again that has an error: here it is an outcome. Its traceback stays among the events."""
    if sample.error is None:
        return sample
    ended: Mapping[str, object] = {"Progress:outcome": Outcome.ERROR.value, "Progress:detail": sample.error.message}
    return sample.model_copy(update={"error": None, "store": {**sample.store, **ended}})


def _readable(path: Path, header_only: bool = False) -> EvalLog | None:
    try:
        return read_eval_log(str(path), header_only=header_only)
    except UNREADABLE as error:
        log.warning("%s cannot be read, and is left where it is: %s", path, error)
        return None


def _locked(path: Path) -> int:
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its last holder may have removed it between our opening and locking it.
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError as error:
            os.close(handle)
            raise AlreadyRunning(
                f"another process is at this very evaluation ({path}): wait for it, or change a setting, such as "
                "agent.repeats"
            ) from error
        except OSError:
            return handle  # a file system without locks: two processes may pay for the same, and disturb no log
        os.close(handle)


def _read(path: Path) -> Unfinished:
    """A line that a dying process tore is dropped; a file without a whole first line is a new one."""
    text = path.read_text("utf-8")
    whole = text[: text.rfind("\n") + 1]
    os.truncate(path, len(whole.encode()))
    if not whole:
        path.write_text(whole := f"{uuid4().hex}\n", "utf-8")
    number, *costs = whole.splitlines()
    return Unfinished(path, number, float(sum(map(float, costs))))
