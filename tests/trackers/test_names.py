"""References, requests, names, digests and the removal of secrets: formats, so mostly round trips."""

import base64
import hashlib
import json
import string
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.trackers.harness import write_files
from trackers import ArtifactNotFound, ArtifactRef, ArtifactRequest, InvalidName, InvalidValue, parse_request
from trackers.base import check_alias, check_name
from trackers.content import folder_members
from trackers.digests import digest_file, digest_stream, wandb_digest
from trackers.values import looks_secret, to_json, without_secrets

ALLOWED = string.ascii_letters + string.digits + "-_."
names = st.text(ALLOWED, min_size=1, max_size=128).filter(lambda name: name.strip("."))
refs = st.builds(ArtifactRef, names, names, st.integers(0, 10**9 - 1))
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

HOLD_SECRETS = [
    "key", "api_key", "OPENAI_API_KEY", "apiKey", "APIKey", "wandb-api-keys", "hf_token", "Token", "password",
    "db.password.old", "clientSecret", "secret_id", "credentials",
]  # fmt: skip
HOLD_NONE = [
    "top_k", "tokens", "max_tokens", "token_count", "key_dim", "tokenizer", "monkey", "lr", "keyword", "",
]  # fmt: skip


@given(refs)
def test_a_reference_survives_its_spelling(ref: ArtifactRef) -> None:
    assert ArtifactRef.parse(str(ref)) == ref
    assert parse_request(str(ref)) == ArtifactRequest(ref.project, ref.name, f"v{ref.version}")


@given(names, names)
def test_a_request_survives_its_spelling(project: str, name: str) -> None:
    assert parse_request(name) == ArtifactRequest(None, name, "latest")
    assert parse_request(f"{project}/{name}") == ArtifactRequest(project, name, "latest")
    assert parse_request(f"{project}/{name}:best") == ArtifactRequest(project, name, "best")
    assert str(parse_request(f"{project}/{name}:best")) == f"{project}/{name}:best"
    assert str(parse_request(name)) == f"{name}:latest"


@given(st.text(max_size=140))
def test_a_name_is_taken_exactly_if_wandb_and_a_folder_take_it(text: str) -> None:
    fits = 1 <= len(text) <= 128 and set(text) <= set(ALLOWED) and set(text) != {"."}
    if fits:
        assert check_name(text, "a name") == text
    else:
        with pytest.raises(InvalidName, match="letters, digits"):
            check_name(text, "a name")


@pytest.mark.parametrize(
    "text",
    [
        "demo/pca:latest",
        "pca:v1",
        "demo/pca",
        "demo/pca:v01",
        "demo/pca:v-1",
        "a/b/c:v1",
        "demo/pca:v1\n",
        "",
    ],
)
def test_what_is_not_a_version_is_no_reference(text: str) -> None:
    with pytest.raises(InvalidName):
        ArtifactRef.parse(text)


@pytest.mark.parametrize("text", ["", "demo/", "/pca", "pca:", "pca:v01", "a/b/c", "pca:best:v1", "p q", "demo/pca:é"])
def test_a_malformed_request_is_refused(text: str) -> None:
    with pytest.raises(InvalidName):
        parse_request(text)


def test_a_version_cannot_be_an_alias() -> None:
    assert check_alias("version-3") == "version-3"
    for alias in ("v0", "v12", "v007"):
        with pytest.raises(InvalidName, match="versions"):
            check_alias(alias)


@given(json_values)
def test_json_survives(value: object) -> None:
    assert json.loads(to_json(value, "metadata")) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}, b"bytes", object()])
def test_what_json_would_change_is_refused(value: object) -> None:
    with pytest.raises(InvalidValue, match="metadata must be JSON"):
        to_json({"value": value}, "metadata")


def test_mappings_and_sequences_of_any_class_are_json() -> None:
    from types import MappingProxyType

    assert json.loads(to_json(MappingProxyType({"layers": range(3)}), "metadata")) == {"layers": [0, 1, 2]}


@pytest.mark.parametrize("key", HOLD_SECRETS)
def test_keys_that_hold_secrets_are_recognised(key: str) -> None:
    assert looks_secret(key)


@pytest.mark.parametrize("key", HOLD_NONE)
def test_keys_that_hold_none_are_kept(key: str) -> None:
    assert not looks_secret(key)


@given(json_values)
def test_removing_secrets_changes_nothing_else(value: object) -> None:
    def has_secret(part: object) -> bool:
        if isinstance(part, dict):
            return any(looks_secret(key) or has_secret(inner) for key, inner in part.items())
        return isinstance(part, list) and any(map(has_secret, part))

    cleaned = without_secrets(value)
    assert not has_secret(cleaned)
    assert has_secret(value) or cleaned == value
    assert without_secrets(cleaned) == cleaned


def test_the_nearest_name_comes_first_and_a_long_list_is_cut() -> None:
    existing = [f"demo/report-{number:02}" for number in range(20)] + ["demo/crosscoder-layer-7"]
    error = ArtifactNotFound("demo/croscoder-layer-7", existing)
    assert error.existing[0] == "demo/crosscoder-layer-7"
    assert "and 13 more" in str(error)
    assert "nothing yet" in str(ArtifactNotFound("demo/pca", []))


@given(st.binary(max_size=100), st.integers(1, 40))
def test_a_file_is_digested_alike_in_any_pieces(body: bytes, chunk: int) -> None:
    from io import BytesIO

    class Dripping(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(chunk)

    copy = BytesIO()
    file = digest_stream(Dripping(body), "name", copy_to=copy)
    assert copy.getvalue() == body
    assert file.size == len(body)
    assert file.sha256 == hashlib.sha256(body).hexdigest()
    assert file.md5 == base64.b64encode(hashlib.md5(body).digest()).decode()


def test_our_digest_is_the_one_that_the_wandb_client_computes(tmp_path: Path) -> None:
    import wandb

    folder = write_files(
        tmp_path / "made", {"b": "1", "a/b": "2", "a.b": "", "ü/é": "3", "Z": "4", "a/b.c": b"\xff" * 9}
    )
    artifact = wandb.Artifact("pca", type="learner")
    artifact.add_dir(str(folder))
    files = [replace(digest_file(file), path=path) for path, file in folder_members(folder)]
    assert wandb_digest(files) == artifact.digest


def test_a_path_that_a_manifest_line_cannot_hold_is_refused(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "made", {"two\nlines": "x"})
    with pytest.raises(InvalidName, match="printable"):
        folder_members(folder)
