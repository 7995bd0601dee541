"""What W&B has of one run of a local store, found out anew each time."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from trackers.base import STEP, ArtifactRef, Kind
from trackers.errors import InvalidValue
from trackers.index import Index, Run
from trackers.local import LocalStore
from trackers.wandb_client import Remote, reference

There = Callable[[ArtifactRef], str | None]
"""What a version is called in W&B, where its number may be another; None where it is not."""


class RemoteRun:
    """The run as the server shows it now; every question is answered from that moment."""

    def __init__(self, remote: Remote, run: Run):
        self.run = run
        self._found = remote.run(run.project, run.id)

    def missing(self, store: LocalStore, there: There) -> list[str]:
        """What the server has not, in words; nothing if it has the whole run."""
        missing = []
        if self._found is None:
            missing.append("the run")
        elif dict(self._found.config) != dict(self.run.config):
            missing.append("config")
        if self._found is not None and not self._ended(self._found.state):
            missing.append(f"status {self.run.status}")
        if rows := len(store.index.rows(self.run.id)) - self.n_rows(store.index):
            missing.append(f"{rows} rows")
        missing += [f"{form} {name}" for form, name, _ in self.missing_media(store)]
        missing += [f"use of {ref}" for ref in self.missing_inputs(store.index, there)]
        again = self.missing_outputs(store.index, there)
        missing += [f"{ref} again" for ref in again if there(ref) or store.index.version(ref).run != self.run.id]
        return missing

    def n_rows(self, index: Index) -> int:
        """How many of the store's rows have arrived, from the first on. Raises InvalidValue if others are there."""
        mine = index.rows(self.run.id)
        if self._found is None or not mine:
            return 0
        theirs = [_scalars(row) for row in self._found.scan_history(use_cache=False) if STEP in row]
        arrived = min(len(mine), len(theirs))
        for number in range(arrived):
            if not _same(mine[number], theirs[number]):
                raise InvalidValue(
                    f"run {self.run.id} has other rows in W&B than here: row {number} is {theirs[number]} there and "
                    f"{mine[number]} here; delete the run there, and push again"
                )
        return arrived

    def missing_media(self, store: LocalStore) -> Iterator[tuple[str, str, str]]:
        """Form, name and SHA-256 of each table and figure that is not there, or not with all of its file."""
        files = {file.name: file.size for file in self._found.files()} if self._found else {}
        summary: Mapping[str, Any] = dict(self._found.summary) if self._found else {}
        for form in ("table", "figure"):
            for name, sha256 in store.index.media(self.run.id, form).items():
                shown = summary.get(name)
                complete = shown is not None and files.get(shown.get("path")) == shown.get("size")
                if not complete or summary.get(mark(form, name)) != sha256:
                    yield form, name, sha256

    def missing_inputs(self, index: Index, there: There) -> list[ArtifactRef]:
        used = {str(reference(each)) for each in self._found.used_artifacts()} if self._found else set()
        return [ref for ref in index.inputs(self.run.id) if there(ref) not in used]

    def missing_outputs(self, index: Index, there: There) -> list[ArtifactRef]:
        logged = self._found.logged_artifacts() if self._found else []
        ours = {str(reference(each)) for each in logged if each.type in list(Kind)}
        return [ref for ref in index.outputs(self.run.id) if there(ref) not in ours]

    def _ended(self, state: str) -> bool:
        if self.run.status == "running":  # so it was when it was sent, whatever became of it
            return True
        return (state == "finished") == (self.run.status == "finished")


def mark(form: str, name: str) -> str:
    """Where a run's summary says from which stored file a table or figure was made."""
    return f"pushed/{form}/{name}"


def _scalars(row: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name[:1] != "_" and value is not None}


def _same(mine: Mapping[str, float], theirs: Mapping[str, object]) -> bool:
    return mine.keys() == theirs.keys() and all(_equal(mine[name], theirs[name]) for name in mine)


def _equal(mine: float, theirs: object) -> bool:
    """W&B may give numbers that are not finite as text."""
    there = float(theirs)  # type: ignore[arg-type]
    return mine == there or (math.isnan(mine) and math.isnan(there))
