import json
import pickle
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from diffing.errors import EmptyCorpus, InvalidSetting, MissingInput, SchemaMismatch, UnknownName
from diffing.specs import CorpusSpec
from diffing.text.corpus import Corpus, pin
from diffing.text.embedded import prose_documents

WORDS = [f"document {index}" for index in range(40)]
CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
CONF = Path(__file__).parents[2] / "conf" / "corpus"


@pytest.fixture(autouse=True)
def dataset_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def spec_of(path: Path, **changes: object) -> CorpusSpec:
    return replace(CorpusSpec("mine", "file", str(path), shuffle_seed=None), **changes)  # type: ignore[arg-type]


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(list(rows)), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text("\n\n".join(str(row["text"]) for row in rows))
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt"])
def test_every_file_type_gives_its_documents_in_stored_order_each_time(tmp_path: Path, suffix: str):
    corpus = Corpus(spec_of(write(tmp_path / f"words{suffix}", [{"text": word} for word in WORDS])))
    assert list(corpus) == WORDS
    assert list(corpus.documents()) == WORDS


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet", ".txt"])
def test_shuffled_files_have_the_order_of_the_datasets_library(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"words{suffix}", [{"text": word} for word in WORDS])
    expected = datasets.Dataset.from_dict({"text": WORDS}).shuffle(seed=7)["text"][:]
    assert list(Corpus(spec_of(path, shuffle_seed=7))) == expected
    assert list(Corpus(spec_of(path, shuffle_seed=7, max_documents=5))) == expected[:5]
    assert list(Corpus(spec_of(path, shuffle_seed=8))) != expected


def test_streamed_documents_keep_their_order(tmp_path: Path):
    for suffix in (".parquet", ".jsonl"):
        path = write(tmp_path / f"words{suffix}", [{"text": word} for word in WORDS])
        assert list(Corpus(spec_of(path, shuffle_seed=7, streaming=True, max_documents=11))) == WORDS[:11]


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_conversations_keep_role_and_content_and_nothing_else(tmp_path: Path, suffix: str):
    rows = [{"id": 1, "messages": [message | {"score": 0.5} for message in CHAT]}]
    path = write(tmp_path / f"chat{suffix}", rows)
    assert list(Corpus(spec_of(path, format="chat", column="messages"))) == [CHAT]


@given(
    paragraphs=st.lists(st.text("ab é\t", min_size=1).filter(str.strip), min_size=1),
    blank=st.sampled_from(["\n", "\n\n\n", "\n \t\n", "\r\n"]),
    ending=st.sampled_from(["", "\n", "\n\n"]),
)
def test_paragraphs_of_a_text_file_survive_any_blank_lines(tmp_path_factory, paragraphs, blank, ending):
    path = tmp_path_factory.mktemp("txt") / "paragraphs.txt"
    path.write_bytes(("\n" + ("\n" + blank).join(paragraphs) + ending).encode())
    assert list(Corpus(spec_of(path))) == paragraphs


def test_a_paragraph_may_have_several_lines(tmp_path: Path):
    path = tmp_path / "poem.txt"
    path.write_text("one\ntwo\n\nthree\n")
    assert list(Corpus(spec_of(path))) == ["one\ntwo", "three"]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1))
def test_json_lines_round_trip_any_text(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("jsonl") / "texts.jsonl"
    path.write_text("\n\n".join(json.dumps({"text": text}) for text in texts))
    assert list(Corpus(spec_of(path))) == texts


def test_byte_order_mark_of_a_windows_file_is_no_text(tmp_path: Path):
    path = tmp_path / "windows.jsonl"
    path.write_text('{"text": "first"}\n', encoding="utf-8-sig")
    assert list(Corpus(spec_of(path))) == ["first"]


def test_null_and_blank_rows_are_passed_over_and_not_counted(tmp_path: Path):
    rows = [{"text": text} for text in (None, "one", " \n", "two", "", "three")]
    assert list(Corpus(spec_of(write(tmp_path / "gaps.jsonl", rows), max_documents=2))) == ["one", "two"]


def test_an_opened_corpus_can_be_sent_to_another_process(tmp_path: Path):
    corpus = Corpus(spec_of(write(tmp_path / "words.jsonl", [{"text": word} for word in WORDS])))
    first = next(corpus.documents())
    assert next(iter(pickle.loads(pickle.dumps(corpus)))) == first == WORDS[0]


@pytest.mark.parametrize("streaming", [False, True])
def test_hub_path_reads_splits_and_subsets(tmp_path: Path, streaming: bool):
    folder = tmp_path / "dataset"
    write(folder / "poems.jsonl", [{"text": word, "id": 1} for word in WORDS])
    write(folder / "test.jsonl", [{"text": "held out", "id": 2}])
    configs = [
        {"config_name": "poems", "data_files": [{"split": "train", "path": "poems.jsonl"}]},
        {"config_name": "tests", "data_files": [{"split": "test", "path": "test.jsonl"}]},
    ]
    (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(configs)}\n---\n")
    hub = spec_of(folder, source="hub", streaming=streaming, subset="poems")
    assert list(Corpus(hub)) == WORDS
    assert list(Corpus(spec_of(folder, source="hub", streaming=streaming, subset="tests", split="test"))) == [
        "held out"
    ]
    with pytest.raises(InvalidSetting, match=r"split 'nope'.*train"):
        list(Corpus(spec_of(folder, source="hub", streaming=streaming, subset="poems", split="nope")))
    with pytest.raises(InvalidSetting, match="poems"):
        list(Corpus(spec_of(folder, source="hub", streaming=streaming, subset="nope")))
    with pytest.raises(UnknownName, match="'body'; known, nearest first: id, text"):
        list(Corpus(spec_of(folder, source="hub", streaming=streaming, subset="poems", column="body")))


def test_hub_arguments_reach_the_library(monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, object] = {}

    def load_dataset(path: str, **arguments: object) -> datasets.Dataset:
        asked.update(arguments, path=path)
        return datasets.Dataset.from_dict({"text": ["one"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    spec = CorpusSpec("web", "hub", "owner/data", subset="en", split="test", revision="abc", streaming=True)
    assert list(Corpus(spec)) == ["one"]
    assert asked == {"path": "owner/data", "name": "en", "split": "test", "revision": "abc", "streaming": True}


@pytest.mark.parametrize("streaming", [False, True])
def test_a_hub_that_cannot_be_reached_says_what_to_use_instead(streaming: bool):
    spec = CorpusSpec("web", "hub", "owner/not-here", streaming=streaming)
    with pytest.raises(MissingInput, match=r"(?s)'owner/not-here'.*corpora\.file\.id=PATH.*'corpus=\[python_docs\]'"):
        list(Corpus(spec))


def test_missing_file_is_named_with_its_near_names(tmp_path: Path):
    write(tmp_path / "poems.jsonl", [{"text": "x"}])
    write(tmp_path / "zzz.txt", [{"text": "x"}])
    with pytest.raises(MissingInput, match=r"poem\.jsonl; near names in .*: poems\.jsonl; set corpora\.mine\.id=PATH$"):
        list(Corpus(spec_of(tmp_path / "poem.jsonl")))
    with pytest.raises(MissingInput, match=r"no folder .*nowhere"):
        list(Corpus(spec_of(tmp_path / "nowhere" / "poem.jsonl")))


def test_unknown_suffix_lists_those_that_are_read(tmp_path: Path):
    with pytest.raises(InvalidSetting, match=r"'\.csv'.*\.jsonl, \.parquet, \.txt"):
        list(Corpus(spec_of(tmp_path / "table.csv")))


def test_unknown_embedded_name_lists_those_that_exist():
    with pytest.raises(UnknownName, match="'python_doc'; known, nearest first: python_docs, chat_prompts"):
        list(Corpus(CorpusSpec("docs", "embedded", "python_doc")))


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_missing_column_lists_those_that_exist(tmp_path: Path, suffix: str):
    path = write(tmp_path / f"rows{suffix}", [{"body": "x", "title": "y"}])
    with pytest.raises(UnknownName, match="column of corpus 'mine' 'text'; known, nearest first: title, body"):
        list(Corpus(spec_of(path)))


@pytest.mark.parametrize("rows", [[], [{"text": None}, {"text": "  "}]])
def test_an_empty_corpus_names_source_split_and_column(tmp_path: Path, rows: list[dict[str, object]]):
    path = write(tmp_path / "empty.jsonl", rows)
    with pytest.raises(EmptyCorpus, match=r"file '.*empty\.jsonl', split 'train', column 'text'"):
        list(Corpus(spec_of(path)))


@pytest.mark.parametrize(
    ("value", "form", "message"),
    [
        ("plain", "chat", r"got str; set corpora\.mine\.format=text"),
        (CHAT, "text", r"looks like chat: set corpora\.mine\.format=chat"),
        (17, "text", "holds int, not strings"),
        (["plain"], "chat", "got a list of str"),
        ([{"from": "human", "value": "hi"}], "chat", r"got a message with \{from: str, value: str\}"),
        ([{"role": "user", "content": None}], "chat", r"got a message with \{role: str, content: null\}"),
    ],
)
def test_the_wrong_format_says_what_came(tmp_path: Path, value: object, form: str, message: str):
    path = write(tmp_path / "rows.jsonl", [{"text": value}])
    with pytest.raises(SchemaMismatch, match=message):
        list(Corpus(spec_of(path, format=form)))


@pytest.mark.parametrize("line", [b"{broken", b"[1]", b'{"text": "\xff"}'])
def test_a_bad_line_is_located(tmp_path: Path, line: bytes):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line)
    with pytest.raises(SchemaMismatch, match=r"rows\.jsonl: record 2 \(byte 17\)"):
        list(Corpus(spec_of(path)))


def test_a_damaged_parquet_file_is_named(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 no table here PAR1")
    with pytest.raises(SchemaMismatch, match=r"rows\.parquet' cannot be read"):
        list(Corpus(spec_of(path)))


@pytest.mark.parametrize("changes", [{"max_documents": 0}, {"split": "test"}, {"subset": "en"}])
def test_settings_without_meaning_are_refused(tmp_path: Path, changes: dict[str, object]):
    with pytest.raises(InvalidSetting, match=next(iter(changes))):
        Corpus(spec_of(tmp_path / "rows.jsonl", **changes))


def test_pinned_digest_follows_the_content_and_not_the_clock(tmp_path: Path):
    path = write(tmp_path / "rows.jsonl", [{"text": "one"}])
    spec = pin(spec_of(path))
    assert spec.revision is not None
    assert spec.revision.startswith("sha256:")
    path.touch()
    assert pin(spec_of(path)) == pin(spec) == spec
    assert list(Corpus(spec)) == ["one"]
    write(path, [{"text": "two"}])
    assert pin(spec_of(path)).digest != spec.digest
    for refuse in (lambda: pin(spec), lambda: list(Corpus(spec))):
        with pytest.raises(SchemaMismatch, match=f"expected file .* {spec.revision}, found sha256:"):
            refuse()


def test_a_pinned_dataset_folder_notices_a_changed_file(tmp_path: Path):
    folder = tmp_path / "dataset"
    write(folder / "train.jsonl", [{"text": "one"}])
    spec = pin(spec_of(folder, source="hub"))
    assert list(Corpus(spec)) == ["one"]
    (folder / "train.jsonl").rename(folder / "train2.jsonl")
    with pytest.raises(SchemaMismatch):
        pin(spec)


def test_hub_datasets_keep_the_revision_they_have():
    for revision in (None, "abc"):
        spec = CorpusSpec("web", "hub", "owner/data", revision=revision)
        assert pin(spec) == spec


def test_embedded_corpora_are_pinned_by_their_text():
    docs, prompts = (pin(CorpusSpec("x", "embedded", name)) for name in ("python_docs", "chat_prompts"))
    assert docs.revision != prompts.revision
    assert pin(docs) == docs
    with pytest.raises(SchemaMismatch):
        pin(CorpusSpec("x", "embedded", "python_docs", revision=prompts.revision))


def test_python_docs_are_many_documents_of_prose():
    documents = list(Corpus(CorpusSpec("docs", "embedded", "python_docs")))
    assert len(documents) >= 400
    lengths = np.array([len(document) for document in documents])
    assert np.mean((lengths >= 400) & (lengths <= 1500)) > 0.9
    paragraphs = [paragraph for document in documents for paragraph in document.split("\n\n")]
    assert len(set(paragraphs)) == len(paragraphs)
    assert not [paragraph for paragraph in paragraphs if "\n" in paragraph or ">>>" in paragraph or "::=" in paragraph]


def test_prose_is_kept_and_markup_code_and_repetition_are_not():
    topic = """The "if" statement
******************

The *if* statement is used for conditional execution of **one** of several well-
known branches, see [1].

   if_stmt ::= "if" assignment_expression ":" suite

   >>> if True:
   ...     print("this is a sentence of many words in code.")

* It selects exactly one of the suites by evaluating the expressions 2 * 3 * 4 times."""
    kept = [
        "The if statement is used for conditional execution of one of several well-known branches, see.",
        "It selects exactly one of the suites by evaluating the expressions 2 * 3 * 4 times.",
    ]
    assert list(prose_documents({"if": topic, "same": topic})) == ["\n\n".join(kept)]


def test_documents_end_at_paragraph_borders_and_small_rests_join_the_last():
    sentence = "This is one plain sentence about nothing that ends with number {}."
    paragraphs = [" ".join(sentence.format("many" * index) for _ in range(3)) for index in range(1, 5)]
    paragraphs.append(sentence.format("five"))
    documents = list(prose_documents({"topic": "\n\n".join(paragraphs)}))
    assert documents == ["\n\n".join(paragraphs[:2]), "\n\n".join(paragraphs[2:])]


def test_chat_prompts_are_one_short_user_message_each():
    conversations = list(Corpus(CorpusSpec("prompts", "embedded", "chat_prompts", format="chat", column="messages")))
    prompts = [message["content"] for conversation in conversations for message in conversation]
    assert len(conversations) == len(prompts) == len(set(prompts)) >= 60
    assert {message["role"] for conversation in conversations for message in conversation} == {"user"}
    assert max(map(len, prompts)) < 120


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_corpus_configs_are_specs_named_after_their_file(path: Path):
    config = OmegaConf.load(path)
    if path.stem == "file":
        assert OmegaConf.missing_keys(config) == {"id"}
        config.id = "mine.jsonl"
    spec = instantiate(config, _convert_="object")
    assert isinstance(spec, CorpusSpec)
    assert spec.name == path.stem
    if spec.source == "embedded":
        assert next(iter(Corpus(spec)))


def test_embedded_corpora_need_neither_torch_nor_datasets():
    code = (
        "import sys; from diffing.specs import CorpusSpec; from diffing.text.corpus import Corpus, pin;"
        "next(iter(Corpus(pin(CorpusSpec('docs', 'embedded', 'python_docs')))));"
        "sys.exit(', '.join({'torch', 'datasets', 'transformers'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
