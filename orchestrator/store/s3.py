"""Blobs on S3, or a server that speaks its protocol and honours `If-None-Match` (MinIO, Ceph, R2, moto).

`put_if_absent` is a conditional write. Its reply may be lost and the request sent again, by us or on the way;
the second one is refused although the first one won. So each carries a random mark as metadata, and who is
refused looks whose mark is there. A folder is published by its last file, under a lease that also removing it
takes, so that no writer's files go to waste under a manifest that stays.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from orchestrator.errors import DiskFullError, InputError, NotFoundError, StoreError, first_line
from orchestrator.store.blobs import RENEW_S, Blobs
from orchestrator.store.leases import folder_lease, held
from orchestrator.store.names import check_key, is_key
from orchestrator.store.retry import patience_s, patiently

COPIES_VARIABLE = "ORCHESTRATOR_COPIES"
_URI = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])(?:/(.*))?")
_MARK = "orchestrator-writer"
_PASSING = {"SlowDown", "Throttling", "ThrottlingException", "RequestTimeout", "RequestTimeTooSkewed"}
_PASSING |= {"InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict"}
_PASSING |= {"TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "503", "500"}
_GONE = {"NoSuchKey", "404", "NotFound"}
_TIMEOUT_S = 20
IN_PARTS_BYTES = 2**30
"""Larger objects are sent in parts: S3 takes at most 5 GiB at once."""
_PART_BYTES = 2**26

_T = TypeVar("_T")


def copies_of(location: str) -> Path:
    """Folder of this user for copies of a remote store's compiled forms.

    `ORCHESTRATOR_COPIES`, or `~/.cache/orchestrator/copies`; one folder a location.
    """
    named = os.environ.get(COPIES_VARIABLE)
    root = Path(named).expanduser() if named else Path.home() / ".cache" / "orchestrator" / "copies"
    return root / hashlib.sha256(location.encode()).hexdigest()[:16]


def _in_parts() -> Any:
    from boto3.s3.transfer import TransferConfig

    return TransferConfig(
        multipart_threshold=IN_PARTS_BYTES, multipart_chunksize=_PART_BYTES, use_threads=False
    )


class S3Blobs(Blobs):
    """Objects below `s3://bucket/prefix`; region, endpoint and credentials as boto3 finds them."""

    def __init__(self, location: str, client: Any = None) -> None:
        """Of a URI; `client` is a boto3 S3 client, made from the environment when not given.

        Raises:
            InputError: the URI is malformed, or holds credentials.
            StoreError: boto3 is not installed.
        """
        found = _URI.fullmatch(location.rstrip("/"))
        if found is None:
            shown = re.sub(r"//.*@", "//...@", location)
            raise InputError("not a valid s3:// URI", shown, "write s3://bucket/folder, without credentials")
        self.bucket, self._prefix = found[1], found[2] or ""
        if self._prefix:
            check_key(self._prefix)
        self.location = location.rstrip("/")
        self._client = client if client is not None else _client()
        self._patience_s = patience_s()

    def path(self, key: str) -> Path:
        """Where this machine keeps a copy of the key."""
        return copies_of(self.location) / check_key(key)

    def shown(self, key: str) -> str:
        """The key's URI."""
        return f"{self.location}/{check_key(key)}"

    def exists(self, key: str) -> bool:
        """Whether an object has this key."""
        return self._head(key) is not None

    def size(self, key: str) -> int:
        """Bytes of an object."""
        head = self._head(key)
        if head is None:
            raise NotFoundError("no such file in the store", self.shown(key))
        return int(head["ContentLength"])

    def get(self, key: str) -> bytes:
        """All bytes of an object."""

        def call() -> bytes:
            answer = self._client.get_object(Bucket=self.bucket, Key=self._name(key))
            data: bytes = answer["Body"].read()
            if len(data) != answer["ContentLength"]:
                raise ConnectionError("the answer ended early")
            return data

        return self._call("cannot read", key, call)

    def list(self, folder: str, *, recursive: bool = True) -> list[str]:
        """Sorted keys of the objects below `folder`."""
        return sorted(key for key, _ in self._objects(folder, recursive))

    def top(self) -> set[str]:
        """Names at the root; a bucket's root is looked at alike."""
        prefix = f"{self._prefix}/" if self._prefix else ""

        def call() -> Any:
            return self._client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, Delimiter="/", MaxKeys=100)

        answer = self._call("cannot list", "", call)
        found = [one["Key"] for one in answer.get("Contents", ())]
        found += [one["Prefix"] for one in answer.get("CommonPrefixes", ())]
        return {name.removeprefix(prefix).rstrip("/") for name in found} - {""}

    def put(self, key: str, data: bytes) -> None:
        """Write an object; a reader sees the old bytes or the new."""
        name = self._name(key)

        def call() -> None:
            if len(data) < IN_PARTS_BYTES:
                self._client.put_object(Bucket=self.bucket, Key=name, Body=data)
            else:
                self._client.upload_fileobj(io.BytesIO(data), self.bucket, name, Config=_in_parts())

        self._call("cannot write", key, call)

    def put_if_absent(self, key: str, data: bytes) -> bool:
        """Write an object unless the key is taken; of many racing writers exactly one gets True."""
        mark, name = uuid.uuid4().hex, self._name(key)

        def call() -> bool:
            try:
                self._client.put_object(
                    Bucket=self.bucket, Key=name, Body=data, IfNoneMatch="*", Metadata={_MARK: mark}
                )
            except Exception as error:
                if _code(error) not in ("PreconditionFailed", "412"):
                    raise
                return False
            return True

        while not self._call("cannot write", key, call):
            head = self._head(key)
            if head is not None:
                return bool(head.get("Metadata", {}).get(_MARK) == mark)
        return True

    def put_folder(self, key: str, files: Mapping[str, bytes]) -> bool:
        """Publish a folder by its last file; False when that is there already."""
        *_, marker = files
        with held(self, folder_lease(key)):
            if self.exists(f"{key}/{marker}"):
                return False
            for left in self.list(key):
                if left.removeprefix(f"{key}/") not in files:
                    self.delete(left)
            for name, data in files.items():
                self.put(f"{key}/{check_key(name)}", data)
            return True

    def delete(self, key: str) -> None:
        """Remove an object; none there is no error."""
        name = self._name(key)
        self._call("cannot remove", key, lambda: self._client.delete_object(Bucket=self.bucket, Key=name))

    def delete_folder(self, key: str, *, marker: str = "", older_s: float | None = None) -> bool:
        """Remove a folder, its marker first; a reader that had looked for the marker may miss the rest."""
        with held(self, folder_lease(key)):
            if older_s is not None and self.age_s(f"{key}/{marker}") <= older_s:
                return False
            if marker:
                self.delete(f"{key}/{marker}")
            for name in self.list(key):
                self.delete(name)
            return True

    def touch(self, key: str) -> bool:
        """Copy an object onto itself, which gives it a new time and leaves its bytes."""
        name = self._name(key)

        def call() -> bool:
            try:
                self._client.copy_object(
                    Bucket=self.bucket,
                    Key=name,
                    CopySource={"Bucket": self.bucket, "Key": name},
                    MetadataDirective="REPLACE",
                    Metadata={"orchestrator-touched": uuid.uuid4().hex},
                )
            except Exception as error:
                if _code(error) not in _GONE:
                    raise
                return False
            return True

        return self._call("cannot touch", key, call)

    def renew(self, folder: str, *, marker: str, older_s: float = RENEW_S) -> bool:
        """Set the marker's time to now unless it is young; False when there is none."""
        key = f"{folder}/{marker}"
        age_s = self.age_s(key)
        if age_s == float("inf"):
            return False
        if age_s < older_s:
            return True
        with held(self, folder_lease(folder)):
            return self.touch(key)

    def ages_s(self, folder: str) -> dict[str, float]:
        """Seconds since each object below `folder` was written, by the server's clock."""
        return {key: _age_s(entry, entry["Listed"]) for key, entry in self._objects(folder, True)}

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of each object below `folder`, by its key."""
        return {key: int(entry["Size"]) for key, entry in self._objects(folder, True)}

    def age_s(self, key: str) -> float:
        """Seconds since the object was written, by the server's clock; infinite when there is none."""
        head = self._head(key)
        return float("inf") if head is None else _age_s(head, _date(head))

    def clean(self, older_s: float = 86_400.0) -> int:
        """Nothing: a killed writer leaves no object half written, and gc removes folders without a marker."""
        del older_s
        return 0

    def _name(self, key: str) -> str:
        return f"{self._prefix}/{check_key(key)}" if self._prefix else check_key(key)

    def _head(self, key: str) -> dict[str, Any] | None:
        name = self._name(key)

        def call() -> dict[str, Any] | None:
            try:
                found: dict[str, Any] = self._client.head_object(Bucket=self.bucket, Key=name)
            except Exception as error:
                if _code(error) not in _GONE:
                    raise
                return None
            return found

        return self._call("cannot read", key, call)

    def _objects(self, folder: str, recursive: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        prefix = f"{self._name(folder)}/"
        asked = {"Bucket": self.bucket, "Prefix": prefix, **({} if recursive else {"Delimiter": "/"})}
        cut = len(self._prefix) + 1 if self._prefix else 0
        while True:
            answer = self._call("cannot list", folder, partial(self._client.list_objects_v2, **asked))
            for entry in answer.get("Contents", ()):
                if is_key(entry["Key"][cut:]):
                    yield entry["Key"][cut:], {**entry, "Listed": _date(answer)}
            if not answer.get("IsTruncated"):
                return
            asked["ContinuationToken"] = answer["NextContinuationToken"]

    def _call(self, doing: str, key: str, call: Callable[[], _T]) -> _T:
        try:
            return patiently(call, _passes, patience_s=self._patience_s)
        except StoreError:
            raise
        except Exception as error:
            raise self._explain(error, doing, self.shown(key) if key else self.location) from error

    def _explain(self, error: Exception, doing: str, place: str) -> StoreError:
        code = _code(error)
        if code in _GONE:
            return NotFoundError("no such file in the store", place)
        if code == "NoSuchBucket":
            return NotFoundError("no such bucket", self.bucket, "make it, or check --store")
        if code in ("AccessDenied", "403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken"):
            return StoreError(f"{doing} ({code})", place, "check the credentials and what they may do")
        if code == "RequestTimeTooSkewed":
            return StoreError(f"{doing} (this machine's clock is wrong)", place, "set it right and run again")
        if code in ("QuotaExceeded", "XMinioStorageFull"):
            return DiskFullError("no space is left in the store", place, "free space and run again")
        if type(error).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            return StoreError(
                f"{doing} (no credentials)", place, "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret"
            )
        return StoreError(f"{doing} ({first_line(error)})", place, "check the network and run again")


def _client() -> Any:
    try:
        import boto3
        from botocore.config import Config
    except ImportError as error:
        raise StoreError(
            "stores on s3:// need boto3", None, "pip install 'ensemble-orchestrator[s3]'"
        ) from error
    settings = Config(
        # One try a call: the tries are ours, so that a conditional write knows of them.
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=_TIMEOUT_S,
        read_timeout=_TIMEOUT_S,
        max_pool_connections=32,
    )
    return boto3.session.Session().client("s3", config=settings)


def _code(error: Exception) -> str:
    """The error code of a botocore ClientError; empty for other errors."""
    answer = getattr(error, "response", None)
    return str(answer.get("Error", {}).get("Code", "")) if isinstance(answer, dict) else ""


def _passes(error: Exception) -> bool:
    """Whether a call is worth another try: throttled, a fault of the server, or no whole answer."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict) and "Error" in answer:
        status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return _code(error) in _PASSING or status >= 500 or status == 429
    # botocore's own kinds are known by name, so that this module needs no boto3 to be imported.
    names = {kind.__name__ for kind in type(error).__mro__}
    return isinstance(error, (ConnectionError, TimeoutError)) or bool(
        names & {"HTTPClientError", "ConnectionError", "IncompleteReadError", "ReadTimeoutError"}
        or names & {"ResponseStreamingError", "ProtocolError", "ResponseParserError", "ChecksumMismatch"}
    )


def _date(answer: Mapping[str, Any]) -> float:
    """The server's clock as an answer tells it, in seconds since 1970."""
    headers = answer["ResponseMetadata"]["HTTPHeaders"]
    return parsedate_to_datetime(headers["date"]).timestamp()


def _age_s(entry: Mapping[str, Any], now: float) -> float:
    return float(now - entry["LastModified"].timestamp())
