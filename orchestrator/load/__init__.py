"""Load on a server: open and closed loop over HTTP, without coordinated omission."""
