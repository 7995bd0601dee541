"""The Activation Difference Lens on texts that an agent writes."""

from collections.abc import Sequence

from diffing.activations.position_means import SKIPPED, position_means
from diffing.errors import EmptyCorpus, InvalidSetting
from diffing.live_tools import LiveTool
from diffing.methods.activation_difference_lens.lenses import lens_rows
from diffing.methods.activation_difference_lens.reading import SOURCES, Reading, reading_of
from diffing.methods.base import Study
from diffing.models.pair import ModelPair
from diffing.report import Report
from diffing.specs import JSON
from diffing.text.windows import batches, token_sequences

MOST_TEXTS, MOST_TOKENS, MOST_POSITIONS = 16, 64, 8
TOP = 10
BATCH_SIZE = 8


def difference_tool(report: Report, pair: ModelPair) -> LiveTool:
    """The mean difference over the agent's texts, at the layers of the report unless another is asked for."""

    def difference_on_text(texts: list[str], positions: list[int] | None = None, layer: int | None = None) -> JSON:
        """Run texts of yours through both models, average the difference of their activations (finetuned - base) over
        the texts at some token positions, and read that mean with the logit lens. For each position you get the size of
        the mean difference over that of the base's activations, and the tokens that are read in it; those read in the
        base's mean, in the finetuned model's mean and in a random direction stand beside it. Costs one interaction per
        text.

        Args:
            texts: Plain texts, at most 16; the first 64 tokens of each are read, and one must have more than 5.
            positions: Tokens whose differences are averaged, counted from 0, at most 8; the first five by default.
            layer: Layer whose output is read; by default the middle one of those in the report.
        """
        wanted = list(range(SKIPPED)) if positions is None else positions
        chosen = _layer(report, pair) if layer is None else layer
        ids = list(token_sequences(texts, pair.tokenizer, max_tokens=MOST_TOKENS))
        padded = batches(ids, BATCH_SIZE, pad_id=pair.tokenizer.pad_token_id, side="right")
        means = position_means(pair, padded, [chosen], MOST_TOKENS)[chosen]
        if missing := [position for position in wanted if position not in means.positions]:
            raise EmptyCorpus(f"no text has a token at positions {missing}; the longest has {max(map(len, ids))}")
        reading = reading_of("texts", means, wanted, seed=0, has_sink=True)
        return {"layer": chosen, "positions": _positions(pair, reading, wanted)}

    return LiveTool("difference_on_text", difference_on_text, cost)


def cost(texts: Sequence[str], positions: Sequence[int] | None, layer: int | None) -> int:
    """One for each text."""
    if not 1 <= len(texts) <= MOST_TEXTS or not all(text.strip() for text in texts):
        raise InvalidSetting(f"expected 1 to {MOST_TEXTS} texts, none of them empty; got {len(texts)}")
    if positions is not None:
        wrong = [position for position in positions if not 0 <= position < MOST_TOKENS]
        if wrong or not 1 <= len(set(positions)) == len(positions) <= MOST_POSITIONS:
            raise InvalidSetting(
                f"positions {list(positions)}; expected 1 to {MOST_POSITIONS} different ones from 0 to "
                f"{MOST_TOKENS - 1}"
            )
    return len(texts)


def _layer(report: Report, pair: ModelPair) -> int:
    depths = report.settings["layers"]
    assert isinstance(depths, Sequence)
    layers = sorted(pair.layer_at(depth) for depth in depths if isinstance(depth, int | float))
    return layers[len(layers) // 2]


def _positions(pair: ModelPair, reading: Reading, wanted: Sequence[int]) -> list[JSON]:
    """What is read at each position; nothing where the mean difference is exactly 0."""
    found: dict[int, dict[str, dict[str, list[str]]]] = {position: {} for position in wanted}
    for row in lens_rows(Study(pair, []), [reading], TOP) if reading.positions else []:
        at = found[int(str(row["position"]))]
        at.setdefault(str(row["source"]), {}).setdefault(str(row["direction"]), []).append(str(row["token"]))
    return [
        {
            "position": position,
            "texts": int(reading.means.n_texts[reading.row(position)]),
            "relative_size": float(f"{reading.shift(position):.3g}"),
            **{source: read[source] for source in SOURCES if source in read},
        }
        for position, read in found.items()
    ]
