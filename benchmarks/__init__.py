"""One module per figure that the README claims: `python -m benchmarks.<name> --json FILE`."""
