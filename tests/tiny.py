"""Tiny random-weight models of every supported family, with one tokenizer, saved as ordinary model folders."""

from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from diffing.specs import ModelSpec, PairSpec, VariantSpec

VOCAB, WIDTH, LAYERS = 320, 32, 4
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXTS = [
    "The harbour was quiet in the morning, and the boats lay still beside the wall.",
    "A short line.",
    "Bread needs flour, water, salt and time; the rest is patience and a warm corner of the room.",
    "When the train came in, nobody got off, and the driver looked at his watch twice.",
    'Numbers such as 17, 42 and 1135 appear here, with (brackets) and "quotes".',
    "She read the letter again, folded it, and put it back between the pages of the book.",
]
_COMMON = {
    "vocab_size": VOCAB, "hidden_size": WIDTH, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "tie_word_embeddings": False,
}  # fmt: skip
FAMILIES = ("llama", "gemma2", "gemma3", "qwen2", "qwen3", "mistral", "gpt2", "gpt_neox")


def config(family: str, **changes: object) -> PretrainedConfig:
    """A configuration small enough to run in milliseconds."""
    values = _COMMON | changes
    if family == "llama":
        return LlamaConfig(**values)
    if family == "gemma2":
        return Gemma2Config(**values, head_dim=8, sliding_window=16, final_logit_softcapping=30.0)
    if family == "gemma3":
        return Gemma3TextConfig(**values, head_dim=8, sliding_window=16)
    if family == "qwen2":
        return Qwen2Config(**values)
    if family == "qwen3":
        return Qwen3Config(**values, head_dim=8)
    if family == "mistral":
        return MistralConfig(**values, sliding_window=None)
    if family == "gpt2":
        return GPT2Config(
            vocab_size=VOCAB, n_embd=WIDTH, n_layer=values["num_hidden_layers"], n_head=4, n_positions=256,
            bos_token_id=1, eos_token_id=2, pad_token_id=0,
        )  # fmt: skip
    return GPTNeoXConfig(**{k: v for k, v in values.items() if k != "num_key_value_heads"})


def model(family: str = "llama", seed: int = 0, **changes: object) -> PreTrainedModel:
    """Random weights, larger than the initialisation's, so that blocks and positions really differ."""
    torch.manual_seed(seed)
    made = AutoModelForCausalLM.from_config(config(family, **changes)).eval().requires_grad_(False)
    for name, value in made.named_parameters():
        if value.ndim > 1:
            value.mul_(8.0 if "embed" not in name and "wte" not in name else 20.0)
        elif "norm" in name or "ln_" in name:
            value.add_(torch.randn_like(value) * 0.2)
    return made


@cache
def tokenizer(chat_template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """Byte-level BPE over a few sentences; ids 0 to 2 are padding, start and end."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(TEXTS, trainer)
    made = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )  # fmt: skip
    made.chat_template = chat_template
    return made


def save_model(folder: Path, family: str = "llama", seed: int = 0, **changes: object) -> Path:
    model(family, seed, **changes).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def save_adapter(folder: Path, base: PreTrainedModel, seed: int = 1, scale: float = 0.3, **lora: object) -> Path:
    """A LoRA adapter with random, non-zero weights for both of its factors."""
    torch.manual_seed(seed)
    defaults = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    adapted = get_peft_model(base, LoraConfig(**(defaults | lora)))
    for name, value in adapted.named_parameters():
        if "lora_" in name:
            value.data = torch.randn_like(value) * scale
    adapted.save_pretrained(folder)
    return folder


def model_spec(folder: Path, **changes: object) -> ModelSpec:
    return ModelSpec(**({"name": "tiny", "id": str(folder)} | changes))


def pair_spec(base: Path, kind: str = "identical", finetuned: Path | None = None, **changes: object) -> PairSpec:
    variant = VariantSpec(kind=kind, id="" if finetuned is None else str(finetuned), **changes)
    return PairSpec(base=model_spec(base), finetuned=variant, organism="planted")
