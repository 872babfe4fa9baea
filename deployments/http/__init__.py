"""The protocol over HTTP: an ASGI application over models that can be asked. No Ray."""
