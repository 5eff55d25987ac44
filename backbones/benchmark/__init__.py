"""Times what this package runs, beside what others run: `defocus benchmark` is its command."""
