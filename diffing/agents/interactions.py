"""What a sample may still ask of live models, and how what they say is shown.

What a call costs is checked before any work, and a call that cannot be paid for in full does none.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import numpy as np
from inspect_ai.tool import ToolError
from inspect_ai.util import store_as

from diffing.agents.progress import Progress
from diffing.blinding import plain
from diffing.errors import DiffingError
from diffing.evidence import Evidence
from diffing.specs import JSON

MOST_PER_CALL = 64
MAX_CHARS = 30_000
"""Of all that a call shows; what is longer is cut, and says so."""
SHORTEST_CUT = 300

T = TypeVar("T")


@dataclass(frozen=True)
class Interactions:
    """A sample's budget, and the evidence whose names no answer may hold: a model may say what it is called."""

    budget: int
    evidence: Evidence

    @property
    def left(self) -> int:
        return self.budget - store_as(Progress).interactions

    async def paid(
        self,
        cost: int,
        costs: str,
        done: str,
        work: Callable[[], Awaitable[T]],
        check: Callable[[], Awaitable[None]] | None = None,
    ) -> T:
        """The result of `work`, once it is known to be affordable and, if `check` can tell, possible; what fails is not
        paid for.

        `costs` says how the cost came about, `done` what was not done if it is refused. Raises ToolError for that, and
        for a DiffingError of either.
        """
        progress = store_as(Progress)
        try:
            self._afford(cost, costs, done)
            if check is not None:
                await check()
            self._afford(cost, costs, done)  # another call of the same message may have paid meanwhile
            progress.interactions += cost
            try:
                return await work()
            except DiffingError:
                progress.interactions -= cost
                raise
        except DiffingError as error:
            raise ToolError(self.evidence.withheld(f"{error}; nothing was {done}", progress.guessed)) from error

    def _afford(self, cost: int, costs: str, done: str) -> None:
        if cost > min(self.left, MOST_PER_CALL):
            raise ToolError(
                f"this call costs {cost} interactions ({costs}), but {self.left} of {self.budget} are left, and one "
                f"call may cost {MOST_PER_CALL}; nothing was {done}"
            )

    def shown(self, text: str, most: int = MAX_CHARS) -> str:
        """A text of a model without names, and no longer than `most`, but for a note of how much was cut."""
        guessed, kept = store_as(Progress).guessed, max(most, SHORTEST_CUT)
        text = self.evidence.withheld(text, guessed)
        if len(text) <= kept:
            return text
        head = self.evidence.withheld(text[:kept], guessed)  # a cut may make a name
        return f"{head} [... {len(text) - kept} characters more]"

    def shown_json(self, value: JSON) -> JSON:
        """Likewise for all texts of a value, keys too; as one text if it is too long."""
        guessed = store_as(Progress).guessed
        unnamed = _unnamed(value, lambda text: self.evidence.withheld(text, guessed))
        text = json.dumps(unnamed, ensure_ascii=False)
        return unnamed if len(text) <= MAX_CHARS else self.shown(text)

    def receipt(self, result: Mapping[str, JSON], cost: int) -> str:
        """What a tool answers: its result, what that cost, and what is left."""
        return json.dumps({**result, "cost": cost, "interactions_left": self.left}, ensure_ascii=False)


def _unnamed(value: object, withheld: Callable[[str], str]) -> JSON:
    if isinstance(value, Mapping):
        return {withheld(str(key)): _unnamed(item, withheld) for key, item in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [_unnamed(item, withheld) for item in value]
    cell = plain(value)
    return withheld(cell) if isinstance(cell, str) else cast("None | bool | int | float", cell)
