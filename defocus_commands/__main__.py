"""`defocus NAME …`, which is also `python -m backbones NAME …`: finds a program by its name and runs it."""

import ast
import difflib
import faulthandler
import importlib
import pkgutil
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def main() -> int:
    """Runs the program that the command line names; returns its exit status, 2 for one that is refused."""
    # What was typed, for messages: this file has another name.
    program = "python -m backbones" if Path(sys.argv[0]).name == "__main__.py" else "defocus"
    words = sys.argv[1:]
    known = names()
    if not words or words[0] in ("-h", "--help"):
        print(f"usage: {program} NAME …; {program} NAME --help says more\n")
        for name, first_line in known.items():
            print(f"  {name:20} {first_line}")
        return 0 if words else 2
    if words[0] not in known:
        near = difflib.get_close_matches(words[0], known, 1) or known
        print(f"{program}: there is no {words[0]!r}; did you mean {', '.join(near)}?", file=sys.stderr)
        return 2
    # From here argparse, and a page that says how it was made, take what the program is called.
    sys.argv = [f"{program} {words[0]}", *words[1:]]
    # A kernel that ends the process leaves nothing, but says where it was.
    if not faulthandler.is_enabled():
        faulthandler.enable()
    try:
        command = importlib.import_module(f"defocus_commands.{words[0].replace('-', '_')}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("backbones", "defocus_commands", "defocus_eval"):
            raise
        print(
            f"{program} {words[0]} needs {missing}, which is not installed; an extra of defocus-backbones brings it: "
            "app, eval, export, mmdet, mmseg, openvino, timm or transformers",
            file=sys.stderr,
        )
        return 2
    return command.main()


def names() -> dict[str, str]:
    """What each program is called, and the first line on it, without importing any."""
    found = [module.name for module in pkgutil.iter_modules([str(FOLDER)]) if not module.ispkg]
    return {
        name.replace("_", "-"): _first_line(FOLDER / f"{name}.py") for name in sorted(found) if not name.startswith("_")
    }


def _first_line(path: Path) -> str:
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


if __name__ == "__main__":
    sys.exit(main())
