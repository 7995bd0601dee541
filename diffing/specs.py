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
from typing import Any, Literal, TypeAlias

from diffing.axes import Side
from diffing.errors import InvalidSetting

JSON: TypeAlias = None | bool | int | float | str | Sequence[object] | Mapping[str, object]
"""One level deep on purpose: a recursive alias cannot be checked at run time across modules."""


class Spec:
    """What all specs share: a JSON form and a digest of it."""

    def as_json(self) -> dict[str, JSON]:
        return asdict(self)  # type: ignore[call-overload]  # every subclass is a dataclass

    def identity(self) -> Mapping[str, object]:
        """What the digest covers: every field, unless a spec says otherwise."""
        return self.as_json()

    @property
    def digest(self) -> str:
        """16 hex digits of SHA-256 over the kind of spec and its identity."""
        text = json.dumps([type(self).__name__, self.identity()], sort_keys=True, ensure_ascii=False)
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
    source: Literal["hub", "file", "embedded", "python"]
    id: str
    """Hub dataset id, path of a .jsonl/.parquet/.txt file, name of an embedded corpus, or `package.module:function`
    that gives the documents."""
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


@dataclass(frozen=True)
class TokensSpec(Spec):
    """Which tokens of a corpus are read: the same for both sides of a pair, and for every finetune of one base."""

    corpus: CorpusSpec
    tokenizer: str
    """Hash of the tokenizer with its special tokens and chat template."""
    context: int = 1024
    """Tokens read of each document."""
    max_samples: int = 200_000
    """Documents read."""
    max_tokens: int = 50_000_000
    """Tokens read; the document at the limit is cut there."""

    def __post_init__(self) -> None:
        for name in ("context", "max_samples", "max_tokens"):
            if getattr(self, name) < 1:
                raise InvalidSetting(f"{name}={getattr(self, name)}; expected 1 or more")

    def identity(self) -> Mapping[str, object]:
        return _content(self.as_json())


@dataclass(frozen=True)
class CacheSpec(Spec):
    """Residual streams of one side of a pair, stored for some tokens. Whatever changes a stored byte is in it.

    The base side has no `finetuned`: its store is the same for every finetune of that base. Short names are left out of
    the digest, and so are the places of what is pinned by its content: moving or renaming changes no activation.
    """

    tokens: TokensSpec
    base: ModelSpec
    finetuned: VariantSpec | None
    layers: Sequence[int]
    """Absolute, ascending."""
    dtype: Literal["bfloat16", "float32", "float16"] = "bfloat16"
    """Of the stored values."""
    skip_first: int = 1
    """Leading positions of each document that are not kept; position 0 is an attention sink in most models."""
    drop_bos: bool = True
    """Leave out a beginning-of-sequence token, wherever `skip_first` would keep it."""

    def __post_init__(self) -> None:
        if self.dtype not in ("bfloat16", "float32", "float16"):
            raise InvalidSetting(f"dtype '{self.dtype}'; expected bfloat16, float32 or float16")
        if self.skip_first < 0:
            raise InvalidSetting(f"skip_first={self.skip_first}; expected 0 or more")
        if not self.layers:
            raise InvalidSetting("no layers to store: give at least one")
        object.__setattr__(self, "layers", tuple(sorted(set(self.layers))))

    @property
    def side(self) -> Side:
        return Side.BASE if self.finetuned is None else Side.FINETUNED

    def identity(self) -> Mapping[str, object]:
        return _content(self.as_json())

    @classmethod
    def from_json(cls, stored: Mapping) -> "CacheSpec":
        """Inverse of `as_json`. Raises TypeError or KeyError for what another version wrote."""
        tokens, finetuned = dict(stored["tokens"]), stored["finetuned"]
        tokens["corpus"] = CorpusSpec(**tokens["corpus"])
        return cls(
            **{
                **stored,
                "tokens": TokensSpec(**tokens),
                "base": ModelSpec(**stored["base"]),
                "finetuned": None if finetuned is None else VariantSpec(**finetuned),
            }
        )


def _content(value: Any) -> Any:
    """JSON without short names, and without the places of what a content hash identifies."""
    if not isinstance(value, Mapping):
        return value
    by_content = str(value.get("revision")).startswith("sha256:")
    left_out = {"name", "bundled"} | ({"id"} if by_content else set())
    return {key: _content(item) for key, item in value.items() if key not in left_out}


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
