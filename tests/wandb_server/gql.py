"""A GraphQL executor without a schema: a field is an attribute of an object, or a method of its arguments.

A field that no object has becomes null and is noted in `unknown`, so a client that asks for something new is
noticed at once.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from graphql import parse
from graphql.language import ast

_MISSING = object()


class GraphQLError(Exception):
    """Answered to the client as an entry of `errors`."""


class Node:
    """A GraphQL object of a type, which may implement an interface; `fields` become attributes."""

    typename = ""
    interface = ""

    def __init__(self, typename: str = "", /, **fields: object):
        self.typename = typename or self.typename
        self.__dict__.update(fields)


def connection(nodes: Iterable[object]) -> Node:
    """A list as Relay pages: always one page, whatever was asked for."""
    edges = [Node(node=node, cursor=str(number)) for number, node in enumerate(nodes)]
    page = Node("PageInfo", endCursor=str(len(edges) - 1) if edges else None, hasNextPage=False)
    return Node(totalCount=len(edges), pageInfo=page, edges=edges)


class Executor:
    """Runs documents against two root objects."""

    def __init__(self, query: Node, mutation: Node):
        self.roots = {"query": query, "mutation": mutation}
        self.unknown: set[str] = set()

    def execute(self, source: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The response's body. The document holds one operation; its name is part of what `unknown` notes."""
        document = parse(source, no_location=True)
        definitions = document.definitions
        fragments = {each.name.value: each for each in definitions if isinstance(each, ast.FragmentDefinitionNode)}
        operation = next(each for each in definitions if isinstance(each, ast.OperationDefinitionNode))
        values = {
            each.variable.name.value: _value(each.default_value, {})
            for each in operation.variable_definitions or ()
            if each.default_value is not None
        }
        walk = _Walk({**values, **variables}, fragments, self.unknown)
        name = operation.name.value if operation.name else "anonymous"
        try:
            return {"data": walk.select(self.roots[operation.operation.value], operation.selection_set, name)}
        except GraphQLError as error:
            return {"data": None, "errors": [{"message": str(error), "path": [name]}]}


class _Walk:
    def __init__(self, values: Mapping[str, Any], fragments: Mapping[str, Any], unknown: set[str]):
        self.values, self.fragments, self.unknown = values, fragments, unknown

    def select(self, found: Any, selection_set: Any, path: str) -> Any:
        """`found` cut down to what was selected; lists and null go through."""
        if found is None or selection_set is None:
            return found
        if isinstance(found, list | tuple):
            return [self.select(each, selection_set, path) for each in found]
        answer: dict[str, Any] = {}
        for selection in filter(self._wanted, selection_set.selections):
            if isinstance(selection, ast.FieldNode):
                name = selection.name.value
                value = self._field(found, selection, f"{path}.{name}")
                key = selection.alias.value if selection.alias else name
                _merge(answer, {key: self.select(value, selection.selection_set, f"{path}.{name}")})
                continue
            spread = isinstance(selection, ast.FragmentSpreadNode)
            fragment = self.fragments[selection.name.value] if spread else selection
            condition = fragment.type_condition
            if condition is None or condition.name.value in (found.typename, found.interface) or not found.typename:
                _merge(answer, self.select(found, fragment.selection_set, path))
        return answer

    def _field(self, found: Any, selection: ast.FieldNode, path: str) -> Any:
        if selection.name.value == "__typename":
            return found.typename
        value = getattr(found, selection.name.value, _MISSING)
        if value is _MISSING:
            self.unknown.add(path)
            return None
        return value(**self._arguments(selection)) if callable(value) else value

    def _wanted(self, selection: Any) -> bool:
        """What the directives @include and @skip say."""
        conditions = {each.name.value: self._arguments(each)["if"] for each in selection.directives or ()}
        return conditions.get("include", True) and not conditions.get("skip", False)

    def _arguments(self, node: Any) -> dict[str, Any]:
        return {each.name.value: _value(each.value, self.values) for each in node.arguments or ()}


def _value(node: Any, values: Mapping[str, Any]) -> Any:
    match node:
        case ast.VariableNode():
            return values.get(node.name.value)
        case ast.ListValueNode():
            return [_value(each, values) for each in node.values]
        case ast.ObjectValueNode():
            return {each.name.value: _value(each.value, values) for each in node.fields}
        case ast.NullValueNode():
            return None
        case ast.IntValueNode():
            return int(node.value)
        case ast.FloatValueNode():
            return float(node.value)
    return node.value  # text, an enum, true or false


def _merge(into: dict[str, Any], more: Mapping[str, Any]) -> None:
    for key, value in more.items():
        if isinstance(value, dict) and isinstance(into.get(key), dict):
            _merge(into[key], value)
        else:
            into[key] = value
