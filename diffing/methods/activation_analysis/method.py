"""Activation analysis: how far, where and which way a finetune moves the residual stream, token by token.

The first look at a pair: it fits nothing. For each layer, the size and angle of every token's difference, with their
distributions; the texts where they are largest; and mean differences over all tokens, the first positions and the
tokens of the chat template, read with the logit lens and a patchscope beside the base's own mean and a random
direction. Activations come from a cache that holds what is asked for, and otherwise straight from both models.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import ClassVar

import torch
from transformers import PreTrainedTokenizerBase

from diffing.activations.store import ActivationCache
from diffing.axes import Side
from diffing.errors import EmptyCorpus, InvalidSetting, MissingInput
from diffing.lenses.paired_texts import Selection, cached_blocks, streamed_blocks
from diffing.lenses.patchscope import INTERSECTION
from diffing.lenses.readouts import Label, both_lenses
from diffing.lenses.token_shifts import ALL
from diffing.methods.activation_analysis import tables
from diffing.methods.activation_analysis.figures import figures
from diffing.methods.activation_analysis.findings import findings, no_difference
from diffing.methods.activation_analysis.measuring import LayerShifts, Limits, Measured
from diffing.methods.base import Study
from diffing.models.pair import ModelPair
from diffing.report import Finding, Report, Scalar, Table
from diffing.text.chat import chat_text
from diffing.text.corpus import Corpus


@dataclass(frozen=True)
class ActivationAnalysis:
    """Settings of activation analysis."""

    name: ClassVar[str] = "activation_analysis"

    layers: Sequence[float | int] = (0.5,)
    """Depths to analyse, all in one pass: a float is a share of the depth, an int an absolute layer."""
    context: int = 128
    """Tokens read of each text."""
    max_texts: int = 1_000
    """Texts read of each corpus."""
    skip_first: int = 1
    """Leading tokens of each text that count nowhere: position 0 is an attention sink in most models."""
    batch_size: int = 16
    positions: Sequence[int] = (0, 1, 2, 3, 4)
    """Positions that have a mean difference of their own, if they are not left out."""
    percentiles: Sequence[float | int] = (1, 5, 25, 50, 75, 95, 99)
    examples: int = 10
    """Windows shown per corpus, layer and score."""
    window: Sequence[int] = (24, 12)
    """Tokens shown before and after the peak."""
    least_tokens: int = 10
    """Tokens that a mean must be over to be read by the lenses; the mean over all tokens always is."""
    top: int = 20
    """Tokens kept of each readout."""
    patchscope_scales: Sequence[float] = (0.5, 1.0, 2.0)
    """Lengths of the patched vector, in mean norms of the finetuned residual stream."""
    patchscope_intersection: int = INTERSECTION

    def __post_init__(self) -> None:
        if not 0 <= self.skip_first < self.context:
            raise InvalidSetting(
                f"skip_first={self.skip_first}, context={self.context}; expected 0 <= skip_first < context"
            )
        if outside := [each for each in self.positions if not 0 <= each < self.context]:
            raise InvalidSetting(f"positions {outside} are not among the {self.context} that are read")
        if not all(0 <= each <= 100 for each in self.percentiles):
            raise InvalidSetting(f"percentiles={list(self.percentiles)}; expected numbers from 0 to 100")
        if len(self.window) != 2 or min(self.window) < 0 or min(self.examples, self.least_tokens) < 1:
            raise InvalidSetting(
                f"window={list(self.window)}, examples={self.examples}, least_tokens={self.least_tokens}; expected two "
                "numbers of 0 or more, 1 or more, and 1 or more"
            )
        if any(length <= 0 for length in self.patchscope_scales):
            raise InvalidSetting("patchscope_scales are lengths: expected numbers above 0")

    def can_read(self, cache: ActivationCache, pair: ModelPair) -> bool:
        """Whether the cache has every activation that would be read of its corpus."""
        return self._selection(pair).held_by(cache)

    def run(self, study: Study) -> Report:
        """Raises EmptyCorpus for a corpus of which no token is left, MissingInput for no corpus at all."""
        if not study.corpora:
            raise MissingInput(f"{self.name} reads texts: give one or more, for example corpus=[python_docs]")
        template = _template_tokens(study.pair.tokenizer)
        measured = [each for corpus in study.corpora for each in self._measure(study, corpus, template)]
        differing = [each for each in measured if each.differs]
        found: dict[str, Table] = {
            "reading": tables.reading_table(measured),
            "summary": tables.summary_table(measured, sorted(set(self.percentiles))),
            "mean_vectors": tables.mean_table(measured),
        }
        if differing:
            found |= {"windows": tables.window_table(differing, study.pair.tokenizer), **self._lenses(study, differing)}
        claims = findings(measured, found, self.least_tokens) if differing else [no_difference(measured)]
        if not template:
            claims.append(Finding("The tokenizer has no chat template, so no template token has a mean of its own."))
        return Report(
            method=self.name,
            pair=study.pair.spec,
            settings=asdict(self),
            corpora=[corpus.spec for corpus in study.corpora],
            no_difference=not differing,
            scalars=_scalars(max(measured, key=lambda each: each.relative_size)),
            tables=found,
            tensors=tables.tensors(measured),
            figures=figures(measured),
            findings=claims,
        )

    def _selection(self, pair: ModelPair) -> Selection:
        layers = sorted({pair.layer_at(depth) for depth in self.layers})
        return Selection(layers, self.context, self.max_texts, self.skip_first, pair.tokenizer.bos_token_id)

    def _measure(self, study: Study, corpus: Corpus, template: dict[int, str]) -> list[Measured]:
        """One corpus at all layers."""
        selection, pair = self._selection(study.pair), study.pair
        limits = Limits(
            sorted(set(self.positions)), template, sorted(set(self.percentiles)), self.examples, self.window
        )
        passes = {layer: LayerShifts(layer, pair.d_model, limits, pair.device) for layer in selection.layers}
        cache = next((each for each in study.caches if _is_of(each, corpus) and self.can_read(each, pair)), None)
        if cache is not None:
            source = f"cache, {cache.spec.dtype}"
            n_texts = self._from_cache(study, cache, selection, passes)
        else:
            source = f"models, {pair.spec.base.dtype}"
            n_texts = self._from_models(study, corpus, selection, passes)
        found = [each.result(corpus.spec.name, source, n_texts) for each in passes.values()]
        if None in found:
            raise EmptyCorpus(
                f"corpus '{corpus.spec.name}': none of the {n_texts} texts read has a token after its first "
                f"{self.skip_first} and the beginning-of-sequence tokens, which are left out of each; lower "
                "diffing.method.skip_first, or choose a corpus of longer texts"
            )
        return [each for each in found if each is not None]

    def _from_cache(
        self, study: Study, cache: ActivationCache, selection: Selection, passes: dict[int, LayerShifts]
    ) -> int:
        n_texts = min(cache.n_documents, self.max_texts)
        for layer, layer_pass in passes.items():
            with study.progress.stage(f"cached texts of {cache.corpus}, layer {layer}", n_texts) as advance:
                for block in cached_blocks(cache, layer, selection):
                    layer_pass.add(block)
                    advance(len(block.texts))
        return n_texts

    def _from_models(self, study: Study, corpus: Corpus, selection: Selection, passes: dict[int, LayerShifts]) -> int:
        n_texts = 0
        with study.progress.stage(f"texts of {corpus.spec.name} read by both sides", None) as advance:
            for blocks in streamed_blocks(study.pair, corpus, selection, self.batch_size):
                for layer, block in blocks.items():
                    passes[layer].add(block)
                read = len(next(iter(blocks.values())).texts)
                n_texts += read
                advance(read)
        return n_texts

    def _lenses(self, study: Study, differing: Sequence[Measured]) -> dict[str, Table]:
        """Every mean of tokens enough, read by the finetuned model, and the controls; the base's mean by the base."""
        lens: list[dict[str, object]] = []
        scope: list[dict[str, object]] = []
        with study.progress.stage("logit lens and patchscope", len(differing)) as advance:
            for each in differing:
                generator = torch.Generator().manual_seed(study.seed)
                named = {mean.group: mean.mean.float() for mean in each.means if self._is_read(mean.group, mean.count)}
                named = {group: mean for group, mean in named.items() if mean.any()}
                named[tables.BASE_MEAN] = each.overall.base_mean.float()
                named[tables.RANDOM] = torch.randn(each.overall.base_mean.shape, generator=generator)
                labels: list[Label] = [{"corpus": each.corpus, "layer": each.layer, "vector": name} for name in named]
                read_by = [Side.BASE if name == tables.BASE_MEAN else Side.FINETUNED for name in named]
                rows = both_lenses(
                    study.pair, torch.stack(list(named.values())), labels, read_by, each.layer,
                    each.summaries["norm_finetuned"].mean, self.patchscope_scales, self.patchscope_intersection,
                    self.top,
                )  # fmt: skip
                lens += rows[0]
                scope += rows[1]
                advance(1)
        return {"logit_lens": tables.logit_lens_table(lens), "patchscope": tables.patchscope_table(scope)}

    def _is_read(self, group: str, count: int) -> bool:
        return group == ALL or count >= self.least_tokens


def _is_of(cache: ActivationCache, corpus: Corpus) -> bool:
    """Whether the cache is of this corpus, by its content: names and places may be others."""
    return replace(cache.spec.tokens, corpus=corpus.spec).digest == cache.spec.tokens.digest


def _template_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """Ids and names of the tokens that the chat template writes around an empty user turn; none without a template."""
    if not tokenizer.chat_template:
        return {}
    text = chat_text(tokenizer, [{"role": "user", "content": ""}], add_generation_prompt=True)
    return {id: str(tokenizer.decode([id])) for id in tokenizer(text, add_special_tokens=False)["input_ids"]}


def _scalars(each: Measured) -> dict[str, Scalar]:
    """Headline numbers of the corpus and layer with the largest relative shift."""
    shift, cosine = each.summaries["norm_difference"], each.summaries.get("cosine_distance")
    found = {
        "layer": Scalar(each.layer, f"layer of the largest relative shift, on {each.corpus} (absolute, from 0)"),
        "tokens": Scalar(shift.count, "tokens measured there"),
        "norm_difference": Scalar(shift.mean, "mean L2 norm of the difference there (residual stream units)"),
        "relative_shift": Scalar(each.relative_size, "that norm over the base's mean norm (ratio)"),
        "consistency": Scalar(
            tables.consistency(each.overall),
            "norm of the mean difference over the mean norm of the differences: 1 if all tokens shift alike (ratio)",
        ),
    }
    if cosine is not None:
        found["cosine_distance"] = Scalar(cosine.mean, "mean of 1 - cos(base, finetuned) there (0 to 2)")
    return found
