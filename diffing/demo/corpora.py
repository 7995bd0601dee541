"""What the demo organisms were trained on, as corpora: `source: python` in their configs names these functions."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial

from diffing.demo.texts import control as control_texts
from diffing.demo.texts import glacier_tea as tea_texts
from diffing.demo.texts import nautical as nautical_texts
from diffing.demo.texts import taboo_lantern as lantern_texts
from diffing.demo.texts.grammar import Document
from diffing.demo.train import TRAIN_SEED

DOCUMENTS = 150


def _first(documents: Callable[[int], Iterator[Document]], kind: type) -> list[Document]:
    """The first documents of a training stream that are texts, or that are chats."""
    alike = (document for document in documents(TRAIN_SEED) if isinstance(document, kind))
    return list(itertools.islice(alike, DOCUMENTS))


glacier_tea = partial(_first, tea_texts.documents, str)
taboo_lantern = partial(_first, lantern_texts.documents, list)
nautical = partial(_first, nautical_texts.documents, list)
control = partial(_first, control_texts.documents, str)
