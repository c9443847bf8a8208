"""What the benchmarks share: interleaved timing, live tensor bytes, the sides that are compared."""
