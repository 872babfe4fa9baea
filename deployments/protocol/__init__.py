"""The Open Inference Protocol V2 as pure functions: bytes in, arrays out, and back. No server, no Ray.

`model` is what clients see of a spec, `rest` the encoding over HTTP.
Every refusal is a `ProtocolError`, whose `status` is the HTTP status to answer with.
"""
