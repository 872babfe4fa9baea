"""What is measured: quality, latency and cost."""
