"""Finished stores written from given tensors: no model, no tokenizer, no collection."""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import torch
from torch import Tensor

from diffing.activations.files import publish_file
from diffing.activations.hdf5 import CHUNK_ROWS, Documents, write_shard
from diffing.activations.moments import Moments
from diffing.activations.store import ActivationCache, SideStore, shard_name
from diffing.activations.streams import difference
from diffing.axes import Side, Stream
from diffing.specs import CacheSpec, CorpusSpec, ModelSpec, TokensSpec, VariantSpec

LORA = VariantSpec("lora", "org/adapter")


def cache_spec(
    layers: Sequence[int] = (0,),
    dtype: str = "float32",
    finetuned: VariantSpec | None = LORA,
    corpus: str = "planted",
    base: str = "org/base",
) -> CacheSpec:
    """Of the finetuned side; of the base side with `finetuned=None`. Another `corpus` is another content."""
    tokens = TokensSpec(CorpusSpec(corpus, "file", f"{corpus}.jsonl"), "tokenizer")
    return CacheSpec(tokens, ModelSpec("tiny", base), finetuned, layers, dtype)


def documents_of(lengths: Sequence[int], kept: Sequence[int], ids: Sequence[int] | Tensor | None = None) -> Documents:
    """Documents of `lengths` tokens, the last `kept` of each stored. Token ids count from 0 if none are given."""
    ids = torch.arange(sum(lengths)) if ids is None else torch.as_tensor(ids)
    return Documents(ids.int(), torch.tensor([0, *accumulate(lengths)]), torch.tensor([0, *accumulate(kept)]))


def write_cache(
    root: Path,
    base: Mapping[int, Tensor],
    finetuned: Mapping[int, Tensor],
    lengths: Sequence[int] | None = None,
    kept: Sequence[int] | None = None,
    ids: Sequence[int] | Tensor | None = None,
    *,
    documents_per_shard: int | None = None,
    corpus: str = "planted",
    model: str = "org/base",
    variant: VariantSpec = LORA,
    chunk_rows: int = CHUNK_ROWS,
) -> ActivationCache:
    """Both stores under `root`, from {layer: [rows, d_model]} per side.

    lengths    tokens of each document; by default documents of 9 tokens
    kept       rows of each document; by default all tokens but the first
    ids        of all tokens; by default they count from 0
    """
    n_rows = len(next(iter(base.values())))
    if lengths is None:
        lengths = [9] * (n_rows // 8) + ([n_rows % 8 + 1] if n_rows % 8 else [])
    kept = [max(length - 1, 0) for length in lengths] if kept is None else kept
    documents = documents_of(lengths, kept, ids)
    dtype = str(next(iter(base.values())).dtype).removeprefix("torch.")
    per_shard = documents_per_shard or max(len(lengths), 1)
    folders = {}
    for side, rows in ((Side.BASE, base), (Side.FINETUNED, finetuned)):
        spec = cache_spec(tuple(base), dtype, variant if side is Side.FINETUNED else None, corpus, model)
        folder = folders[side] = root / side / spec.digest
        folder.mkdir(parents=True, exist_ok=True)
        starts = range(0, max(len(lengths), 1), per_shard)
        for shard, first in enumerate(starts):
            _write_part(folder, spec, shard, (first, min(first + per_shard, len(lengths))), documents,
                        rows, base if side is Side.FINETUNED else None, chunk_rows)  # fmt: skip
        assert SideStore.finish(folder, spec, len(starts))
    return ActivationCache(folders[Side.BASE], folders[Side.FINETUNED])


def _write_part(
    folder: Path, spec: CacheSpec, shard: int, part: tuple[int, int], whole: Documents,
    rows: Mapping[int, Tensor], base: Mapping[int, Tensor] | None, chunk_rows: int,
) -> None:  # fmt: skip
    first, last = part
    first_row, end_row = int(whole.rows[first]), int(whole.rows[last])
    own = {layer: values[first_row:end_row] for layer, values in rows.items()}
    moments = {Stream(spec.side): {layer: Moments.of(values) for layer, values in own.items()}}
    if base is not None:
        differences = {layer: difference(base[layer][first_row:end_row], values) for layer, values in own.items()}
        moments[Stream.DIFFERENCE] = {layer: Moments.of(values) for layer, values in differences.items()}
    documents = Documents(
        whole.ids[int(whole.offsets[first]) : int(whole.offsets[last])],
        whole.offsets[first : last + 1] - whole.offsets[first],
        whole.rows[first : last + 1] - first_row,
    )
    path = folder / shard_name(shard)
    temporary = path.with_suffix(".tmp")
    write_shard(
        temporary, spec=spec, shard=shard, first_document=first, first_row=first_row, documents=documents,
        rows=own, moments=moments, chunk_rows=chunk_rows,
    )  # fmt: skip
    publish_file(temporary, path)
