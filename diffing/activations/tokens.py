"""The token ids of a corpus, made once and read by every model that shares the tokenizer.

One HDF5 file per TokensSpec, `{root}/tokens/{digest}/tokens.h5`: /ids int32 of all documents, /offsets int64
[documents + 1] into them, /leading_bos int64 [documents], the beginning-of-sequence tokens that each document starts
with (chat templates write their own). It appears by rename when complete. Memory while writing is one block of ids and
16 bytes a document.
"""

import hashlib
import io
import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import takewhile
from pathlib import Path

import h5py
import torch
from jaxtyping import Int32, Int64
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from diffing.activations.exclusive import reaching, sole_writer, temporary
from diffing.activations.files import publish_file
from diffing.errors import InvalidSetting, SchemaMismatch
from diffing.specs import TokensSpec
from diffing.text.corpus import Corpus
from diffing.text.windows import token_sequences

LAYOUT_VERSION = 1
BLOCK_IDS = 1 << 16
"""Ids per chunk of the file, and written at a time."""
SPARE = 1 << 20
"""Bytes of room for what HDF5 adds of its own."""
POLL_SECONDS = 0.2


class Tokens:
    """Token ids of all documents, read when asked for. Picklable: holds a path and 16 bytes a document, no handle.

    Raises SchemaMismatch for a file that is not one that `tokenise` made.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            with h5py.File(path, locking=False) as file:
                version, self.digest = int(file.attrs["layout_version"]), str(file.attrs["digest"])
                self._offsets = torch.from_numpy(file["offsets"][:])
                self.leading_bos: Int64[Tensor, " document"] = torch.from_numpy(file["leading_bos"][:])
                complete = len(file["ids"]) == int(self._offsets[-1])
        except (OSError, KeyError, ValueError, TypeError, RuntimeError) as error:
            raise SchemaMismatch(f"{path} holds no token ids ({error}); delete it and run the command again") from error
        if version != LAYOUT_VERSION or not complete:
            raise SchemaMismatch(
                f"{path}: expected all token ids in layout {LAYOUT_VERSION}, found layout {version}"
                f"{'' if complete else ', cut short'}; delete it and run the command again"
            )

    @property
    def n_documents(self) -> int:
        return len(self._offsets) - 1

    @property
    def n_tokens(self) -> int:
        return int(self._offsets[-1])

    @cached_property
    def lengths(self) -> Int64[Tensor, " document"]:
        """Tokens of each document, 1 or more."""
        return self._offsets.diff()

    def document(self, number: int) -> Int32[Tensor, " token"]:
        return self.of(range(number, number + 1))

    def of(self, documents: range) -> Int32[Tensor, " token"]:
        """The ids of consecutive documents, one after the other."""
        start, stop = int(self._offsets[documents.start]), int(self._offsets[documents.stop])
        with h5py.File(self.path, locking=False) as file:
            return torch.from_numpy(file["ids"][start:stop])


def tokens_path(spec: TokensSpec, root: Path) -> Path:
    """Where the tokens of a spec are kept."""
    return root / "tokens" / spec.digest / "tokens.h5"


def tokenise(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    spec: TokensSpec,
    root: Path,
    on_document: Callable[[int], object] = lambda documents: None,
) -> Tokens:
    """The tokens of `spec`, made now if nobody has; waits for another process that is making them.

    Takes the first `context` tokens of at most `max_samples` documents, `max_tokens` in all, the last document cut to
    fit. Raises InvalidSetting if `spec` describes another corpus or tokenizer, EmptyCorpus, StorageFailed.
    """
    if corpus.spec != spec.corpus:
        raise InvalidSetting(f"these tokens are of corpus {spec.corpus}, but corpus {corpus.spec} was given")
    if (found := tokenizer_digest(tokenizer)) != spec.tokenizer:
        raise InvalidSetting(f"these tokens are of tokenizer {spec.tokenizer}, but tokenizer {found} was given")
    path = tokens_path(spec, root)
    while not path.is_file():
        with sole_writer(path) as mine:
            if mine and not path.is_file():
                sequences = token_sequences(corpus, tokenizer, max_tokens=spec.context, max_texts=spec.max_samples)
                _write(path, _capped(sequences, spec.max_tokens), tokenizer.bos_token_id, spec, on_document)
        if not mine:
            time.sleep(POLL_SECONDS)
    return Tokens(path)


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """16 hex digits over what decides the ids of a text: the model, its special tokens and the chat template.

    Padding and truncation are state that calls leave behind, and change no id that is read here.
    """
    if tokenizer.is_fast:
        model = json.loads(tokenizer.backend_tokenizer.to_str()) | {"truncation": None, "padding": None}
    else:
        model = {"class": type(tokenizer).__name__, "vocabulary": tokenizer.get_vocab()}
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if name != "pad_token"}
    text = json.dumps([model, special, tokenizer.chat_template], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _capped(sequences: Iterator[list[int]], max_tokens: int) -> Iterator[list[int]]:
    remaining = max_tokens
    for sequence in sequences:
        yield sequence[:remaining]
        remaining -= len(sequence)
        if remaining <= 0:
            return


def _write(
    path: Path,
    sequences: Iterator[list[int]],
    bos: int | None,
    spec: TokensSpec,
    on_document: Callable[[int], object],
) -> None:
    unfinished = temporary(path)
    offsets, leading_bos, block = array("q", [0]), array("q"), array("i")
    try:
        with reaching(path):
            unfinished.write_bytes(_no_tokens())
        for sequence in sequences:
            block.extend(sequence)
            offsets.append(offsets[-1] + len(sequence))
            leading_bos.append(sum(1 for _ in takewhile(lambda id: id == bos, sequence)))
            if len(block) >= BLOCK_IDS:
                _append(unfinished, block)
                block = array("i")
            on_document(1)
        _append(unfinished, block)
        with _extending(unfinished, len(offsets) * 16) as file:
            for name, values in (("offsets", offsets), ("leading_bos", leading_bos)):
                file[name] = torch.frombuffer(values, dtype=torch.int64)
            file.attrs.update(
                layout_version=LAYOUT_VERSION, digest=spec.digest, spec=json.dumps(spec.as_json(), sort_keys=True)
            )
        publish_file(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def _no_tokens() -> bytes:
    """A file that holds no id yet."""
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        file.create_dataset("ids", (0,), "int32", maxshape=(None,), chunks=(BLOCK_IDS,))
    return image.getvalue()


def _append(path: Path, block: Sequence[int]) -> None:
    with _extending(path, len(block) * 4) as file:
        ids = file["ids"]
        ids.resize(len(ids) + len(block), axis=0)
        ids[len(ids) - len(block) :] = block


@contextmanager
def _extending(path: Path, more: int) -> Iterator[h5py.File]:
    """The file, opened to add so many bytes, whose room is taken first: HDF5 crashes on a disk that fills up."""
    with reaching(path):
        with path.open("ab") as plain:
            plain.write(bytes(more + 8 * BLOCK_IDS + SPARE))
        with h5py.File(path, "r+", locking=False) as file:  # cuts what it does not need when it is closed
            yield file
