"""`python -m backbones NAME …` does what `defocus NAME …` does."""

import sys

from defocus_commands.__main__ import main

if __name__ == "__main__":
    sys.exit(main())
