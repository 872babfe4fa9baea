"""Taking secrets out of texts that leave this machine."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

REMOVED = "[removed]"
SHORTEST = 6
"""Characters of a secret that is looked for as it stands: shorter ones would strike out words."""

_NAME = (
    r"[\w.-]*(?:secret|token|passw(?:or)?d|passwd|api[_-]?key|access[_-]?key|private[_-]?key|credential"
    r"|authorization|cookie|orchestrator[_-]key)[\w.-]*"
)
_SECRET_NAME = re.compile(_NAME, re.IGNORECASE)
_HARMLESS_NAME = re.compile(r"(?:_path|_file|_mode|tokens|tokenizer)$", re.IGNORECASE)
# Amazon's secrets hold slashes, so it is all up to the word's last @; the bound keeps long words cheap.
_PASSWORD = re.compile(r"""(?<=://)[^\s/@:]*:(?:[^\s"']{1,1024}|[^\s/@]+)(?=@)""")
"""A user and a password in an address; a port and a path with an @ are taken for them, too."""
_SURE_PASSWORD = re.compile(rf"(?<=://)(?![^\s/@:]*:\d{{1,5}}/){_PASSWORD.pattern}")
_PATTERNS = (
    re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL),
    _PASSWORD,
    re.compile(r"(?<=Bearer )[^\s\"',]+", re.IGNORECASE),
    re.compile(r"(?<=uthorization: )(?:\w+ )?[^\s\"',]+"),
    re.compile(r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),
    re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]+"),
)
# name = value, name: value, "name": "value"; without quotes the value ends at a blank, comma or bracket.
_PAIR = re.compile(
    rf"""(?P<name>(?<![\w.-]){_NAME})(?P<between>["']?\s*[=:]\s*)(?P<value>\[removed\]|"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*'|[^\s"',}})\]]+)""",
    re.IGNORECASE,
)
# The same as JSON within JSON: \"name\": \"value\".
_INNER = re.compile(
    rf"""(?P<name>(?<![\w.-]){_NAME})(?P<between>(?P<quote>\\+["'])\s*:\s*(?P=quote))"""
    r"""(?P<value>(?:(?!(?<!\\)(?P=quote))[^\n])+)""",
    re.IGNORECASE,
)


def is_secret(name: str) -> bool:
    """Whether a variable or key of this name holds a secret, by its name."""
    return bool(_SECRET_NAME.fullmatch(name)) and not _HARMLESS_NAME.search(name)


def has_password(address: str) -> bool:
    """Whether an address like `s3://user:password@host` holds a password; not where a port may be meant."""
    return bool(_SURE_PASSWORD.search(address))


def known_secrets(environment: Mapping[str, str] | None = None) -> tuple[str, ...]:
    """Secrets of this process: values of variables that are called so, and Ray's token; the longest first."""
    variables = os.environ if environment is None else environment
    found = {value for name, value in variables.items() if is_secret(name)}
    token = Path(variables.get("RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token")).expanduser()
    with contextlib.suppress(OSError, ValueError):
        found.add(token.read_text(encoding="utf-8").strip())
    return tuple(sorted((value for value in found if len(value) >= SHORTEST), key=len, reverse=True))


def redact(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without secrets: those given, values of keys that are called so, passwords in addresses, keys.

    Args:
        text: of a log, a settings file, JSON or YAML.
        secrets: values that are taken out wherever they stand.
    """
    for secret in secrets:
        text = text.replace(secret, REMOVED)
    for pattern in _PATTERNS:
        text = pattern.sub(REMOVED, text)
    text = _INNER.sub(_without_value, text)
    return _PAIR.sub(_without_value, text)


def _without_value(found: re.Match[str]) -> str:
    if _HARMLESS_NAME.search(found["name"]) or found["value"].strip("\"'") in ("", REMOVED):
        return found[0]
    quote = found["value"][0] if found["value"][0] in "\"'" else ""
    return f"{found['name']}{found['between']}{quote}{REMOVED}{quote}"
