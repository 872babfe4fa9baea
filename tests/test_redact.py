"""Secrets leave no text, and other words stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.redact import REMOVED, has_password, is_secret, known_secrets, redact

SECRET = "s3cr3t-V4lue"


@pytest.mark.parametrize(
    "text",
    [
        f"RAY_AUTH_TOKEN={SECRET}",
        f"export AWS_SECRET_ACCESS_KEY='{SECRET}'",
        f'{{"password": "{SECRET}", "user": "me"}}',
        f"api_key: {SECRET}",
        f"Authorization: Basic {SECRET}",
        f"Authorization: Bearer {SECRET}",
        f"authorization: 'Basic {SECRET}'",
        f"s3://me:{SECRET}@storage:9000/bucket",
        f"redis://:{SECRET}@head:6379",
        f"s3://AKIAIOSFODNN7EXAMPLE:wJalrXUtnFEMI/K7MDENG/{SECRET}@bucket/x",
        f"--store=pg://me:a@b/{SECRET}@storage:9000/bucket",
        f"{{'at': 'pg://me:it's{SECRET}@storage'}}",
        f"MLFLOW_TRACKING_PASSWORD = {SECRET}, next",
        f"-----BEGIN PRIVATE KEY-----\n{SECRET}\n-----END PRIVATE KEY-----",
        f"-----BEGIN EC PRIVATE KEY-----\n{SECRET}",
        f"got 401 for X-Ray-Authorization: Bearer {SECRET}",
        f'{{"message": "got {{\\"api_key\\": \\"{SECRET}\\"}}"}}',
        f'{{"password": "ab\\"{SECRET}"}}',
    ],
    ids=range(18),
)
def test_secrets_are_taken_out(text: str) -> None:
    assert SECRET not in redact(text)
    assert REMOVED in redact(text)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "kind: tokens",
        "tokenizer: words",
        "RAY_AUTH_MODE=token",
        "RAY_AUTH_TOKEN_PATH=/home/me/.ray/auth_token",
        "digest: 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b",
        "http://127.0.0.1:8265/api/jobs/",
        "http://127.0.0.1:8265/api/jobs/ of me@here",
        '{"at":"http://127.0.0.1:8265/api","by":"me@here"}',
        "epoch 3: loss 0.1234, validation 0.9876",
    ],
    ids=range(9),
)
def test_other_words_stay(text: str) -> None:
    assert redact(text) == text


def test_amazon_key_ids_and_web_tokens() -> None:
    text = "AKIAIOSFODNN7EXAMPLE and eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc"
    assert redact(text) == f"{REMOVED} and {REMOVED}"


def test_known_values_are_taken_out_wherever_they_stand(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("f00dfeed\n", encoding="utf-8")
    variables = {"RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"), "MY_API_KEY": SECRET, "SHORT_TOKEN": "abc"}
    assert known_secrets(variables) == (SECRET, "f00dfeed")
    assert redact(f"got {SECRET} and f00dfeed", known_secrets(variables)) == f"got {REMOVED} and {REMOVED}"


def test_names() -> None:
    assert is_secret("RAY_AUTH_TOKEN")
    assert is_secret("aws_secret_access_key")
    assert is_secret("ORCHESTRATOR_KEY")
    assert not is_secret("ORCHESTRATOR_SIGNING_KEY")  # a path
    assert not is_secret("RAY_AUTH_TOKEN_PATH")
    assert not is_secret("PATH")


@pytest.mark.timeout(20)
def test_a_long_word_of_many_parts_takes_no_longer_than_other_text() -> None:
    addresses = "tcp://10.0.0.1:80,tcp://10.0.0.2:80," * 8_000
    assert redact(addresses) == addresses
    text = "1." * 20_000
    assert redact(text) == text
    assert redact(f"{text}token={SECRET}") == f"{text}token={REMOVED}"


@pytest.mark.parametrize(
    ("address", "found"),
    [
        ("https://files:8443/data@2024/rows.parquet", False),
        ("http://files:8443/a,s3://me:word@storage/b", True),
        ("http://:8443/a@b", False),
        ("s3://me:8443@storage/b", True),
        ("s3://me:word/8443@storage/b", True),
    ],
)
def test_a_port_before_a_path_is_no_password(address: str, found: bool) -> None:
    assert has_password(address) == found
