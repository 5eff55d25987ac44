"""Programs of a checkout: those of `defocus` as files that need no installation, and what a checkout alone has."""
