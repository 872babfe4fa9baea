"""A small server in a process of its own: an Open Inference Protocol of one model with a fixed delay.

It stalls once when it is told to, so that a test can see who is charged for that.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Any

MODEL = {
    "name": "toy",
    "inputs": [
        {"name": "image", "datatype": "UINT8", "shape": [-1, 2, 3]},
        {"name": "scale", "datatype": "FP32", "shape": [-1, 1]},
    ],
    "outputs": [],
}


class Server:
    def __init__(self, delay_s: float, stall_after: int, stall_s: float, fail_every: int) -> None:
        self.delay_s, self.stall_after, self.stall_s = delay_s, stall_after, stall_s
        self.fail_every = fail_every
        self.served = 0

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            line, *headers = head.decode("latin-1").split("\r\n")
            fields = dict(header.lower().split(": ", 1) for header in headers if header)
            body = await reader.readexactly(int(fields.get("content-length", "0")))
            status, document = await self.answer(line.split()[1], fields, body)
            text = json.dumps(document).encode()
            writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text))
        writer.close()

    async def answer(self, path: str, fields: dict[str, str], body: bytes) -> tuple[int, Any]:
        if path == "/v2/repository/index":
            return 200, [{"name": "toy", "state": "READY"}]
        if path == "/v2/models/toy":
            return 200, MODEL
        if path != "/v2/models/toy/infer":
            return 404, {"error": "no such model"}
        self.served += 1
        if self.served == self.stall_after:
            time.sleep(self.stall_s)
        await asyncio.sleep(self.delay_s)
        if self.fail_every and self.served % self.fail_every == 0:
            return 503, {"error": "busy"}
        split = int(fields.get("inference-header-content-length", len(body)))
        return 200, {"header": json.loads(body[:split]), "raw": list(body[split:])}


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except (asyncio.IncompleteReadError, ConnectionError):
        return b""


async def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--delay-s", type=float, default=0.0)
    parser.add_argument("--stall-after", type=int, default=0)
    parser.add_argument("--stall-s", type=float, default=0.0)
    parser.add_argument("--fail-every", type=int, default=0)
    own = parser.parse_args()
    server = Server(own.delay_s, own.stall_after, own.stall_s, own.fail_every)
    listening = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    print(listening.sockets[0].getsockname()[1], flush=True)
    await listening.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
