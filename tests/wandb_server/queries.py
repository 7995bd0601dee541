"""What the client may ask for. A class is a GraphQL type; attributes and methods carry the wire's names."""

import json
import math
from collections.abc import Iterable
from typing import Any

from tests.wandb_server.filters import matches
from tests.wandb_server.gql import Node, connection
from tests.wandb_server.state import CREATED, ENTITY, Artifact, Collection, Run, State, md5_of
from tests.wandb_server.sweeps import SweepFields

Page = Any  # paging arguments are taken and ignored: there is one page


class View(Node):
    """What the wire calls `row`; a field that the view does not have is the row's own of that name."""

    createdAt = updatedAt = CREATED

    def __init__(self, store: State, base_url: str, row: Any):
        self.store, self.base_url, self.row = store, base_url, row

    def __getattr__(self, name: str) -> Any:
        if name == "row" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.row, name)

    def see(self, view: type["View"], row: Any) -> Any:
        return None if row is None else view(self.store, self.base_url, row)


class UserView(View):
    typename = "User"
    id, admin, flags, deletedAt = "user:1", False, "{}", None
    name = username = entity = ENTITY
    email = f"{ENTITY}@localhost"
    teams = apiKeys = connection([])


class EntityView(View):
    typename = "Entity"
    id, name, isTeam, organization = f"entity:{ENTITY}", ENTITY, False, None

    def project(self, name: str) -> Any:
        return self.see(ProjectView, name if name in self.store.projects else None)


class ProjectView(SweepFields, View):
    """`row` is the project's name."""

    typename = "Project"
    entityName, readOnly, isBenchmark = ENTITY, False, False
    id = property(lambda self: f"project:{self.row}")
    name = property(lambda self: self.row)
    internalId = property(lambda self: str(self.store.projects[self.row]))
    entity = property(lambda self: self.see(EntityView, ENTITY))

    def artifact(self, name: str) -> Any:
        found = self.artifactCollectionMembership(name)
        return found and found.artifact

    def artifactCollectionMembership(self, name: str) -> Any:
        name, _, tag = name.partition(":")
        collection = self.store.collections.get((self.row, name))
        return self.see(MembershipView, collection and collection.resolve(tag or "latest"))

    def artifactCollection(self, name: str) -> Any:
        return self.see(CollectionView, self.store.collections.get((self.row, name)))

    def artifactTypes(self, after: Page = None, first: Page = None) -> Node:
        return connection(self.artifactType(each) for each in sorted({each.type for each in self._collections()}))

    def artifactType(self, name: str) -> Node:
        mine = {each.name: self.see(CollectionView, each) for each in self._collections() if each.type == name}
        return type_node(
            name,
            artifactCollections=lambda **page: connection(mine.values()),
            artifactCollection=lambda name: mine.get(name),
        )

    def run(self, name: str) -> Any:
        found = self.store.runs.get(name)
        return self.see(RunView, found if found is not None and found.project == self.row else None)

    def bucket(self, name: str, missingOk: bool | None = None) -> Any:
        return self.run(name)

    def runs(self, filters: str | None = None, order: str | None = None, after: Page = None, first: Page = None) -> Any:
        chosen = self._runs(filters)
        return connection(self.see(RunView, each) for each in (chosen[::-1] if (order or "")[:1] == "-" else chosen))

    def runCount(self, filters: str | None = None) -> int:
        return len(self._runs(filters))

    def _runs(self, filters: str | None) -> list[Run]:
        mine = [each for each in self.store.runs.values() if each.project == self.row]
        return [each for each in mine if matches(each, json.loads(filters or "{}"))]

    def _collections(self) -> list[Collection]:
        return [each for (project, _), each in self.store.collections.items() if project == self.row]


class RunView(View):
    typename = "Run"
    row: Run
    description, readOnly, stopped, commit, host, group = "", False, False, None, None, None
    tags: tuple[str, ...] = ()
    displayName = property(lambda self: self.row.name)
    sweepName = property(lambda self: self.row.sweep)
    jobType = property(lambda self: self.row.job)
    config = property(lambda self: json.dumps(self.row.config))
    summaryMetrics = property(lambda self: json.dumps(self.row.summary))
    systemMetrics = "{}"
    historyLineCount = property(lambda self: len(self.row.history))
    historyTail = property(lambda self: json.dumps(self.row.history[-1:]))
    eventsTail, eventsLineCount, logLineCount = "[]", 0, 0
    fileCount = property(lambda self: len(self.row.files))
    heartbeatAt = CREATED
    project = property(lambda self: self.see(ProjectView, self.row.project))
    projectId = property(lambda self: self.project.internalId)
    user = property(lambda self: self.see(UserView, ENTITY))

    def wandbConfig(self, keys: list[str] | None = None) -> str:
        return json.dumps(self.row.config.get("_wandb", {}).get("value", {}))

    @property
    def historyKeys(self) -> dict[str, Any]:
        rows = self.row.rows()
        counts = {name: sum(name in row for row in rows) for row in rows for name in row}
        keys = {name: {"typeCounts": [{"type": "number", "count": count}]} for name, count in counts.items()}
        return {"sets": [], "keys": keys, "lastStep": rows[-1]["_step"] if rows else -1}

    def parquetHistory(self, liveKeys: Page = None) -> Node:
        rows = [{name: _json(value) for name, value in row.items()} for row in self.row.rows()]
        return Node(parquetUrls=[], liveData=rows)

    def files(self, names: list[str] | None = None, **page: Page) -> Node:
        chosen = [(name, body) for name, body in self.row.files.items() if not names or name in names]
        return connection(self._file(name, body) for name, body in chosen)

    def inputArtifacts(self, **page: Page) -> Node:
        return self._artifacts(self.row.used)

    def outputArtifacts(self, **page: Page) -> Node:
        return self._artifacts(self.row.logged)

    def _artifacts(self, ids: list[str]) -> Node:
        found = [self.store.artifacts[id] for id in dict.fromkeys(ids)]
        return connection(self.see(ArtifactView, each) for each in found if each.version is not None)

    def _file(self, name: str, body: bytes) -> Node:
        url = f"{self.base_url}/file/{self.row.name}/{name}"
        return Node(
            "File",
            id=f"file:{self.row.name}/{name}",
            name=name,
            displayName=name,
            url=url,
            directUrl=url,
            sizeBytes=len(body),
            md5=md5_of(body),
            mimetype="application/octet-stream",
            updatedAt=CREATED,
        )


class CollectionView(View):
    typename, interface = "ArtifactSequence", "ArtifactCollection"
    state, description, digestAlgorithm = "READY", None, "MANIFEST_MD5"
    tags = connection([])
    project = property(lambda self: self.see(ProjectView, self.row.project))
    type = property(lambda self: type_node(self.row.type))
    defaultArtifactType = type
    latestArtifact = property(lambda self: self.see(ArtifactView, self.row.resolve("latest")))

    def aliases(self, after: Page = None, first: Page = None) -> Node:
        return connection(alias_nodes(self, self.row.aliases))

    def artifacts(self, **page: Page) -> Node:
        """Newest first, each edge with its version."""
        found = connection(self.see(ArtifactView, each) for each in self.row.members[::-1])
        for edge in found.edges:  # type: ignore[attr-defined]
            edge.version = f"v{edge.node.row.version}"
        return found

    def artifactMembership(self, aliasName: str) -> Any:
        return self.see(MembershipView, self.row.resolve(aliasName))


class ArtifactView(View):
    typename = "Artifact"
    row: Artifact
    description, historyStep, digestAlgorithm, commitHash = None, None, "MANIFEST_MD5", "0" * 20
    ttlDurationSeconds, ttlIsInherited = -2, True  # none set
    tags: tuple[Node, ...] = ()
    versionIndex = property(lambda self: self.row.version)
    size = property(lambda self: sum(entry["size"] for entry in self.row.contents().values()))
    fileCount = property(lambda self: len(self.row.contents()))
    artifactType = property(lambda self: type_node(self.row.type))
    createdBy = property(lambda self: self.see(RunView, self.store.runs.get(self.row.run)))

    @property
    def usedBy(self) -> Node:
        return connection(self.see(RunView, each) for each in self.store.runs.values() if self.row.id in each.used)

    @property
    def artifactMemberships(self) -> Node:
        return connection([self.see(MembershipView, self.row)])

    @property
    def artifactSequence(self) -> CollectionView:
        return self.see(CollectionView, self.store.collections[self.row.project, self.row.collection])

    @property
    def aliases(self) -> list[Node]:
        sequence = self.artifactSequence
        return alias_nodes(sequence, (alias for alias, at in sequence.row.aliases.items() if at == self.row.version))

    @property
    def currentManifest(self) -> Node:
        file = Node("File", directUrl=f"{self.base_url}/manifest/{self.row.id}")
        return Node("ArtifactManifest", id=self.row.manifest_id, file=file)


class MembershipView(View):
    """An artifact's place in its collection; `row` is the artifact."""

    typename = "ArtifactCollectionMembership"
    id = property(lambda self: f"membership:{self.row.id}")
    artifact = property(lambda self: self.see(ArtifactView, self.row))
    versionIndex = property(lambda self: self.row.version)
    artifactCollection = property(lambda self: self.artifact.artifactSequence)
    aliases = property(lambda self: self.artifact.aliases)

    def files(self, after: Page = None, first: Page = None) -> Node:
        entries = self.row.contents().items()
        urls = {path: f"{self.base_url}/body/{entry['digest'].replace('/', '_')}" for path, entry in entries}
        return connection(Node("File", name=path, directUrl=url) for path, url in urls.items())


class Query(View):
    """The root; it has no row."""

    typename = "Query"
    viewer = property(lambda self: self.see(UserView, ENTITY))
    serverInfo = Node("ServerInfo", features=[Node("ServerFeature", name="ARTIFACT_TAGS", isEnabled=True)])

    def project(self, name: str, entityName: str | None = None) -> Any:
        return self.see(ProjectView, name if name in self.store.projects else None)

    model = project

    def models(self, entityName: str | None = None, **page: Page) -> Node:
        return connection(self.see(ProjectView, each) for each in self.store.projects)

    def entity(self, name: str | None = None) -> EntityView:
        return self.see(EntityView, ENTITY)

    def artifact(self, id: str) -> Any:
        return self.see(ArtifactView, self.store.artifacts.get(id))

    def artifactCollection(self, id: str) -> Any:
        return self.see(CollectionView, next((c for c in self.store.collections.values() if c.id == id), None))


def _json(value: object) -> object:
    """JSON has no number for NaN and the infinities; W&B writes them as text."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def type_node(name: str, **fields: object) -> Node:
    return Node("ArtifactType", id=f"type:{name}", name=name, createdAt=CREATED, description=None, **fields)


def alias_nodes(collection: CollectionView, aliases: Iterable[str]) -> list[Node]:
    where = f"alias:{collection.row.id}"
    return [
        Node("ArtifactAlias", id=f"{where}:{alias}", alias=alias, artifactCollection=collection) for alias in aliases
    ]
