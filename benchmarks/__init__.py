"""Speed against named peers, in interleaved rounds of one run: ``python -m benchmarks``."""
