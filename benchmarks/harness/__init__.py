"""What the benchmarks share: cases, processes to measure them in, timing, tables, rooflines."""
