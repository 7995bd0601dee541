"""A judge decides about texts where no rule can: a language model behind one small interface.

What a judge does not answer is `Unanswered`, with the reason: callers count it, and never score it as 0. One question
that fails does not lose the others. Texts that a judge is shown are JSON strings, so that none of them can end a line
or a quotation; replies are read from the last line that gives a verdict, since a judge may weigh several before it.
"""

import asyncio
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from diffing.errors import InvalidSetting, MissingInput

if TYPE_CHECKING:
    from inspect_ai.model import Model, ModelOutput, ModelUsage

log = logging.getLogger(__name__)

REJECTED = (401, 403, 404)
"""HTTP statuses of a service that will answer no question: a bad key, a model that it does not have."""


class Reply(str):
    """The text of a reply, and what it took: the tokens that the service counted, and the seconds of its call."""

    usage: "ModelUsage | None"
    seconds: float | None

    def __new__(cls, text: str, usage: "ModelUsage | None" = None, seconds: float | None = None) -> "Reply":
        reply = super().__new__(cls, text)
        reply.usage, reply.seconds = usage, seconds
        return reply


@dataclass(frozen=True)
class Unanswered:
    """A question without an answer; a refusal and a reply that was cut off took something too."""

    reason: str
    usage: "ModelUsage | None" = field(default=None, compare=False)
    seconds: float | None = field(default=None, compare=False)


Read = TypeVar("Read")


@runtime_checkable
class Judge(Protocol):
    """Whoever answers questions, whatever is behind it."""

    @property
    def name(self) -> str:
        """As it stands in reports."""
        ...

    def ask(
        self,
        questions: Sequence[str],
        max_tokens: int = 2000,
        on_answer: Callable[[int], object] = lambda answers: None,
    ) -> list[str | Unanswered]:
        """One reply per question, in the same order. `on_answer` is told how many more have come, answered or not."""
        ...


@dataclass(frozen=True)
class LLMJudge:
    """A language model as judge, through Inspect AI.

    Rate limits, server errors and dropped connections are tried again by the service's client (twice, as it does) and
    then by Inspect, with growing pauses; what still fails is unanswered. So is a refusal, and a reply that was cut off.
    """

    name: str
    """As Inspect AI names it: `anthropic/...`, `openai/...`, `openai-api/<service>/...`."""
    connections: int = 10
    """Questions asked at once."""
    retries: int = 4
    """Further rounds of the client's own attempts."""
    temperature: float | None = 0.0
    """None for models that take none."""
    cache: bool = False
    """Take replies to questions asked before from Inspect's cache, which it keeps in the user's cache folder or in
    INSPECT_CACHE_DIR. What such a reply took is what it took when it was asked."""

    def __post_init__(self) -> None:
        if self.connections < 1 or self.retries < 0:
            raise InvalidSetting(f"{self}: expected 1 or more connections and 0 or more retries")

    def ask(
        self,
        questions: Sequence[str],
        max_tokens: int = 2000,
        on_answer: Callable[[int], object] = lambda answers: None,
    ) -> list[str | Unanswered]:
        """As `Judge`; not inside a running event loop. Raises MissingInput for a model that cannot be asked at all: no
        key, a wrong key, an unknown provider or model."""
        if not questions:
            return []
        # A model of its own per call: the clients of Inspect's shared ones belong to the event loop that made them.
        model = self._model(max_tokens)
        replies = asyncio.run(self._ask(model, questions, on_answer))
        unanswered = Counter(reply.reason for reply in replies if isinstance(reply, Unanswered))
        if unanswered:
            reasons = "; ".join(f"{count} {reason}" for reason, count in unanswered.most_common(5))
            log.warning("%s: %d of %d questions unanswered: %s", self.name, unanswered.total(), len(replies), reasons)
        return replies

    def _model(self, max_tokens: int) -> "Model":
        # There is no public name for the error that a missing key or provider package raises.
        from inspect_ai._util.error import PrerequisiteError
        from inspect_ai.model import GenerateConfig, get_model

        config = GenerateConfig(
            max_retries=self.retries,
            max_connections=self.connections,
            max_tokens=max_tokens,
            temperature=self.temperature,
        )
        try:
            return get_model(self.name, config=config, memoize=False)
        except (PrerequisiteError, ValueError) as error:
            raise MissingInput(
                f"judge '{self.name}' cannot be asked: {error}\njudge=null decides by rule, and needs no key"
            ) from error

    async def _ask(
        self, model: "Model", questions: Sequence[str], on_answer: Callable[[int], object]
    ) -> list[str | Unanswered]:
        # Inspect's own limit waits on locks that outlive an event loop; with this one they are never waited for.
        gate = asyncio.Semaphore(self.connections)

        async def generate(question: str) -> "ModelOutput":
            async with gate:
                return await model.generate(question, cache=self.cache)

        async with model:
            tasks = [asyncio.create_task(generate(question)) for question in questions]
            waiting = set(tasks)
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                on_answer(len(done))
        replies = [_reply(task) for task in tasks]
        causes = [_cause(task) for task in tasks]
        if all(getattr(cause, "status_code", None) in REJECTED for cause in causes):
            raise MissingInput(
                f"judge '{self.name}' cannot be asked: {causes[0]}\njudge=null decides by rule, and needs no key"
            ) from causes[0]
        return replies


def _cause(task: "asyncio.Task[ModelOutput]") -> BaseException | None:
    """Why a question failed: below what tenacity raises when it gives up."""
    from tenacity import RetryError

    error = task.exception()
    return error.last_attempt.exception() if isinstance(error, RetryError) else error


def _reply(task: "asyncio.Task[ModelOutput]") -> str | Unanswered:
    if (error := _cause(task)) is not None:
        status = getattr(error, "status_code", None)  # clients differ in the names of their errors, not in this
        return Unanswered(f"failed ({type(error).__name__ if status is None else f'HTTP {status}'})")
    output = task.result()
    took = output.usage, output.time
    if output.empty:
        return Unanswered("empty", *took)
    if output.stop_reason == "content_filter":
        return Unanswered("refused", *took)
    if output.stop_reason in ("max_tokens", "model_length"):
        return Unanswered("cut off", *took)
    return Reply(output.completion, *took) if output.completion.strip() else Unanswered("empty", *took)


def ask_twice(
    judge: Judge,
    questions: Sequence[str],
    read: Callable[[int, str], Read | None],
    reminder: str,
    max_tokens: int = 2000,
) -> list[Read | Unanswered]:
    """What `read` makes of each reply, given the number of its question.

    Where that is None the question is asked once more, with the reminder after it.
    """
    found: list[Read | Unanswered | None] = [None] * len(questions)
    for addition in ("", reminder):
        asked = [number for number, verdict in enumerate(found) if verdict is None]
        replies = judge.ask([questions[number] + addition for number in asked], max_tokens) if asked else []
        for number, reply in zip(asked, replies, strict=True):
            found[number] = reply if isinstance(reply, Unanswered) else read(number, reply)
    return [Unanswered("no verdict") if verdict is None else verdict for verdict in found]


def last_verdict(reply: str) -> str | None:
    """What follows `VERDICT:` in the last line that has it, without the marks of emphasis around it."""
    lines = re.findall(r"^[\s*_`#>]*VERDICT[\s*_`]*:(.*)$", reply, re.IGNORECASE | re.MULTILINE)
    return lines[-1].strip(" \t\r*_`.") if lines else None


def quoted(text: str) -> str:
    """A JSON string on one line; characters that are not printable are escaped."""
    return json.dumps(text, ensure_ascii=not text.isprintable())
