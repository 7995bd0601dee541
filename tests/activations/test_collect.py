"""Stored rows against plain forwards of single documents, and who collects what."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from diffing.activations.collect import collect
from diffing.activations.hdf5 import CHUNK_ROWS, ShardReader
from diffing.activations.moments import Moments
from diffing.activations.store import ActivationCache, SideStore
from diffing.activations.streams import select
from diffing.axes import Side, Stream
from diffing.errors import EmptyCorpus, IncompatiblePair, InvalidSetting, NonFiniteActivations, SchemaMismatch
from diffing.models.pair import ModelPair
from diffing.models.sites import decoder_blocks
from diffing.models.sources import pin
from diffing.specs import CacheSpec, CorpusSpec, ModelSpec, TokensSpec, VariantSpec
from tests import tiny
from tests.activations.collecting import Collection, collection, contents, texts


class Counting(ModelPair):
    """A pair that says how often each side was used."""

    def __init__(self, pair: ModelPair):
        super().__init__(pair.spec, device="cpu")
        self.used = dict.fromkeys(Side, 0)

    @contextmanager
    def using(self, side: Side) -> Iterator[PreTrainedModel]:
        self.used[side] += 1
        with super().using(side) as model:
            yield model


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bits may depend on how a sum is split over threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def cache_of(made: Collection, root: Path) -> ActivationCache:
    return ActivationCache(*(made.folder(side, root) for side in Side))


@torch.no_grad()
def alone(pair: ModelPair, side: Side, ids: Tensor, layer: int) -> Tensor:
    """A document on its own, all hidden states, nothing shared with collecting."""
    with pair.using(side) as model:
        return model(ids[None].long(), output_hidden_states=True).hidden_states[layer + 1][0]


@pytest.mark.parametrize("kind", ["lora_pair", "full_pair"])
@pytest.mark.parametrize(
    ("skip_first", "drop_bos", "kept"),
    [(0, False, [3, 7, 1]), (0, True, [1, 6, 1]), (1, True, [1, 6, 0]), (5, True, [0, 2, 0])],
)
def test_rows_are_the_residual_streams_of_each_document_alone(
    kind: str, skip_first: int, drop_bos: bool, kept: list[int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    pair = request.getfixturevalue(kind)
    short = ["<s><s>B", "<s>ABCDEF", "C"]  # a token a letter
    made = collection(
        pair, short + texts(3), tmp_path, (0, 2), dtype="float32", skip_first=skip_first, drop_bos=drop_bos
    )
    assert made.tokens.lengths[:3].tolist() == [3, 7, 1]
    assert made(tmp_path, batch_tokens=200)
    cache = cache_of(made, tmp_path)
    ends = cache.base.document_rows()
    assert ends.diff()[:3].tolist() == kept
    assert cache.n_rows == int(ends[-1])
    for number in range(made.tokens.n_documents):
        ids, rows = made.tokens.document(number), slice(int(ends[number]), int(ends[number + 1]))
        assert cache.finetuned.document_tokens(number).tolist() == ids.tolist()
        for layer in (0, 2):
            for side, stored in zip(Side, cache.read(layer, rows.start, rows.stop), strict=True):
                expected = alone(pair, side, ids, layer)[len(ids) - len(stored) :]
                assert float((stored - expected).norm()) <= 1e-5 * float(expected.norm())


def test_both_sides_differ_where_the_adapter_acts_and_nowhere_if_there_is_none(
    lora_pair: ModelPair, identical_pair: ModelPair, tmp_path: Path
) -> None:
    for pair, equal in ((lora_pair, False), (identical_pair, True)):
        made = collection(pair, texts(1), tmp_path)
        assert made(tmp_path)
        base, finetuned = cache_of(made, tmp_path).read(1, 0, 50)
        assert torch.equal(base, finetuned) == equal


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_16_bit_store_holds_the_rounded_rows(lora_pair: ModelPair, tmp_path: Path, dtype: str) -> None:
    exact = collection(lora_pair, texts(2), tmp_path, dtype="float32")
    rounded = collection(lora_pair, texts(2), tmp_path, dtype=dtype)
    assert exact(tmp_path)
    assert rounded(tmp_path)
    for layer in (1, 2):
        wide, narrow = (cache_of(made, tmp_path).read(layer, 0, 100) for made in (exact, rounded))
        for side in range(2):
            assert torch.equal(wide[side].to(getattr(torch, dtype)), narrow[side])


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_moments_are_those_of_the_stored_values(lora_pair: ModelPair, tmp_path: Path, dtype: str) -> None:
    made = collection(lora_pair, texts(8), tmp_path, dtype=dtype)
    assert made(tmp_path)
    cache = cache_of(made, tmp_path)
    assert len(cache.base.shards) > 2
    for stream in Stream:
        rows = select(stream, *cache.read(2, 0, cache.n_rows)).double()
        found = cache.moments(stream, 2)
        assert found.count == len(rows)
        torch.testing.assert_close(found.mean, rows.mean(0), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.variance, rows.var(0, correction=0), rtol=1e-9, atol=1e-12)


def test_a_shard_holds_whole_documents_of_at_most_its_size(lora_pair: ModelPair, tmp_path: Path) -> None:
    made = collection(lora_pair, texts(8), tmp_path)
    assert made(tmp_path)
    headers = [ShardReader(path).header for path in sorted(made.folder(Side.BASE, tmp_path).glob("*.h5"))]
    assert all(header.n_rows <= CHUNK_ROWS for header in headers)
    assert [header.first_document for header in headers] == [
        sum(header.n_documents for header in headers[:index]) for index in range(len(headers))
    ]
    assert sum(header.n_rows for header in headers) == made.tokens.n_tokens - made.tokens.n_documents


def test_the_split_of_the_corpus_into_batches_changes_no_row_beyond_rounding(
    lora_pair: ModelPair, tmp_path: Path
) -> None:
    made = collection(lora_pair, texts(2), tmp_path, dtype="float32")
    for batch_tokens in (1, 10_000):
        assert made(tmp_path / str(batch_tokens), batch_tokens=batch_tokens)
    alone, together = (cache_of(made, tmp_path / name).read(2, 0, 200) for name in ("1", "10000"))
    for first, second in zip(alone, together, strict=True):
        assert float((first - second).norm()) <= 1e-5 * float(first.norm())


def test_progress_counts_every_token_of_the_part_whoever_reads_it(lora_pair: ModelPair, tmp_path: Path) -> None:
    made = collection(lora_pair, ["C", *texts(6)], tmp_path)
    for _ in range(2):  # the second time, nothing is left to do
        told: list[int] = []
        assert made(tmp_path, on_tokens=told.append)
        assert sum(told) == made.tokens.n_tokens
    halves: list[int] = []
    assert not made(tmp_path / "split", part=(0, 2), on_tokens=halves.append)
    assert 0 < sum(halves) < made.tokens.n_tokens
    assert made(tmp_path / "split", part=(1, 2), on_tokens=halves.append)
    assert sum(halves) == made.tokens.n_tokens


def written(folder: Path) -> dict[Path, tuple[int, int]]:
    """When the folder and what is in it were last written, and which files they are."""
    return {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in [folder, *folder.iterdir()]}


def test_a_second_organism_neither_runs_nor_writes_the_base(
    lora_pair: ModelPair, base_folder: Path, merged_folder: Path, tmp_path: Path
) -> None:
    full_pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", merged_folder)), device="cpu")
    first = collection(lora_pair, texts(4), tmp_path / "corpus")
    root, apart = tmp_path / "shared", tmp_path / "apart"
    assert first(root)
    base_store = first.folder(Side.BASE, root)
    before = written(base_store)
    counting = Counting(full_pair)
    second = first.of(counting)
    assert second.folder(Side.BASE, root) == base_store
    assert second(root)
    assert counting.used[Side.BASE] == 0
    assert counting.used[Side.FINETUNED] > 0
    assert written(base_store) == before
    assert second(apart)  # both sides at once give the same bytes
    assert contents(second.folder(Side.FINETUNED, root)) == contents(second.folder(Side.FINETUNED, apart))
    assert contents(base_store) == contents(second.folder(Side.BASE, apart))


def test_a_second_organism_goes_by_the_shards_of_the_base_whatever_size_it_asks_for(
    lora_pair: ModelPair, identical_pair: ModelPair, tmp_path: Path
) -> None:
    first = collection(lora_pair, texts(8), tmp_path / "corpus")
    second = first.of(identical_pair)
    assert first(tmp_path)
    assert second(tmp_path, shard_mib=64)
    stores = [SideStore(made.folder(Side.FINETUNED, tmp_path)) for made in (first, second)]
    assert len(stores[0].shards) > 1
    assert stores[1].row_starts == stores[0].row_starts


def test_a_finished_cache_is_recognised_without_loading_weights(lora_pair: ModelPair, tmp_path: Path) -> None:
    made = collection(lora_pair, texts(2), tmp_path)
    assert made(tmp_path)
    counting = Counting(lora_pair)
    assert Collection(counting, made.tokens, made.specs)(tmp_path)
    assert counting.used == dict.fromkeys(Side, 0)
    assert "_base" not in vars(counting)


@pytest.mark.parametrize("side", Side)
def test_non_finite_activations_name_side_and_layer_and_leave_no_shard(
    base_folder: Path, merged_folder: Path, tmp_path: Path, side: Side
) -> None:
    pair = ModelPair(pin(tiny.pair_spec(base_folder, "full", merged_folder)), device="cpu")
    made = collection(pair, texts(6), tmp_path / "corpus")
    with pair.using(side) as model:
        decoder_blocks(model)[2].mlp.down_proj.weight.fill_(float("nan"))
    with pytest.raises(NonFiniteActivations, match=rf"{side} model at layer 2.*preprocessing\.dtype"):
        made(tmp_path / "root")
    assert not [name for name in contents(tmp_path / "root") if name.startswith(side)]


def test_values_too_large_for_the_stored_dtype_are_refused(lora_pair: ModelPair, tmp_path: Path) -> None:
    with lora_pair.using(Side.BASE) as model:
        model.model.embed_tokens.weight.mul_(1e6)
    with pytest.raises(NonFiniteActivations, match="stored in float16"):
        collection(lora_pair, texts(1), tmp_path, dtype="float16")(tmp_path)


def test_a_corpus_that_keeps_no_row_is_refused(lora_pair: ModelPair, tmp_path: Path) -> None:
    with pytest.raises(EmptyCorpus, match="skip_first"):
        collection(lora_pair, ["C", "D"], tmp_path)(tmp_path)


def test_documents_without_rows_are_stored_and_not_run(lora_pair: ModelPair, tmp_path: Path) -> None:
    made = collection(lora_pair, ["C", "D", "EF", "G"], tmp_path, drop_bos=False)
    assert made(tmp_path)
    store = SideStore(made.folder(Side.FINETUNED, tmp_path))
    assert store.document_rows().diff().tolist() == [0, 0, 1, 0]
    assert [len(store.document_tokens(document)) for document in range(4)] == [1, 1, 2, 1]


def test_inputs_that_do_not_belong_together_are_refused(lora_pair: ModelPair, full_pair, tmp_path: Path) -> None:
    made = collection(lora_pair, texts(1), tmp_path)
    other_tokens = collection(lora_pair, texts(2), tmp_path / "other").tokens
    base, options = made.specs[Side.BASE], {"batch_tokens": 100, "shard_mib": 1}
    with pytest.raises(InvalidSetting, match="pair to run"):
        collect(full_pair, made.tokens, made.specs, tmp_path, **options)
    with pytest.raises(InvalidSetting, match="nothing but the side"):
        collect(lora_pair, made.tokens, {**made.specs, Side.BASE: replace(base, layers=(1,))}, tmp_path, **options)
    with pytest.raises(InvalidSetting, match="tokens"):
        collect(lora_pair, other_tokens, made.specs, tmp_path, **options)
    with pytest.raises(InvalidSetting, match="part 2 of 2"):
        made(tmp_path, part=(2, 2))
    loose = ModelPair(replace(lora_pair.spec, base=replace(lora_pair.spec.base, revision=None)), device="cpu")
    with pytest.raises(InvalidSetting, match="not pinned"):
        made.of(loose)(tmp_path)


def test_shards_of_another_plan_or_spec_are_refused(lora_pair: ModelPair, tmp_path: Path) -> None:
    made = collection(lora_pair, texts(10), tmp_path)
    assert not made(tmp_path, part=(0, 2))
    with pytest.raises(SchemaMismatch, match="another shard_mib"):
        made(tmp_path, shard_mib=2.5e-1)
    other = collection(lora_pair, texts(10), tmp_path, skip_first=2)
    other.folder(Side.BASE, tmp_path).mkdir(parents=True)
    shard = made.folder(Side.BASE, tmp_path) / "shard-00000.h5"
    (other.folder(Side.BASE, tmp_path) / shard.name).write_bytes(shard.read_bytes())
    with pytest.raises(SchemaMismatch, match=r"shard-00000\.h5: expected activations"):
        other(tmp_path)


def leaves(spec: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for field in fields(spec):
        value = getattr(spec, field.name)
        yield from leaves(value, (*path, field.name)) if is_dataclass(value) else [(*path, field.name)]


def changed(spec: object, path: tuple[str, ...]) -> object:
    value = getattr(spec, path[0])
    if len(path) > 1:
        return replace(spec, **{path[0]: changed(value, path[1:])})
    special = {"layers": (1, 3), "dtype": "float32", "source": "file", "format": "chat", "kind": "full", "layer": 1}
    if path[0] == "layer":
        return replace(spec, kind="steering_vector", layer=1)
    if path[0] == "dtype" and not isinstance(spec, CacheSpec):
        return replace(spec, dtype="bfloat16")
    if path[0] in special:
        return replace(spec, **{path[0]: special[path[0]]})
    if isinstance(value, bool):
        return replace(spec, **{path[0]: not value})
    new = value + 1 if isinstance(value, int | float) else f"{value}-other" if value else 7 if "max" in path[0] else "x"
    return replace(spec, **{path[0]: new})


FULL_SPEC = CacheSpec(
    TokensSpec(CorpusSpec("short", "hub", "org/data", max_documents=10), "tokenizer"),
    ModelSpec("short", "org/model", "commit"),
    VariantSpec("lora", "org/adapter", "commit"),
    (1, 2),
)


@pytest.mark.parametrize("path", list(leaves(FULL_SPEC)), ids=".".join)
def test_the_digest_covers_every_field_but_short_names(path: tuple[str, ...]) -> None:
    other = changed(FULL_SPEC, path)
    assert other != FULL_SPEC
    assert (other.digest == FULL_SPEC.digest) == (path[-1] in ("name", "bundled"))


def test_moving_local_weights_and_texts_changes_no_digest(base_folder: Path, adapter_folder: Path, tmp_path: Path):
    import shutil

    digests = []
    for base, adapter, place in (
        (base_folder, adapter_folder, tmp_path / "a"),
        (tmp_path / "base", tmp_path / "adapter", tmp_path / "b"),
    ):
        if not base.exists():
            shutil.copytree(base_folder, base)
            shutil.copytree(adapter_folder, adapter)
        pair = ModelPair(pin(tiny.pair_spec(base, "lora", adapter)), device="cpu")
        made = collection(pair, texts(1), place)
        digests.append([made.tokens.digest, *(made.specs[side].digest for side in Side)])
    assert digests[0] == digests[1]


def test_caches_of_two_organisms_do_not_mix(lora_pair: ModelPair, identical_pair: ModelPair, tmp_path: Path) -> None:
    made = collection(lora_pair, texts(1), tmp_path)
    other = collection(identical_pair, texts(1), tmp_path, skip_first=2)
    assert made(tmp_path)
    assert other(tmp_path)
    with pytest.raises((IncompatiblePair, SchemaMismatch)):
        ActivationCache(made.folder(Side.BASE, tmp_path), other.folder(Side.FINETUNED, tmp_path))


def test_moments_of_a_shard_are_those_of_its_rows(lora_pair: ModelPair, tmp_path: Path) -> None:
    made = collection(lora_pair, texts(8), tmp_path)
    assert made(tmp_path)
    reader = ShardReader(made.folder(Side.BASE, tmp_path) / "shard-00001.h5")
    rows = reader.read(1, 0, reader.header.n_rows)
    expected, found = Moments.of(rows), reader.moments(Stream.BASE, 1)
    assert (found.count, found.mean.tolist()) == (expected.count, expected.mean.tolist())


@pytest.mark.real_model
def test_rows_of_the_real_pair_are_those_of_each_document_alone(real_pair: ModelPair, tmp_path: Path) -> None:
    layers = (7, real_pair.layer_at(0.5))
    made = collection(real_pair, tiny.TEXTS, tmp_path, layers, dtype="float32")
    assert made(tmp_path)
    cache = cache_of(made, tmp_path)
    ends = cache.base.document_rows()
    for number in (0, 1, 4):
        for layer in layers:
            found = cache.read(layer, int(ends[number]), int(ends[number + 1]))
            for side, stored in zip(Side, found, strict=True):
                expected = alone(real_pair, side, made.tokens.document(number), layer)[-len(stored) :]
                assert float((stored - expected).norm()) <= 1e-4 * float(expected.norm())
