"""The Mongo-like filters by which the client asks for runs."""

from collections.abc import Callable, Mapping
from typing import Any

from tests.wandb_server.gql import GraphQLError
from tests.wandb_server.state import Run

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$in": lambda value, wanted: value in wanted,
    "$ne": lambda value, wanted: value != wanted,
    "$gte": lambda value, wanted: value is not None and value >= wanted,
    "$lte": lambda value, wanted: value is not None and value <= wanted,
}
NAMES = {"jobType": "job", "displayName": "name", "display_name": "name"}


def matches(run: Run, query: Mapping[str, Any]) -> bool:
    """Whether the run meets every condition; an operator not known here is an error."""
    return all(_matches(run, key, wanted) for key, wanted in query.items())


def _matches(run: Run, key: str, wanted: Any) -> bool:
    if key in ("$and", "$or"):
        return (all if key == "$and" else any)(matches(run, each) for each in wanted)
    section, _, rest = key.partition(".")
    if section == "config":
        value = run.config.get(rest.removesuffix(".value"), {}).get("value")
    elif section == "summary_metrics":
        value = run.summary.get(rest)
    else:
        value = getattr(run, NAMES.get(key, key), None)
    if isinstance(wanted, Mapping):
        if unknown := wanted.keys() - OPERATORS.keys():
            raise GraphQLError(f"filter operator not served here: {sorted(unknown)}")
        return all(OPERATORS[name](value, each) for name, each in wanted.items())
    return value == wanted
