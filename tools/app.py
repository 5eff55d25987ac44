"""`defocus app` from a checkout."""

import sys
from pathlib import Path

# Run as a file, Python looks beside it, not in the repository.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from defocus_commands.app import main

if __name__ == "__main__":
    sys.exit(main())
