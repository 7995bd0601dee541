"""The budgets of a sample, watched so that its last turn begins while there is still room for one."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from inspect_ai.model import ChatMessage
from inspect_ai.util import Limit, sample_limits

from diffing.agents.spending import Meter, Tariff

ROOM = 2
"""So many more turns as costly as the last must fit into a budget; else the next one is the last."""


@dataclass(frozen=True)
class Budget:
    """What a sample may use, interactions and tokens apart."""

    turns: int
    seconds: int | float | None = None
    tariff: Tariff = field(default_factory=Tariff)


@dataclass
class Pace:
    """One sample's."""

    budget: Budget
    clock: Limit
    meter: Meter
    taken: int = 0
    _used: dict[str, float] = field(default_factory=dict)

    def last_because(self, messages: Sequence[ChatMessage], interactions_spent: bool) -> str:
        """The budget for which the turn that begins must be the last; empty if there is none."""
        self.taken += 1
        short = self._short(messages)
        if self.taken == self.budget.turns:
            return "turns"
        return "interactions" if interactions_spent else short

    def said(self, forced: str) -> str:
        return f"{self.budget.turns} turns" if forced == "turns" else f"budget of {forced}"

    def _short(self, messages: Sequence[ChatMessage]) -> str:
        found = ""
        watched: dict[str, Limit] = {"seconds": self.clock, "tokens": sample_limits().token}
        for name, limit in watched.items():
            used = limit.usage - self._used.get(name, 0.0)
            self._used[name] = limit.usage
            if self.taken > 1 and limit.remaining is not None and limit.remaining < ROOM * used:
                found = name
        if self.meter.left < self.meter.plans(messages) + ROOM * (self.meter.last + self.meter.step):
            found = "dollars"
        return found
