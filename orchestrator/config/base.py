"""What every settings class shares: frozen, unknown keys refused, canonical JSON for digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pydantic import BaseModel, ConfigDict


class Settings(BaseModel):
    """Base of all settings: immutable, compared by value, unknown keys refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        ser_json_inf_nan="constants",
    )

    def plain(self) -> dict[str, Any]:
        """The settings as plain JSON values; a key `exclude_if` its default came later than saved digests."""
        return self.model_dump(mode="json")

    def given(self) -> dict[str, Any]:
        """What was not left to its default, as plain JSON values: as it stands in a run file. Some settings
        mean another thing when they are written out."""
        return self.model_dump(mode="json", exclude_unset=True)


def absent(value: object) -> bool:
    """For `Field(exclude_if=absent)`: a key that nobody set is left out of plain values."""
    return value is None


def long_form(value: Any) -> Any:
    """For a `BeforeValidator`: a plain name is short for the settings of that kind."""
    return {"kind": value} if isinstance(value, str) else value


def canonical(value: object) -> bytes:
    """UTF-8 JSON with sorted keys and no spaces: equal values give equal bytes.

    Raises:
        TypeError: a part of `value` is not plain JSON.
        ValueError: a number is NaN or infinite.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def fingerprint(value: object) -> str:
    """Hex sha256 of `canonical(value)`."""
    return hashlib.sha256(canonical(value)).hexdigest()
