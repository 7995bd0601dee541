"""Tools that methods declare (`diffing.live_tools`), made into tools of agents."""

from collections.abc import Sequence
from functools import wraps

from inspect_ai.tool import Tool, ToolDef, ToolError

from diffing.agents.directions import READ, STEER
from diffing.agents.interactions import Interactions
from diffing.agents.live import ASK, Batching
from diffing.agents.tools import SUBMIT
from diffing.errors import DiffingError, InvalidSetting
from diffing.live_tools import LiveTool

TAKEN = frozenset(("overview", "table_rows", "tensor_summary", ASK, STEER, READ, SUBMIT))
"""Names of the tools that agents have anyway."""


def check_names(declared: Sequence[LiveTool]) -> None:
    """Raises InvalidSetting for a name that another tool has."""
    names = [each.name for each in declared]
    if clashing := sorted({name for name in names if name in TAKEN or names.count(name) > 1}):
        raise InvalidSetting(f"names of live tools {clashing} are taken; expected others than {sorted(TAKEN)}")


def declared_tools(declared: Sequence[LiveTool], queue: Batching, paying: Interactions) -> list[Tool]:
    """Each with its budget and its turn at the models."""
    return [_tool(each, queue, paying) for each in declared]


def _tool(declared: LiveTool, queue: Batching, paying: Interactions) -> Tool:
    @wraps(declared.run)
    async def execute(**arguments: object) -> str:  # Inspect fills in those that are left out
        try:
            cost = declared.cost(**arguments)
        except DiffingError as error:
            raise ToolError(paying.shown(str(error))) from error
        if cost < 1:
            raise InvalidSetting(f"live tool '{declared.name}' costs {cost}; expected 1 or more")
        result = await paying.paid(
            cost, "as the tool says", "read", lambda: queue.alone(lambda: declared.run(**arguments))
        )
        return paying.receipt({"result": paying.shown_json(result)}, cost)

    return ToolDef(execute, name=declared.name).as_tool()
