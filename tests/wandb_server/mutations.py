"""What the client may change: runs, artifact versions and aliases, which run used what."""

import json
from typing import Any

from tests.wandb_server.gql import GraphQLError, Node, connection
from tests.wandb_server.queries import ArtifactView, ProjectView, RunView, View
from tests.wandb_server.reports import ReportMutations
from tests.wandb_server.state import Artifact, Collection, Run
from tests.wandb_server.sweeps import SweepMutations

Input = dict[str, Any]


class Mutation(SweepMutations, ReportMutations, View):
    typename = "Mutation"

    def upsertModel(self, input: Input) -> Node:
        fresh = input["name"] not in self.store.projects
        self.store.add_project(input["name"])
        project = self.see(ProjectView, input["name"])
        return Node(project=project, model=project, inserted=fresh)

    def upsertBucket(self, input: Input) -> Node:
        """Starts a run, or changes it."""
        name = input.get("name") or input["id"]
        run = self.store.runs.get(name)
        fresh = run is None
        if run is None:
            project = input.get("modelName") or "uncategorized"
            self.store.add_project(project)
            run = self.store.runs[name] = Run(project, name, id=name)
        run.job = input.get("jobType") or run.job
        run.notes = input.get("notes") or run.notes
        run.sweep = input.get("sweep") or run.sweep
        run.config = json.loads(input["config"]) if input.get("config") else run.config
        run.summary = json.loads(input["summaryMetrics"]) if input.get("summaryMetrics") else run.summary
        return Node(bucket=self.see(RunView, run), inserted=fresh)

    def createRunFiles(self, input: Input) -> Node:
        run = input["runName"]
        files = [Node(name=name, uploadUrl=self._upload_url("run", run, name)) for name in input["files"]]
        return Node(runID=run, uploadHeaders=[], files=files)

    def createArtifact(self, input: Input) -> Node:
        """Begins a version, or finds the one that has the same digest and moves the aliases to it."""
        project, name, type = input["projectName"], input["artifactCollectionName"], input["artifactTypeName"]
        new = Collection(self.store.next_id("collection"), project, name, type)
        collection = self.store.collections.setdefault((project, name), new)
        aliases = [each["alias"] for each in input.get("aliases") or []]
        found = next((each for each in reversed(collection.members) if each.digest == input["digest"]), None)
        if found is not None:
            collection.aliases.update(dict.fromkeys(aliases, found.version))
        else:
            id = self.store.next_id("artifact")
            metadata, run = input.get("metadata"), input["runName"]
            found = Artifact(id, project, name, type, input["digest"], metadata, aliases, run)
            self.store.artifacts[id] = found
        self.store.runs[input["runName"]].logged.append(found.id)
        return Node(artifact=self.see(ArtifactView, found))

    def createArtifactManifest(self, input: Input) -> Node:
        artifact = self._artifact(input["artifactID"])
        if input["type"] != "FULL":
            raise GraphQLError(f"manifest type {input['type']} is not served here")
        artifact.manifest_id = self.store.next_id("manifest")
        file = Node(id=artifact.manifest_id, uploadUrl=self._upload_url("manifest", artifact.id), uploadHeaders=[])
        return Node(artifactManifest=Node(id=artifact.manifest_id, file=file))

    def createArtifactFiles(self, input: Input) -> Node:
        """An upload address for each file; none for bytes that are here already."""
        files = []
        for each in input["artifactFiles"]:
            known = each["md5"] in self.store.bodies
            url = None if known else self._upload_url("body", each["artifactID"], each["md5"])
            artifact = Node(id=each["artifactID"])
            path = each["name"]
            files.append(
                Node(
                    "File",
                    storagePath=path,
                    uploadUrl=url,
                    uploadHeaders=[],
                    uploadMultipartUrls=None,
                    artifact=artifact,
                )
            )
        return Node(files=connection(files))

    def commitArtifact(self, input: Input) -> Node:
        artifact = self._artifact(input["artifactID"])
        try:
            self.store.commit(artifact)
        except ValueError as error:
            raise GraphQLError(str(error)) from error
        return Node(artifact=self.see(ArtifactView, artifact))

    def useArtifact(self, input: Input) -> Node:
        artifact = self._artifact(input["artifactID"])
        used = self.store.runs[input["runName"]].used
        if artifact.id not in used:
            used.append(artifact.id)
        return Node(artifact=self.see(ArtifactView, artifact))

    def addAliases(self, input: Input) -> Node:
        artifact = self._artifact(input["artifactID"])
        for each in input["aliases"]:
            collection = self.store.collections[each["projectName"], each["artifactCollectionName"]]
            collection.aliases[each["alias"]] = collection.members.index(artifact)
        return Node(success=True)

    def deleteAliases(self, input: Input) -> Node:
        for each in input["aliases"]:
            self.store.collections[each["projectName"], each["artifactCollectionName"]].aliases.pop(each["alias"], None)
        return Node(success=True)

    def updateArtifact(self, input: Input) -> Node:
        artifact = self._artifact(input["artifactID"])
        artifact.metadata = input.get("metadata") or artifact.metadata
        return Node(artifact=self.see(ArtifactView, artifact))

    def _artifact(self, id: str) -> Artifact:
        if id not in self.store.artifacts:
            raise GraphQLError(f"artifact {id} not found")
        return self.store.artifacts[id]

    def _upload_url(self, form: str, owner: str, name: str = "") -> str:
        return f"{self.base_url}/upload/{self.store.expect_upload(form, owner, name)}"
