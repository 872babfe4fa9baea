"""A bare handler under uvicorn that takes an upload and throws it away: the ceiling for large bodies."""

from __future__ import annotations

import argparse
from typing import Any

import uvicorn


async def application(scope: Any, receive: Any, send: Any) -> None:
    """ASGI."""
    if scope["type"] != "http":
        return
    parts, more = [], True
    while more:
        message = await receive()
        parts.append(message.get("body", b""))
        more = message.get("more_body", False)
    text = b'{"bytes":%d}' % len(b"".join(parts))
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(text))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": text})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    own = parser.parse_args()
    uvicorn.run(application, host="127.0.0.1", port=own.port, log_level="warning", lifespan="off")
