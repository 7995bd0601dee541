"""Token files against tokenising again, their bounds, and what a tokenizer's digest must and must not notice."""

import copy
import os
import pickle
import resource
from dataclasses import replace
from itertools import chain
from pathlib import Path
from signal import SIGKILL

import h5py
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from diffing.activations import tokens as tokens_module
from diffing.activations.tokens import Tokens, tokenise, tokenizer_digest, tokens_path
from diffing.errors import EmptyCorpus, InvalidSetting, SchemaMismatch, StorageFailed
from diffing.specs import TokensSpec
from diffing.text.windows import token_sequences
from tests import tiny
from tests.activations.collecting import contents, corpus_of, ended, forked, texts


def spec_of(corpus, tokenizer: PreTrainedTokenizerFast, **bounds: int) -> TokensSpec:
    return TokensSpec(corpus.spec, tokenizer_digest(tokenizer), **bounds)


def made(folder: Path, documents: list[str], **bounds: int) -> Tokens:
    corpus = corpus_of(documents, folder)
    return tokenise(corpus, tiny.tokenizer(), spec_of(corpus, tiny.tokenizer(), **bounds), folder)


@pytest.mark.parametrize("block", [1, 7, 1 << 18])
def test_stored_ids_are_those_of_the_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(tokens_module, "BLOCK_IDS", block)
    documents = texts(2)
    tokens = made(tmp_path, documents, context=20)
    expected = list(token_sequences(documents, tiny.tokenizer(), max_tokens=20))
    assert [tokens.document(number).tolist() for number in range(tokens.n_documents)] == expected
    assert tokens.lengths.tolist() == [len(ids) for ids in expected]
    assert tokens.n_tokens == sum(map(len, expected))
    assert tokens.of(range(3, 6)).tolist() == list(chain(*expected[3:6]))


@settings(max_examples=20, deadline=None)
@given(cap=st.integers(1, 200), samples=st.integers(1, 8), context=st.integers(1, 30))
def test_the_bounds_are_exact(tmp_path_factory: pytest.TempPathFactory, cap: int, samples: int, context: int) -> None:
    everything = [ids[:context] for ids in token_sequences(texts(1), tiny.tokenizer(), max_tokens=64)][:samples]
    tokens = made(tmp_path_factory.mktemp("tokens"), texts(1), max_tokens=cap, max_samples=samples, context=context)
    flat = list(chain(*everything))[:cap]
    assert tokens.n_tokens == len(flat)
    assert tokens.of(range(tokens.n_documents)).tolist() == flat
    assert all(tokens.lengths > 0)


def test_leading_bos_tokens_are_counted_and_others_are_not(tmp_path: Path) -> None:
    tokens = made(tmp_path, ["plain", "<s>one", "<s><s>two <s> more", "<s>"])
    assert tokens.leading_bos.tolist() == [0, 1, 2, 1]


def test_tokens_are_made_once_and_the_same_bytes_each_time(tmp_path: Path) -> None:
    corpus = corpus_of(texts(2), tmp_path)
    spec, told = spec_of(corpus, tiny.tokenizer()), []
    first = tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "a", told.append)
    tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "b")
    assert sum(told) == first.n_documents == 12
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert set(contents(tmp_path / "a")) == {f"tokens/{spec.digest}/tokens.h5"}
    tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "a", told.append)
    assert sum(told) == 12


def test_four_processes_at_once_make_them_once(tmp_path: Path) -> None:
    corpus = corpus_of(texts(20), tmp_path / "corpus")
    spec = spec_of(corpus, tiny.tokenizer())

    def work() -> None:
        def note(document: int) -> None:
            with (tmp_path / "told").open("a") as told:
                told.write(".")

        assert tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "root", note).n_documents == 120

    assert [ended(process) for process in [forked(work) for _ in range(4)]] == [0] * 4
    assert len((tmp_path / "told").read_text()) == 120
    assert set(contents(tmp_path / "root")) == {f"tokens/{spec.digest}/tokens.h5"}


def test_tokens_survive_pickling(tmp_path: Path) -> None:
    tokens = made(tmp_path, texts(1))
    assert pickle.loads(pickle.dumps(tokens)).document(3).tolist() == tokens.document(3).tolist()


def test_a_failing_corpus_leaves_nothing_behind(tmp_path: Path) -> None:
    corpus = corpus_of(["", " "], tmp_path / "corpus")
    with pytest.raises(EmptyCorpus):
        tokenise(corpus, tiny.tokenizer(), spec_of(corpus, tiny.tokenizer()), tmp_path / "root")
    assert contents(tmp_path / "root") == {}


@pytest.mark.parametrize("room", [100, 4096, 1_500_000])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, room: int) -> None:
    corpus = corpus_of(texts(40), tmp_path / "corpus")
    spec = spec_of(corpus, tiny.tokenizer())

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
        with pytest.raises(StorageFailed, match=r"File too large.*infrastructure\.activations_dir"):
            tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "root")

    assert ended(forked(work)) == 0
    assert contents(tmp_path / "root") == {}
    assert tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "root").n_documents == 240


def test_a_killed_process_leaves_no_tokens_and_they_are_made_anew(tmp_path: Path) -> None:
    corpus = corpus_of(texts(2), tmp_path / "corpus")
    spec = spec_of(corpus, tiny.tokenizer())

    def work() -> None:
        tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "root", lambda documents: os.kill(os.getpid(), SIGKILL))

    assert ended(forked(work)) == -SIGKILL
    assert {Path(name).suffix for name in contents(tmp_path / "root")} == {".lock", ".tmp"}
    assert tokenise(corpus, tiny.tokenizer(), spec, tmp_path / "root").n_documents == 12
    assert set(contents(tmp_path / "root")) == {f"tokens/{spec.digest}/tokens.h5"}


def test_another_corpus_or_tokenizer_than_the_spec_says_is_refused(tmp_path: Path) -> None:
    corpus = corpus_of(texts(1), tmp_path)
    spec = spec_of(corpus, tiny.tokenizer())
    with pytest.raises(InvalidSetting, match="tokenizer"):
        tokenise(corpus, tiny.tokenizer(), replace(spec, tokenizer="other"), tmp_path)
    with pytest.raises(InvalidSetting, match="corpus"):
        tokenise(corpus, tiny.tokenizer(), replace(spec, corpus=replace(corpus.spec, id="other")), tmp_path)


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other layout"])
def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path, damage: str) -> None:
    path = made(tmp_path, texts(1)).path
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-900])
    elif damage == "foreign":
        path.write_text("not HDF5")
    else:
        with h5py.File(path, "a") as file:
            file.attrs["layout_version"] = 99
    with pytest.raises(SchemaMismatch, match=r"tokens\.h5.*delete it"):
        Tokens(path)


def test_the_digest_of_a_tokenizer_covers_what_decides_ids(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    known = tokenizer_digest(tokenizer)
    changed = [copy.deepcopy(tokenizer) for _ in range(3)]
    changed[0].chat_template = tokenizer.chat_template + " "
    changed[1].add_tokens(["another"])
    changed[2].bos_token = "<pad>"
    assert len({known, *map(tokenizer_digest, changed)}) == 4


def test_the_digest_of_a_tokenizer_ignores_what_calls_leave_behind(tmp_path: Path) -> None:
    tokenizer = copy.deepcopy(tiny.tokenizer())
    known = tokenizer_digest(tokenizer)
    tokenizer(["one", "two of them"], padding=True, truncation=True, max_length=3)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer_digest(tokenizer) == known
    tokenizer.save_pretrained(tmp_path / "moved")
    assert tokenizer_digest(AutoTokenizer.from_pretrained(tmp_path / "moved")) == known


def test_tokens_lie_under_the_digest_of_their_spec(tmp_path: Path) -> None:
    tokens = made(tmp_path, texts(1))
    corpus = corpus_of(texts(1), tmp_path)
    assert tokens.path == tokens_path(spec_of(corpus, tiny.tokenizer()), tmp_path)
    assert tokens.digest == spec_of(corpus, tiny.tokenizer()).digest
