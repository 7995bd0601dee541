"""W&B Reports: the server keeps a spec and never looks inside."""

import base64
from dataclasses import dataclass
from typing import Any

from tests.wandb_server.gql import Node


@dataclass
class SavedReport:
    id: str  # base64, since it is part of the report's address
    project: str
    entity: str
    title: str
    description: str
    spec: str  # JSON


class ReportMutations:
    """What `Report.save` asks for."""

    store: Any

    def upsertView(self, input: dict[str, Any]) -> Node:
        id = input.get("id") or base64.b64encode(self.store.next_id("View").encode()).decode()
        fresh = id not in self.store.reports
        found = SavedReport(
            id, input["projectName"], input["entityName"], input["displayName"], input["description"], input["spec"]
        )
        self.store.reports[id] = found
        project = Node("Project", id=f"project:{found.project}", name=found.project, entityName=found.entity)
        view = Node("View", id=id, type=input["type"], name=input["name"], displayName=found.title, spec=found.spec,
                    description=found.description, project=project, updatedAt="2024-01-01T00:00:00Z")  # fmt: skip
        return Node(view=view, inserted=fresh)
