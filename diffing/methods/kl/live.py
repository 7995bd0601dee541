"""The KL divergence on texts that an agent writes."""

from collections.abc import Sequence

from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.lenses.divergence import Divergence, next_token_changes, text_divergences
from diffing.live_tools import LiveTool
from diffing.models.pair import ModelPair
from diffing.specs import JSON
from diffing.text.windows import token_sequences

MOST_TEXTS, MOST_TOKENS = 16, 128
PEAKS, EXPECTED = 3, 5
"""Of each text, the tokens after which most has changed; of each, the vocabulary items that have."""
BATCH_SIZE = 8


def kl_tool(pair: ModelPair) -> LiveTool:
    """KL(finetuned || base) after each token."""

    def kl_on_text(texts: list[str]) -> JSON:
        """Compare what both models expect as the next token, after each token of texts of yours, by KL(finetuned ||
        base) in nats: how much finetuning changed what is expected there. For each text, in order, you get the mean,
        each token with the value after it, and at the largest values the tokens whose probability changed most. Costs
        one interaction per text.

        Args:
            texts: Plain texts, at most 16; the first 128 tokens of each are read.
        """
        ids = list(token_sequences(texts, pair.tokenizer, max_tokens=MOST_TOKENS))
        if len(ids) < len(texts):
            raise EmptyCorpus("a text has no token; write longer ones")
        values = text_divergences(pair, ids, [Divergence.KL_FINETUNED_BASE], batch_size=BATCH_SIZE).values
        return [
            {
                "mean": _short(float(found.mean())),
                "tokens": [
                    [pair.tokenizer.decode([token]), _short(value)]
                    for token, value in zip(tokens, found[:, 0].tolist(), strict=True)
                ],
                "peaks": _peaks(pair, tokens, found[:, 0].tolist()),
            }
            for tokens, found in zip(ids, values, strict=True)
        ]

    return LiveTool("kl_on_text", kl_on_text, cost)


def cost(texts: Sequence[str]) -> int:
    """One for each text."""
    if not 1 <= len(texts) <= MOST_TEXTS or not all(text.strip() for text in texts):
        raise InvalidSetting(f"expected 1 to {MOST_TEXTS} texts, none of them empty; got {len(texts)}")
    return len(texts)


def _peaks(pair: ModelPair, tokens: list[int], values: Sequence[float]) -> list[JSON]:
    """The largest values of a text that are not 0, with what changed there."""
    places = sorted((place for place, value in enumerate(values) if value), key=lambda place: -values[place])[:PEAKS]
    if not places:
        return []
    changes = next_token_changes(pair, [tokens[: place + 1] for place in places], EXPECTED, BATCH_SIZE)
    return [
        {
            "after": pair.tokenizer.decode(tokens[: place + 1]),
            "kl": _short(values[place]),
            "changed": [
                {
                    "token": pair.tokenizer.decode([int(id)]),
                    "probability_base": _short(float(base)),
                    "probability_finetuned": _short(float(finetuned)),
                }
                for id, base, finetuned in zip(ids, bases, finetuneds, strict=True)
            ],
        }
        for place, ids, bases, finetuneds in zip(
            places, changes.ids, changes.probability_base, changes.probability_finetuned, strict=True
        )
    ]


def _short(value: float) -> float:
    return float(f"{value:.3g}")
