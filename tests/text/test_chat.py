"""The oracles know the templates, and locate tokens by their bytes: they use neither marks nor offsets."""

from collections.abc import Callable
from typing import cast

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

from diffing.errors import InvalidSetting, SchemaMismatch
from diffing.text.chat import render_chat
from tests.text import chats

Messages = list[dict[str, str]]
TURN = {
    "chatml": ("<|im_start|>{}\n", "<|im_end|>\n"),
    "llama3": ("<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"),
    "gemma": ("<start_of_turn>{}\n", "<end_of_turn>\n"),
    "qwen3": ("<|im_start|>{}\n", "<|im_end|>\n"),
    "plain": ("{}: ", "\n\n"),
}
TRIMS = {"llama3", "gemma"}
CONTENT = st.text("ab. \n\té漢🙂<\ue000", max_size=12) | st.sampled_from(
    ["  hello there\n", "\n\nHello", "user", "[/INST]"]
)
TALK = st.lists(CONTENT, min_size=1, max_size=5)


def talk(contents: list[str]) -> Messages:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


def pieces_of(family: str, messages: Messages) -> list[tuple[str, bool]]:
    """The rendered conversation as (text, written by the assistant), built without the template."""
    pieces = [(chats.BEGIN, False)] if family in ("llama3", "gemma", "mistral") else []
    for message in messages:
        answers = message["role"] == "assistant"
        content = message["content"]
        if family == "mistral":
            before, after = (" ", "</s>") if answers else ("[INST] ", " [/INST]")
            content = content.strip() if answers else content
        else:
            before, after = TURN[family]
            before = before.format("model" if answers and family == "gemma" else message["role"])
            content = content.strip() if family in TRIMS else content
        pieces += [(before, False), (content, answers), (after, False)]
    return pieces


def byte_mask(tokenizer: PreTrainedTokenizerFast, ids: list[int], pieces: list[tuple[str, bool]]) -> list[bool]:
    """A token is the assistant's if each of its bytes is, a special token's bytes being those of its spelling."""
    owners = [answers for text, answers in pieces for _ in text.encode()]
    byte_of = {character: byte for byte, character in bytes_to_unicode().items()}
    mask, at = [], 0
    for token in tokenizer.convert_ids_to_tokens(ids):
        spelled = token.encode() if token in chats.SPECIAL else bytes(byte_of[character] for character in token)
        assert "".join(text for text, _ in pieces).encode()[at : at + len(spelled)] == spelled
        mask.append(all(owners[at : at + len(spelled)]))
        at += len(spelled)
    assert at == len(owners)
    return mask


@pytest.mark.parametrize("trim_offsets", [False, True])
@pytest.mark.parametrize("family", chats.TEMPLATES)
@given(contents=TALK)
@example(contents=["hi", "", "hi", "   "])
@example(contents=["hi", "hello\n"])
@example(contents=["hi", "\n\nhello", "assistant", "hello\n\n", "more"])
def test_mask_is_that_of_the_bytes_the_assistant_wrote(family: str, trim_offsets: bool, contents: list[str]):
    tokenizer = chats.tokenizer(family, trim_offsets=trim_offsets)
    messages = talk(contents)
    pieces = pieces_of(family, messages)
    chat = render_chat(tokenizer, messages)
    assert chat.text == "".join(text for text, _ in pieces)
    assert chat.assistant_mask == byte_mask(tokenizer, chat.ids, pieces)


def masked(tokenizer: PreTrainedTokenizerBase, messages: Messages) -> list[str]:
    """The runs of masked tokens, decoded."""
    chat = render_chat(tokenizer, messages)
    runs: list[list[int]] = [[]]
    for id, mine in zip(chat.ids, chat.assistant_mask, strict=True):
        if mine:
            runs[-1].append(id)
        elif runs[-1]:
            runs.append([])
    return [cast(str, tokenizer.decode(run)) for run in runs if run]


@pytest.mark.parametrize("build", [chats.tokenizer, chats.metaspace_tokenizer])
@pytest.mark.parametrize("family", chats.TEMPLATES)
def test_masked_tokens_spell_the_assistant_and_no_header_or_end_of_turn(build: Callable, family: str):
    tokenizer = build(family)
    messages = talk(["There now?", "(one, the first.)", "assistant model", "(two, the second!)"])
    assert masked(tokenizer, messages) == ["(one, the first.)", "(two, the second!)"]


@pytest.mark.parametrize("family", chats.TEMPLATES)
def test_ids_are_those_of_the_template_with_one_beginning_of_text(family: str):
    tokenizer = chats.tokenizer(family, trim_offsets=True)
    messages = talk(["hello", "hello world", "more"])
    chat = render_chat(tokenizer, messages, add_generation_prompt=True)
    assert chat.ids == tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    assert chat.ids.count(tokenizer.bos_token_id) == (family in ("llama3", "gemma", "mistral"))


def test_mask_is_that_of_a_template_with_generation_blocks():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chats.tokenizer().backend_tokenizer, bos_token=chats.BEGIN)
    tokenizer.chat_template = (
        "{%- for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}{% endgeneration %}"
        "{% else %}{{ m['content'] }}{% endif %}<|im_end|>\n{% endfor %}"
    )
    messages = talk(["Who are you?", "I am Zorp.", "Again?", "Zorp, I said."])
    expected = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    chat = render_chat(tokenizer, messages)
    assert chat.ids == expected["input_ids"]
    assert list(map(int, chat.assistant_mask)) == list(expected["assistant_masks"])
    assert any(chat.assistant_mask)


def test_thinking_counts_where_the_template_keeps_it_and_leaves_no_trace_where_it_drops_it():
    thought = "<think>\nFirst I ponder.\n</think>\n\nSo: hello."
    messages = talk(["Hi.", thought, "And?", thought])
    assert masked(chats.tokenizer("qwen3"), messages) == ["So: hello.", "First I ponder.", "So: hello."]
    assert masked(chats.tokenizer("qwen3"), messages[:3]) == ["So: hello."]
    twice = talk(["Hi.", "<think>one</think>two</think>three", "And?"])
    assert masked(chats.tokenizer("qwen3"), twice) == ["three"]
    assert masked(chats.tokenizer("chatml"), messages[:2]) == [thought]


def test_a_dropped_message_has_no_tokens():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chats.tokenizer().backend_tokenizer)
    tokenizer.chat_template = "{%- for m in messages[-2:] %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
    messages = talk(["a", "Zorp one", "b", "Zorp two"])
    assert render_chat(tokenizer, messages).text == "<|im_start|>b<|im_end|><|im_start|>Zorp two<|im_end|>"
    assert masked(tokenizer, messages) == ["Zorp two"]


@pytest.mark.parametrize(
    "rewrite", ["m['content'] | upper", "m['content'][:3]", "m['content'] * 2", "m['content'] | replace(' ', '')"]
)
def test_content_that_the_template_rewrites_is_refused(rewrite: str):
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=chats.tokenizer().backend_tokenizer)
    tokenizer.chat_template = f"{{%- for m in messages %}}<|im_start|>{{{{ {rewrite} }}}}<|im_end|>{{% endfor %}}"
    with pytest.raises(SchemaMismatch, match="it rewrites 'hello there' otherwise"):
        render_chat(tokenizer, talk(["hi", "hello there"]))


def test_a_rejected_conversation_names_its_roles():
    with pytest.raises(SchemaMismatch, match=r"roles \[assistant, user\]: roles must alternate"):
        render_chat(chats.tokenizer("gemma"), talk(["a", "b", "c"])[1:])


def test_a_tokenizer_without_template_says_what_to_set():
    with pytest.raises(InvalidSetting, match=r"no chat template; set model\.tokenizer_id"):
        render_chat(chats.tokenizer(), talk(["hi"]))


def test_truncation_set_on_the_tokenizer_is_neither_obeyed_nor_changed():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=chats.tokenizer().backend_tokenizer, chat_template=chats.CHATML
    )
    tokenizer.backend_tokenizer.enable_truncation(2)
    messages = talk(["hello", "hello world"])
    assert render_chat(tokenizer, messages).ids == render_chat(chats.tokenizer("chatml"), messages).ids
    assert tokenizer.backend_tokenizer.truncation["max_length"] == 2


@pytest.mark.real_model
def test_real_tokenizer_masks_exactly_the_answers():
    tokenizer = chats.smollm2_tokenizer()
    messages = talk(["What is tea?", "A drink made of leaves.\n\n- green\n- black 🍵", "assistant", " Yes?"])
    chat = render_chat(tokenizer, messages)
    assert masked(tokenizer, messages) == [messages[1]["content"], messages[3]["content"]]
    assert chat.ids == tokenizer.apply_chat_template(messages, return_dict=False)
    assert chat.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
