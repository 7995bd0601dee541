"""What a service that caches prompts charges: the longest prefix that a marked block of an earlier request ended is
read, the rest up to the last mark is written, and what follows is neither."""

import hashlib
import json
from collections.abc import Sequence

from tests.agents.script import Acts, Tokens

LOOK_BACK = 20
"""So many blocks before a mark may an earlier request's prefix end to be found."""


class PromptCache:
    """Of one service; nothing in it ever expires."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def charge(self, blocks: Sequence[str], marks: Sequence[int]) -> Tokens:
        """For an input in blocks; `marks` are the indices of those that end a prefix to keep."""
        ends, seen, count = [], hashlib.sha256(), 0
        for block in blocks:
            seen.update(block.encode() + b"\0")
            count += size(block)
            ends.append((seen.digest(), count))
        near = {at for mark in marks for at in range(max(0, mark - LOOK_BACK + 1), mark + 1)}
        read = max((ends[at][1] for at in near if ends[at][0] in self._known), default=0)
        kept = max((ends[mark][1] for mark in marks), default=0)
        self._known |= {ends[mark][0] for mark in marks}
        return Tokens(uncached=count - max(kept, read), written=max(0, kept - read), read=read)


def size(text: str) -> int:
    """Its tokens; an empty text has none."""
    return -(-len(text) // 4)


def written(answer: Acts) -> Tokens:
    """The output of an answer."""
    thinking = size(answer.thinking)
    spoken = size(answer.text) + sum(size(name) + size(json.dumps(dict(given))) for name, given in answer.calls)
    return Tokens(output=thinking + spoken, thinking=thinking)
