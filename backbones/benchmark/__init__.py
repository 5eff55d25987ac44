"""Times what this package runs, beside what others run: `tools/benchmark.py` is its command."""
