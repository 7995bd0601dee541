"""What a run may keep of the values it is given: JSON only, and nothing that looks like a secret."""

import json
import re
from collections.abc import Mapping, Sequence

from trackers.errors import InvalidValue

# `api_key`, `hfToken` and `KEY` end in one of the first; `client_secret_id` has one of the second anywhere.
# What only begins with such a word (`key_dim`, `token_count`) or contains it (`tokens`, `monkey`) is kept.
SECRET_ENDINGS = {"key", "keys", "token", "apikey", "apikeys"}
SECRET_WORDS = {"secret", "secrets", "password", "passwords", "passwd", "passphrase", "credentials"}


def looks_secret(key: str) -> bool:
    """Whether a config key of this name is likely to hold a password or an access token."""
    words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+", key)
    lowered = [word.lower() for word in words]
    return bool(lowered) and (lowered[-1] in SECRET_ENDINGS or not SECRET_WORDS.isdisjoint(lowered))


def without_secrets(value: object) -> object:
    """The same value, less every mapping entry, at any depth, whose key looks like a secret."""
    if isinstance(value, Mapping):
        return {key: without_secrets(inner) for key, inner in value.items() if not looks_secret(str(key))}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return [without_secrets(inner) for inner in value]
    return value


def to_json(value: object, what: str) -> str:
    """`value` as JSON text; `InvalidValue` where that would lose something."""
    try:
        return json.dumps(value, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise InvalidValue(
            f"{what} must be JSON (text, finite numbers, true/false/null, lists, mappings): {error}"
        ) from error


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview):
        return list(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
