"""Caps in dollars that hold before a call is made, not after.

What a call will cost is unknown, but the most that it can cost is not: the service counted the conversation so far, a
text of n bytes has at most n tokens, and an answer is at most as long as it may be. A call that could pass the cap of
its sample is not made. A sample sets aside, when it begins, all that it may spend of the cap of the evaluation, so that
no two samples count on the same dollar; what it did not need goes back when it ends.
"""

import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from inspect_ai.model import ChatMessage, ModelOutput, ModelUsage

from diffing.agents.prices import Price
from diffing.errors import DiffingError

OVERHEAD = 1000
"""Tokens that a service adds to a conversation with tools, at most."""
ROUNDING = 1e-9
"""Dollars that sums of shares may be off by."""


class TooDear(DiffingError):
    """A call that could pass the cap of its sample."""


@dataclass(frozen=True)
class Tariff:
    """What calls of a model cost, and what a sample may spend on them."""

    price: Price | None = None
    max_tokens: int = 0
    """Of an answer."""
    limit: int | float | None = None
    """Dollars of a sample."""


@dataclass
class Meter:
    """What one sample has spent, and the most that its next call can cost."""

    tariff: Tariff
    counted: Callable[[], float]
    """Inspect's own count of the dollars of the sample."""
    note: Callable[[float], object] = lambda dollars: None
    """Told the cost of each call."""
    last: float = 0.0
    """Cost of the last call."""
    step: float = 0.0
    """The most that what came after one answer has added to `needed`."""
    needed: float = 0.0
    """The most that the call under way can cost."""
    _uncounted: float = 0.0
    """The most that calls can have cost whose usage nobody told."""
    _noted: float = 0.0
    _tokens: int = OVERHEAD
    _read: int = 0

    @property
    def used(self) -> float:
        return self.counted() + self._uncounted

    @property
    def left(self) -> float:
        return float("inf") if self.tariff.limit is None else self.tariff.limit - self.used

    def offers(self, texts: Sequence[str]) -> None:
        """Counts descriptions of tools."""
        self._tokens += sum(len(text.encode()) for text in texts)

    def plans(self, messages: Sequence[ChatMessage]) -> float:
        """The most that a call with these messages can cost; 0 without a price."""
        if self.tariff.price is None:
            return 0.0
        new = sum(len(message.model_dump_json().encode()) for message in messages[self._read :])
        self.needed = self.tariff.price.most(self._tokens + new, self.tariff.max_tokens)
        self.step = max(self.step, self.tariff.price.most(new, 0)) if self._read else 0.0
        return self.needed

    def check(self) -> None:
        """Raises TooDear where the call that was planned could pass the cap."""
        if self.needed > self.left:
            raise TooDear(f"the next call can cost ${self.needed:.4f}, and ${self.left:.4f} are left")

    def paid(self, output: ModelOutput, messages: Sequence[ChatMessage]) -> None:
        """Counts a call; `messages` end with its answer. One whose usage nobody told has cost the most it could."""
        if self.tariff.price is None:
            return
        if output.usage:
            self._tokens, self._read = all_tokens(output.usage), len(messages)
        else:
            self._uncounted += self.needed
        self.last = self.used - self._noted
        self.settle()

    def settle(self) -> None:
        """Tells of what was not told before: also of a call that ended in an error."""
        if self.used > self._noted:
            self.note(self.used - self._noted)
            self._noted = self.used


@dataclass
class Purse:
    """The dollars of an evaluation; for one event loop."""

    cap: int | float | None = None
    spent: float = 0.0
    """By samples that have ended, and before."""
    _open: list[Meter] = field(default_factory=list)
    _waiting: list[anyio.Event] = field(default_factory=list)

    @asynccontextmanager
    async def opened(self, meter: Meter) -> AsyncIterator[bool]:
        """Whether the sample of `meter` may run within the block; waits for samples that may leave enough for it."""
        admitted = await self._admitted(meter)
        try:
            yield admitted
        finally:
            if admitted:
                meter.settle()
                self._open = [other for other in self._open if other is not meter]
                self.spent += meter.used
            for event in self._waiting:
                event.set()
            self._waiting.clear()

    async def _admitted(self, meter: Meter) -> bool:
        while self.cap is not None and self.spent + _shares(*self._open, meter) > self.cap + ROUNDING:
            if not _shares(*self._open):
                return False
            self._waiting.append(anyio.Event())
            await self._waiting[-1].wait()
        self._open.append(meter)
        return True


def _shares(*meters: Meter) -> float:
    """Dollars set aside; none by samples that cost nothing."""
    return math.fsum(meter.tariff.limit or 0.0 for meter in meters)


def all_tokens(usage: ModelUsage) -> int:
    """Input, however cached, and output."""
    return (
        usage.input_tokens
        + (usage.input_tokens_cache_write or 0)
        + (usage.input_tokens_cache_read or 0)
        + usage.output_tokens
    )
