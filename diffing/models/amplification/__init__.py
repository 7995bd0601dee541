"""Amplifying what finetuning changed: W = W_base + weight * (W_finetuned - W_base), per layer and module.

twice = Amplification.of({"name": "twice", "rules": [{"weight": 2, "layers": {"start": 0.0, "end": 0.8}}]})
pair.amplification(twice).rows()              # what is matched, and with which weight, before anything runs
with pair.amplified(twice) as model:          # an ordinary model, for the length of the block
    generate(model, pair.tokenizer, prompts, sampling)
pair.export_amplified(twice, folder)          # an ordinary PEFT folder
"""

from diffing.models.amplification.grammar import (
    GROUPS,
    PRESETS,
    AddedAdapter,
    Amplification,
    LayerRange,
    Rule,
)
from diffing.models.amplification.parts import Part
from diffing.models.amplification.resolving import Resolution

__all__ = ["GROUPS", "PRESETS", "AddedAdapter", "Amplification", "LayerRange", "Part", "Resolution", "Rule"]
