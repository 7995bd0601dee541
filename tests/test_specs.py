import hashlib
import json
import math
import re
from dataclasses import dataclass, fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffing.errors import InvalidSetting
from diffing.specs import (
    CacheSpec,
    CorpusSpec,
    ModelSpec,
    PairSpec,
    Site,
    Spec,
    TokensSpec,
    VariantSpec,
    artifact_name,
    layer_at,
)

MODEL = ModelSpec("tiny", "org/tiny")
LORA = VariantSpec("lora", "org/adapter")
STEERED = VariantSpec("steering_vector", "org/vector", layer=3)
PAIR = PairSpec(MODEL, LORA, "cake_bake")
CORPUS = CorpusSpec("fineweb", "hub", "org/fineweb")

TOKENS = TokensSpec(CorpusSpec("web", "hub", "org/web", revision="c0ffee"), tokenizer="abc")
CACHE = CacheSpec(
    TOKENS, ModelSpec("tiny", "org/tiny", revision="f00d"), VariantSpec("lora", "org/adapter", revision="beef"), (1, 3)
)
KINDS = [kind for kind in Spec.__subclasses__() if kind.__module__ == Spec.__module__]
CHANGES: list[tuple[Spec, dict[str, object]]] = [
    (
        MODEL,
        {
            "name": "small",
            "id": "org/small",
            "revision": "0a1b",
            "subfolder": "weights",
            "tokenizer_id": "org/tokenizer",
            "dtype": "bfloat16",
            "attn_implementation": "eager",
            "trust_remote_code": True,
            "bundled": "package/model.gguf",
        },
    ),
    (LORA, {"kind": "full", "id": "org/other", "revision": "0a1b", "subfolder": "adapter"}),
    (STEERED, {"layer": 0, "strength": 2.0}),
    (
        PAIR,
        {
            "base": replace(MODEL, revision="0a1b"),
            "finetuned": replace(LORA, revision="0a1b"),
            "organism": "caps",
            "variant": "weak",
        },
    ),
    (
        CORPUS,
        {
            "name": "pile",
            "source": "file",
            "id": "pile.jsonl",
            "format": "chat",
            "column": "messages",
            "subset": "en",
            "split": "test",
            "revision": "0a1b",
            "streaming": True,
            "max_documents": 10,
            "shuffle_seed": None,
        },
    ),
    (Site(3), {"layer": 4}),
    (TOKENS, {"corpus": CORPUS, "tokenizer": "another", "context": 512, "max_samples": 7, "max_tokens": 7}),
    (
        CACHE,
        {
            "tokens": replace(TOKENS, context=512),
            "base": ModelSpec("tiny", "org/other"),
            "finetuned": None,
            "layers": (1,),
            "dtype": "float32",
            "skip_first": 0,
            "drop_bos": False,
        },
    ),
]
SINGLE = [(spec, name, value) for spec, changes in CHANGES for name, value in changes.items()]


def test_the_changes_below_cover_every_field_of_every_spec() -> None:
    changed = {(type(spec), name) for spec, name, _ in SINGLE}
    assert changed == {(kind, field.name) for kind in KINDS for field in fields(kind)}


@pytest.mark.parametrize(("spec", "name", "value"), SINGLE, ids=lambda value: str(value)[:20])
def test_every_field_changes_the_digest(spec: Spec, name: str, value: object) -> None:
    assert replace(spec, **{name: value}).digest != spec.digest  # type: ignore[type-var]


def test_all_of_these_specs_have_different_digests() -> None:
    every = [spec for spec, _ in CHANGES] + [replace(spec, **{name: value}) for spec, name, value in SINGLE]  # type: ignore[type-var]
    assert len({spec.digest for spec in every}) == len(every)
    assert len(set(every)) == len(every)


@pytest.mark.parametrize("spec", [spec for spec, _ in CHANGES], ids=lambda spec: type(spec).__name__)
def test_equal_specs_are_one_key_and_have_one_digest(spec: Spec) -> None:
    twin = replace(spec)  # type: ignore[type-var]
    assert twin is not spec
    assert {spec: "found"}[twin] == "found"
    assert twin.digest == spec.digest


@pytest.mark.parametrize("spec", [MODEL, LORA, STEERED, CORPUS, Site(3)], ids=lambda spec: type(spec).__name__)
def test_a_spec_survives_json(spec: Spec) -> None:
    assert type(spec)(**json.loads(json.dumps(spec.as_json()))) == spec


def test_the_digest_is_that_of_the_kind_and_the_fields_in_order_of_name() -> None:
    text = '["CorpusSpec", {"column": "text", "format": "text", "id": "ü", "max_documents": null, "name": "n", '
    text += (
        '"revision": null, "shuffle_seed": 42, "source": "file", "split": "train", "streaming": false, "subset": null}]'
    )
    assert CorpusSpec("n", "file", "ü").digest == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_specs_of_two_kinds_with_the_same_fields_differ() -> None:
    @dataclass(frozen=True)
    class Elsewhere(Spec):
        layer: int

    digests = {Elsewhere(3).digest, Site(3).digest}
    del Elsewhere
    assert len(digests) == 2


@given(st.integers(1, 200), st.floats(0.0, 1.0))
def test_a_relative_layer_is_the_floor_of_its_share_of_the_last_index(n_layers: int, depth: float) -> None:
    assert layer_at(depth, n_layers) == math.floor(depth * (n_layers - 1))
    assert 0 <= layer_at(depth, n_layers) < n_layers


@pytest.mark.parametrize(("depth", "layer"), [(0.5, 12), (0.0, 0), (1.0, 25), (0.99, 24), (0, 0), (1, 1), (25, 25)])
def test_an_int_is_absolute_and_a_float_is_relative(depth: float | int, layer: int) -> None:
    assert layer_at(depth, 26) == layer


@pytest.mark.parametrize("depth", [26, -1, 1.01, -0.5, float("nan"), float("inf"), True, False])
def test_a_layer_out_of_range_raises(depth: float | int) -> None:
    with pytest.raises(InvalidSetting, match="layer"):
        layer_at(depth, 26)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "lora"}, "needs an id"),
        ({"kind": "full", "id": ""}, "needs an id"),
        ({"kind": "identical", "id": "org/model"}, "takes no id"),
        ({"kind": "steering_vector", "id": "org/vector"}, "layer is required"),
        ({"kind": "lora", "id": "org/adapter", "layer": 0}, "layer is required"),
    ],
)
def test_a_variant_that_cannot_be_loaded_raises(fields: dict, message: str) -> None:
    with pytest.raises(InvalidSetting, match=message):
        VariantSpec(**fields)


def test_each_kind_of_variant_can_be_written_down() -> None:
    assert VariantSpec("identical").id == ""
    assert VariantSpec("steering_vector", "package://some.module/vector", layer=0).strength == 1.0
    assert {VariantSpec(kind, "org/model").kind for kind in ("lora", "full")} == {"lora", "full"}


def test_an_artifact_name_has_its_five_parts() -> None:
    assert artifact_name("report", "pca", PAIR) == "report-pca-tiny-cake_bake-default"


@given(st.text(), st.text(), st.text(min_size=1))
def test_an_artifact_name_is_safe_in_paths_and_addresses(what: str, model: str, organism: str) -> None:
    pair = replace(PAIR, base=replace(MODEL, name=model), organism=organism)
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", artifact_name("activations", what, pair))


def changed(spec: object, path: str, value: object) -> CacheSpec:
    """`spec` with the field at a dotted path replaced."""
    name, _, rest = path.partition(".")
    return replace(spec, **{name: changed(getattr(spec, name), rest, value) if rest else value})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("base.id", "org/other"), ("base.revision", "other"), ("base.subfolder", "part"), ("base.dtype", "bfloat16"),
        ("base.attn_implementation", "eager"), ("finetuned.id", "org/other"), ("finetuned.revision", "other"),
        ("finetuned.subfolder", "checkpoint-10"), ("finetuned", VariantSpec("full", "org/adapter", revision="beef")),
        ("tokens.tokenizer", "another template"), ("tokens.context", 512), ("tokens.corpus.id", "org/other"),
        ("tokens.corpus.subset", "de"), ("tokens.corpus.split", "validation"), ("tokens.corpus.column", "answer"),
        ("tokens.corpus.format", "chat"), ("tokens.corpus.revision", "other"), ("tokens.corpus.max_documents", 7),
        ("tokens.corpus.shuffle_seed", 43), ("tokens.corpus.streaming", True),
    ],
)  # fmt: skip
def test_what_changes_an_activation_deep_in_a_spec_changes_the_digest_of_its_cache(path: str, value: object) -> None:
    assert changed(CACHE, path, value).digest != CACHE.digest


@pytest.mark.parametrize("path", ["base.name", "tokens.corpus.name", "base.bundled"])
def test_a_short_name_changes_no_digest_of_a_cache(path: str) -> None:
    assert changed(CACHE, path, "another name").digest == CACHE.digest


def test_local_content_is_the_same_cache_wherever_it_lies() -> None:
    def at(place: str, content: str) -> CacheSpec:
        return replace(CACHE, base=ModelSpec("tiny", place, revision=content))

    assert at("/here/model", "sha256:1").digest == at("/there/copy", "sha256:1").digest
    assert at("/here/model", "sha256:1").digest != at("/here/model", "sha256:2").digest


def test_the_base_side_is_one_cache_for_all_finetunes() -> None:
    other = replace(CACHE, finetuned=VariantSpec("lora", "org/another"))
    assert other.digest != CACHE.digest
    assert replace(other, finetuned=None).digest == replace(CACHE, finetuned=None).digest
    assert (CACHE.side, replace(CACHE, finetuned=None).side) == ("finetuned", "base")


def test_a_cache_spec_survives_json() -> None:
    for spec in (CACHE, replace(CACHE, finetuned=None)):
        assert CacheSpec.from_json(json.loads(json.dumps(spec.as_json()))) == spec


@pytest.mark.parametrize(
    ("path", "value"),
    [("layers", ()), ("skip_first", -1), ("tokens.context", 0), ("tokens.max_tokens", 0)],
)
def test_settings_of_a_cache_out_of_range_raise(path: str, value: object) -> None:
    with pytest.raises(InvalidSetting):
        changed(CACHE, path, value)
