"""The programs of `defocus`, one a file: a command line around what `backbones` and `defocus_eval` know."""
