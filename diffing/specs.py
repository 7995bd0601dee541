"""Frozen values that say what is compared, on what text: what configs hold and what artifacts record.

A spec is hashable and JSON-able, and its `digest` covers every field. What a local path holds enters through
`revision`, which `diffing.models.sources.pin` fills in with a hash of the content, so that two different adapters at
one path are two specs.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal, TypeAlias

from diffing.errors import InvalidSetting

JSON: TypeAlias = None | bool | int | float | str | Sequence[object] | Mapping[str, object]
"""One level deep on purpose: a recursive alias cannot be checked at run time across modules."""


class Spec:
    """What all specs share: a JSON form and a digest of it."""

    def as_json(self) -> dict[str, JSON]:
        return asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 over the kind of spec and every field."""
        text = json.dumps([type(self).__name__, self.as_json()], sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ModelSpec(Spec):
    """A causal language model and how to load it."""

    name: str
    """Short name, as in `model=...`."""
    id: str
    """Hub id or local folder."""
    revision: str | None = None
    """Hub commit, or `sha256:...` of local weights once pinned."""
    subfolder: str = ""
    tokenizer_id: str | None = None
    """Where the tokenizer lives, if not with the weights."""
    dtype: str = "float32"
    """Compute dtype of the weights; reductions are float32 or wider regardless."""
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    bundled: str | None = None
    """`package/file.gguf`: a copy that an installed Python package carries, used when the hub id is not cached."""


@dataclass(frozen=True)
class VariantSpec(Spec):
    """The finetuned side, relative to its base."""

    kind: Literal["lora", "full", "steering_vector", "identical"]
    id: str = ""
    """Hub id, local path or `package://module/path`; empty for `identical`."""
    revision: str | None = None
    subfolder: str = ""
    layer: int | None = None
    """`steering_vector`: the block whose output is steered."""
    strength: float = 1.0
    """`steering_vector`: multiplies the stored vector."""

    def __post_init__(self) -> None:
        if self.kind not in ("lora", "full", "steering_vector", "identical"):
            raise InvalidSetting(f"variant kind '{self.kind}'; expected lora, full, steering_vector or identical")
        if (self.kind == "identical") == bool(self.id):
            raise InvalidSetting(f"a {self.kind} variant {'takes no' if self.id else 'needs an'} id (got '{self.id}')")
        if (self.kind == "steering_vector") != (self.layer is not None):
            raise InvalidSetting("layer is required by steering_vector variants, and by no other kind")


@dataclass(frozen=True)
class PairSpec(Spec):
    """A base model and its finetune: the thing that is diffed."""

    base: ModelSpec
    finetuned: VariantSpec
    organism: str
    variant: str = "default"


@dataclass(frozen=True)
class CorpusSpec(Spec):
    """A stream of documents. `format: text` yields strings, `format: chat` yields message lists."""

    name: str
    """Short name, used in artifact names, columns and tables."""
    source: Literal["hub", "file", "embedded"]
    id: str
    """Hub dataset id, path of a .jsonl/.parquet/.txt file, or the name of an embedded corpus."""
    format: Literal["text", "chat"] = "text"
    column: str = "text"
    subset: str | None = None
    split: str = "train"
    revision: str | None = None
    streaming: bool = False
    max_documents: int | None = None
    shuffle_seed: int | None = 42
    """Order of documents; None keeps the stored order. Streamed datasets are never shuffled."""


@dataclass(frozen=True)
class Site(Spec):
    """Where activations are read: the residual stream at the output of one decoder block."""

    layer: int


def layer_at(depth: float | int, n_layers: int) -> int:
    """Absolute layer of a depth: an int is absolute, a float in [0, 1] is `floor(depth * (n_layers - 1))`."""
    if isinstance(depth, bool) or not isinstance(depth, int | float):
        raise InvalidSetting(f"layer {depth!r}: expected an int (absolute) or a float in [0, 1] (share of the depth)")
    if isinstance(depth, int):
        if not 0 <= depth < n_layers:
            raise InvalidSetting(f"layer {depth} is out of range: the model has layers 0 to {n_layers - 1}")
        return depth
    if not 0.0 <= depth <= 1.0:
        raise InvalidSetting(f"relative layer {depth} is out of range: expected 0.0 to 1.0 (an int is absolute)")
    return int(depth * (n_layers - 1))


def artifact_name(kind: str, what: str, pair: PairSpec) -> str:
    """`{kind}-{what}-{model}-{organism}-{variant}`; `what` is the method, or the corpus of an activation cache."""
    parts = (kind, what, pair.base.name, pair.organism, pair.variant)
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", part) for part in parts)
