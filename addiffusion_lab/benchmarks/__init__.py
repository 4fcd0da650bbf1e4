"""Public benchmarks, each read in its published format; no benchmark data is shipped."""
