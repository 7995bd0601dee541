"""A local store from the command line, what is in it and its way to W&B and back: `python -m trackers --help`."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from trackers.base import ArtifactRef, parse_request
from trackers.errors import ArtifactNotFound, InvalidName, InvalidValue, TrackerError
from trackers.index import Version
from trackers.local import LocalStore

DEFAULT_ROOT = "outputs/store"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0, or 2 with a message on standard error."""
    parsed = _parser().parse_args(arguments)
    try:
        for line in parsed.command(parsed.store(parsed.root), parsed):
            print(line, flush=True)
    except TrackerError as error:
        print(f"trackers: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `python -m trackers ls | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument(
        "--root",
        type=Path,
        default=Path(os.environ.get("TRACKER_ROOT", DEFAULT_ROOT)),
        help=f"the store's folder (default: $TRACKER_ROOT, else {DEFAULT_ROOT})",
    )
    one = argparse.ArgumentParser(add_help=False, parents=[shared])
    one.add_argument(
        "ref",
        metavar="REF",
        help="[project/]name[:version-or-alias], for example demo/pca:v3; latest if not said",
    )
    parser = argparse.ArgumentParser(
        prog="python -m trackers", description="Look into a local artifact store; exchange it with W&B."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, command: Callable[..., Iterator[str]], parent: argparse.ArgumentParser, help: str):
        sub = commands.add_parser(name, parents=[parent], help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(command=command, store=LocalStore.existing)
        return sub

    add("ls", list_versions, shared, "list all versions, oldest first")
    add("show", show, one, "show one version: metadata, files, digest, run, what it was made from")
    get = add("get", get_files, one, "check a version's files and print their folder, or copy them")
    get.add_argument("--to", type=Path, metavar="DIR", help="copy the files here (a new or empty folder)")
    add("lineage", lineage, one, "draw what a version was made from, and what was made from it")
    sending = add("push", send, shared, "send to W&B what it has not of the store; again after a failure, it goes on")
    sending.add_argument("--project", help="runs of this project only (default: all)")
    sending.add_argument("--since", metavar="TIME", help="runs started since this date or UTC time, 2026-11-23T09:30")
    bring = add("pull", bring_back, one, "copy a version from W&B into the store, with what it was made from")
    bring.set_defaults(store=LocalStore)
    for each in (sending, bring):
        each.add_argument("--entity", help="the W&B user or team (default: the API key's own)")
    return parser


def list_versions(store: LocalStore, parsed: argparse.Namespace) -> Iterator[str]:
    rows = [("NAME", "VERSION", "ALIASES", "KIND", "SIZE", "CREATED", "RUN")]
    for version in store.index.versions():
        name, number = str(version.ref).split(":")
        aliases = ",".join(version.aliases) or "-"
        rows.append(
            (
                name,
                number,
                aliases,
                version.kind,
                _size(version.size),
                version.created,
                _run(store, version.run),
            )
        )
    return _aligned(rows)


def show(store: LocalStore, parsed: argparse.Namespace) -> Iterator[str]:
    version = _resolve(store, parsed.ref)
    files = store.index.files(version.ref)
    sources = store.index.sources(version.ref)
    yield from _aligned(
        [
            ("artifact", str(version.ref)),
            ("aliases", ", ".join(version.aliases) or "-"),
            ("kind", version.kind),
            ("created", version.created),
            ("size", f"{_size(version.size)} in {len(files)} files"),
            ("digest", f"{version.digest} (MD5, as in W&B)"),
            ("sha256", version.sha256),
            ("run", _run(store, version.run)),
            ("uses", ", ".join(map(str, sources)) or "-"),
        ]
    )
    yield "metadata"
    yield from ("  " + line for line in json.dumps(version.metadata, indent=2, sort_keys=True).splitlines())
    yield "files"
    yield from ("  " + line for line in _aligned([(file.path, _size(file.size), file.sha256[:16]) for file in files]))


def get_files(store: LocalStore, parsed: argparse.Namespace) -> Iterator[str]:
    version = _resolve(store, parsed.ref)
    folder = store.folder(version)
    if parsed.to is not None:
        if parsed.to.exists() and (not parsed.to.is_dir() or any(parsed.to.iterdir())):
            raise InvalidValue(f"--to takes a new or empty folder, and {parsed.to} is neither")
        for file in store.index.files(version.ref):
            target = parsed.to / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file.path, target)
        folder = parsed.to
    yield f"{version.ref} {folder}"


def lineage(store: LocalStore, parsed: argparse.Namespace) -> Iterator[str]:
    ref = _resolve(store, parsed.ref).ref
    yield str(ref)
    for title, related in (("made from", store.index.sources), ("used for", store.index.derived)):
        yield title
        yield from list(_tree(ref, related, "  ")) or ["  nothing"]
    users = ", ".join(_run(store, run) for run in store.index.users(ref))
    yield f"used in runs: {users or 'none'}"


def send(store: LocalStore, parsed: argparse.Namespace) -> Iterator[str]:
    from trackers.push import push

    sent = push(store, parsed.project, parsed.entity, parsed.since, say=_progress)
    yield f"sent {sent}; read back, all of it is there"


def bring_back(store: LocalStore, parsed: argparse.Namespace) -> Iterator[str]:
    from trackers.pull import pull

    for ref in pull(store, parse_request(parsed.ref), parsed.entity):
        yield str(ref)


def _tree(ref: ArtifactRef, related: Callable[[ArtifactRef], list[ArtifactRef]], indent: str) -> Iterator[str]:
    branches = related(ref)  # never a cycle: a version's sources are older than itself
    for number, branch in enumerate(branches, start=1):
        last = number == len(branches)
        yield f"{indent}{'`-- ' if last else '|-- '}{branch}"
        yield from _tree(branch, related, indent + ("    " if last else "|   "))


def _resolve(store: LocalStore, text: str) -> Version:
    """The version asked for; a name without its project must be in one project only."""
    request = parse_request(text)
    if request.project is not None:
        return store.index.resolve(request, request.project)
    everything = store.index.versions()
    projects = {version.ref.project for version in everything if version.ref.name == request.name}
    if not projects:
        names = {f"{version.ref.project}/{version.ref.name}" for version in everything}
        raise ArtifactNotFound(str(request), sorted(names))
    if len(projects) > 1:
        choices = ", ".join(f"{project}/{request}" for project in sorted(projects))
        raise InvalidName(f"{request.name!r} is in several projects; say which: {choices}")
    return store.index.resolve(request, projects.pop())


def _run(store: LocalStore, run: str) -> str:
    found = store.index.run(run)
    return f"{found.job} {found.id} ({found.status})"


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _size(size: int) -> str:
    value, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


if __name__ == "__main__":
    sys.exit(main())
