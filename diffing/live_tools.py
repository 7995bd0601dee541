"""Questions to live models that a method offers to agents, beside its report.

A method knows nothing of agents: it gives a function with a docstring and what a call of it costs. Whoever runs agents
makes a tool of that, with a budget, a turn at the models, and without the names that must not be told.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from diffing.errors import InvalidSetting
from diffing.specs import JSON


@dataclass(frozen=True)
class LiveTool:
    """One question. Its arguments are plain (texts, numbers, lists of them): an agent writes them itself, and never
    names anything of a report by them. A DiffingError of `run` or `cost` is told to the agent."""

    name: str
    run: Callable[..., JSON]
    """Does the work. What the agent reads of it are its annotations and its docstring, with an `Args:` section that
    describes every argument, and with what a call costs. Both name nothing of the pair."""
    cost: Callable[..., int]
    """Interactions that a call of `run` with these arguments costs, 1 or more: about as many as texts that a model
    would generate in that time. Checks the arguments, and does no work."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.name):
            raise InvalidSetting(f"live tool '{self.name}': expected lower_snake_case of at most 64 characters")
        if not (self.run.__doc__ or "").strip():
            raise InvalidSetting(f"live tool '{self.name}': its function needs a docstring, which is what agents read")
