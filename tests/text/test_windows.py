import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.specs import CorpusSpec
from diffing.text import windows
from diffing.text.corpus import Corpus
from diffing.text.windows import batches, chat_starts, pad, token_sequences
from tests.text import chats

SEQUENCES = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=7)
SIDES = st.sampled_from(["left", "right"])
TEXT = st.text("ab.' \n\t\xa01é漢</>", max_size=200) | st.lists(
    st.sampled_from(["hello", "assistant's", " ", "  ", "\n", " \n", ".\n", "1234", "</s>", "there, you", "漢字。"]),
    max_size=60,
).map("".join)


@given(SEQUENCES, st.integers(0, 99), SIDES)
def test_mask_recovers_the_sequences_whatever_the_pad_id(sequences, pad_id, side):
    batch = pad(sequences, pad_id, side)
    assert [ids[mask].tolist() for ids, mask in zip(batch.ids, batch.mask, strict=True)] == sequences
    assert torch.all(batch.ids[~batch.mask] == pad_id)
    assert batch.ids.shape == (len(sequences), max(map(len, sequences)))


@given(SEQUENCES, SIDES)
def test_padding_is_on_its_side(sequences, side):
    padding = ~pad(sequences, 0, side).mask
    steps = padding.int().diff(dim=1)
    assert torch.all(steps <= 0 if side == "left" else steps >= 0)


@given(SEQUENCES, SIDES)
def test_positions_count_real_tokens_from_zero(sequences, side):
    batch = pad(sequences, 0, side)
    for positions, mask, sequence in zip(batch.position_ids, batch.mask, sequences, strict=True):
        assert positions[mask].tolist() == list(range(len(sequence)))
        outside = 0 if side == "left" else len(sequence) - 1
        assert torch.all(positions[~mask] == outside)


def test_padding_side_does_not_change_a_model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = LlamaForCausalLM(config).eval()
    sequences = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15]]
    logits = {}
    with torch.no_grad():
        for side in ("left", "right"):
            batch = pad(sequences, 0, side)
            out = model(batch.ids, attention_mask=batch.mask.long(), position_ids=batch.position_ids).logits
            logits[side] = out[batch.mask]
        alone = torch.cat([model(torch.tensor([sequence])).logits[0] for sequence in sequences])
    torch.testing.assert_close(logits["left"], alone)
    torch.testing.assert_close(logits["right"], alone)


@given(SEQUENCES, st.integers(1, 8), SIDES)
def test_batches_keep_every_sequence_in_order(sequences, batch_size, side):
    made = list(batches(iter(sequences), batch_size, 0, side))
    rows = [ids[mask].tolist() for batch in made for ids, mask in zip(batch.ids, batch.mask, strict=True)]
    assert rows == sequences
    assert [len(batch.ids) for batch in made[:-1]] == [batch_size] * (len(made) - 1)


def test_batches_read_no_further_than_asked():
    sequences = iter([[1], [2], [3], [4], [5]])
    next(batches(sequences, 2, 0, "right"))
    assert list(sequences) == [[3], [4], [5]]


TOKENIZERS = {
    "gpt2": chats.tokenizer(begin=False),
    "gpt2_bos": chats.tokenizer(),
    "llama3": chats.tokenizer(split=chats.LLAMA3_SPLIT),
    "metaspace": chats.metaspace_tokenizer(),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(max_examples=300)
@given(text=TEXT, max_tokens=st.integers(1, 30))
@example(text="hello there, you.\n\n\nhello   hello\n    there", max_tokens=6)
@example(text="a" * 100 + " " * 100 + "b", max_tokens=5)
def test_cutting_a_text_changes_none_of_its_first_tokens(name: str, text: str, max_tokens: int):
    tokenizer = TOKENIZERS[name]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windows, "CHARACTERS_PER_TOKEN", 1)
        found = list(token_sequences([text, "anchor"], tokenizer, max_tokens=max_tokens))
    expected = tokenizer(text)["input_ids"][:max_tokens] if text else None
    assert found[:-1] == ([] if expected is None else [expected])


def test_long_texts_are_not_tokenised_whole(monkeypatch: pytest.MonkeyPatch):
    tokenizer = chats.tokenizer()
    longest = []
    call = type(tokenizer).__call__

    def measured(self, text, **arguments):
        longest.append(len(text))
        return call(self, text, **arguments)

    monkeypatch.setattr(type(tokenizer), "__call__", measured)
    text = "hello there, how are you today? " * 10_000
    (sequence,) = token_sequences([text], tokenizer, max_tokens=16)
    assert max(longest) <= 20 * 16
    assert len(sequence) == 16


def test_texts_get_the_special_tokens_of_the_model_and_conversations_those_of_the_template():
    tokenizer = chats.tokenizer("llama3")
    talk = [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello world"}]
    text, chat = token_sequences(["hello", talk], tokenizer, max_tokens=100)
    assert tokenizer.decode(text) == "<|begin_of_text|>hello"
    assert chat == tokenizer.apply_chat_template(talk, return_dict=False)
    assert chat.count(tokenizer.bos_token_id) == 1
    assert next(token_sequences([talk], tokenizer, max_tokens=3)) == chat[:3]


def test_max_texts_counts_sequences_and_reads_no_further():
    documents = iter(["", "one", "two", "three"])
    assert len(list(token_sequences(documents, chats.tokenizer(), max_tokens=5, max_texts=2))) == 2
    assert list(documents) == ["three"]


def test_corpora_flow_into_batches():
    corpus = Corpus(CorpusSpec("docs", "embedded", "python_docs"))
    sequences = list(token_sequences(corpus, chats.tokenizer(), max_tokens=12, max_texts=20))
    assert [len(sequence) for sequence in sequences] == [12] * 20
    assert [tuple(batch.ids.shape) for batch in batches(sequences, 8, 0, "left")] == [(8, 12), (8, 12), (4, 12)]


@pytest.mark.parametrize("documents", [[], ["", ""]])
def test_nothing_to_read_is_an_empty_corpus(documents: list[str]):
    with pytest.raises(EmptyCorpus, match="no document of the corpus has a token"):
        list(token_sequences(documents, chats.tokenizer(), max_tokens=5))
    with pytest.raises(EmptyCorpus, match="no token sequences"):
        list(batches([], 2, 0, "left"))


def test_bounds_below_one_are_refused():
    tokenizer = chats.tokenizer()
    for bounds in ({"max_tokens": 0}, {"max_tokens": 5, "max_texts": 0}):
        with pytest.raises(InvalidSetting, match="1 or more"):
            list(token_sequences(["one"], tokenizer, **bounds))
    with pytest.raises(InvalidSetting, match="batch_size of 1 or more, got 0"):
        list(batches([[1]], 0, 0, "left"))
    for sequences in ([], [[1], []]):
        with pytest.raises(InvalidSetting, match="got lengths"):
            pad(sequences, 0, "left")


HELLO = {"role": "user", "content": "hello there"}
ANSWER = {"role": "assistant", "content": "I am well, thank you. And you?"}
MORE = {"role": "user", "content": "Tell me more."}
HEADERS = {
    "chatml": "<|im_start|>assistant\n",
    "llama3": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "gemma": "<start_of_turn>model\n",
    "qwen3": "<|im_start|>assistant\n",
}


@pytest.mark.parametrize("family", HEADERS)
@pytest.mark.parametrize("max_tokens", [0, 3, 100])
def test_the_anchor_is_the_first_token_of_the_first_answer(family: str, max_tokens: int):
    tokenizer = chats.tokenizer(family)
    talk = [HELLO, ANSWER, MORE, {"role": "assistant", "content": "More, more!"}]
    (start,) = chat_starts([talk], tokenizer, max_tokens=max_tokens)
    assert tokenizer.decode(start.ids[: start.anchor]).endswith(f"{HELLO['content']}" + _between(family))
    answer = start.ids[start.anchor :]
    expected = tokenizer(ANSWER["content"], add_special_tokens=False)["input_ids"]
    assert answer == expected[:max_tokens]  # nothing of the end of the turn, nor of later turns


def _between(family: str) -> str:
    ends = {"llama3": "<|eot_id|>", "gemma": "<end_of_turn>\n"}
    return ends.get(family, "<|im_end|>\n") + HEADERS[family]


@pytest.mark.parametrize("family", HEADERS)
def test_a_conversation_without_an_answer_ends_where_one_would_begin(family: str):
    tokenizer = chats.tokenizer(family, split=chats.LLAMA3_SPLIT)  # line breaks are split alike before a text or none
    asked, answered = chat_starts([[HELLO], [HELLO, ANSWER]], tokenizer, max_tokens=5)
    assert asked.anchor == len(asked.ids)
    assert asked.ids == answered.ids[: answered.anchor]


def test_conversations_without_a_first_answer_or_with_a_long_prompt_are_left_out():
    tokenizer = chats.tokenizer("chatml")
    silent = [HELLO, {"role": "assistant", "content": ""}]
    long = [{"role": "user", "content": "hello " * 40}, ANSWER]
    kept = [HELLO, ANSWER]
    starts = list(chat_starts([silent, long, kept, kept], tokenizer, max_tokens=4, max_prompt_tokens=30, max_texts=1))
    assert starts == list(chat_starts([kept], tokenizer, max_tokens=4))
    (whole,) = chat_starts([long], tokenizer, max_tokens=4)
    just_enough = {"max_tokens": 4, "max_prompt_tokens": whole.anchor}
    assert list(chat_starts([long], tokenizer, **just_enough)) == [whole]
    with pytest.raises(EmptyCorpus, match=f"at most {whole.anchor - 1} tokens"):
        list(chat_starts([silent, long], tokenizer, max_tokens=4, max_prompt_tokens=whole.anchor - 1))


def test_an_answer_cannot_be_found_in_texts_nor_without_a_chat_template():
    with pytest.raises(InvalidSetting, match="format chat"):
        list(chat_starts(["hello"], chats.tokenizer("chatml"), max_tokens=4))
    with pytest.raises(InvalidSetting, match="no chat template"):
        list(chat_starts([[HELLO, ANSWER]], chats.tokenizer(), max_tokens=4))
    with pytest.raises(InvalidSetting, match="got -1"):
        list(chat_starts([[HELLO, ANSWER]], chats.tokenizer("chatml"), max_tokens=-1))


@pytest.mark.real_model
def test_real_tokenizer_gives_the_first_tokens_of_every_document():
    tokenizer = chats.smollm2_tokenizer()
    corpus = Corpus(CorpusSpec("docs", "embedded", "python_docs", max_documents=100))
    found = list(token_sequences(corpus, tokenizer, max_tokens=8))
    assert found == [ids[:8] for ids in tokenizer(list(corpus))["input_ids"]]
