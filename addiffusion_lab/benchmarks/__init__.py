"""Public benchmarks, each read in the format that its authors publish; nothing of them is shipped here."""
