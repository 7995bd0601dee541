"""Sweeps as the client sees them: the server picks the parameters, and agents ask for work by heartbeat.

Only the grid search is served, and no early stopping.
"""

import itertools
import json
import secrets
from dataclasses import dataclass, field
from typing import Any

import yaml

from tests.wandb_server.gql import GraphQLError, Node, connection

Input = dict[str, Any]


@dataclass
class Sweep:
    name: str  # the id that people type
    project: str
    config: str  # YAML
    issued: int = 0
    agents: list[str] = field(default_factory=list)  # hosts

    def next(self) -> dict[str, Any] | None:
        """Parameters of the next run, or None when all have been handed out."""
        parameters = yaml.safe_load(self.config)["parameters"]
        axes = [each["values"] if "values" in each else [each["value"]] for each in parameters.values()]
        point = next(itertools.islice(itertools.product(*axes), self.issued, None), None)
        self.issued += point is not None
        return None if point is None else dict(zip(parameters, point, strict=True))


class SweepFields:
    """What a project answers about its sweeps."""

    store: Any

    def sweep(self, sweepName: str) -> Node | None:
        found = self.store.sweeps.get(sweepName)
        if found is None:
            return None
        method = yaml.safe_load(found.config)["method"]
        return Node("Sweep", **vars(found), id=f"sweep:{found.name}", state="RUNNING", method=method, bestLoss=None,
                    runs=lambda **page: connection([]))  # fmt: skip


class SweepMutations:
    """What an agent and `wandb sweep` ask to be done."""

    store: Any

    def upsertSweep(self, input: Input) -> Node:
        name, project = secrets.token_hex(4), input["projectName"]
        self.store.add_project(project)
        self.store.sweeps[name] = Sweep(name, project, input["config"])
        entity = Node("Entity", name=input.get("entityName") or "local")
        where = Node("Project", id=f"project:{project}", name=project, entity=entity)
        return Node(sweep=Node("Sweep", id=f"sweep:{name}", name=name, project=where), configValidationWarnings=[])

    def createAgent(self, input: Input) -> Node:
        name = input["sweep"].rpartition("/")[2]
        if name not in self.store.sweeps:
            raise GraphQLError(f"could not find sweep {name}")
        agents = self.store.sweeps[name].agents
        agents.append(input["host"])
        return Node(agent=Node(id=f"{name}/{len(agents)}"))

    def agentHeartbeat(self, input: Input) -> Node:
        """The next run for an agent that has none, or that it may go."""
        commands: list[dict[str, Any]] = []
        sweep = self.store.sweeps[input["id"].partition("/")[0]]
        if not json.loads(input.get("runState") or "{}"):
            parameters = sweep.next()
            if parameters is None:
                commands = [{"type": "exit", "exit_code": 0}]
            else:
                args = {name: {"value": value} for name, value in parameters.items()}
                program = yaml.safe_load(sweep.config)["program"]
                commands = [{"type": "run", "run_id": secrets.token_hex(4), "program": program, "args": args}]
        return Node(agent=Node(id=input["id"]), commands=json.dumps(commands))
