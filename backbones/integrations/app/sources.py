"""Networks that a user names: which framework they are of, and how they are opened."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from backbones.checkpoints import CheckpointError
from backbones.integrations.app.predictions import Opened
from backbones.integrations.frameworks import FrameworkError
from backbones.integrations.networks import is_lazy

_FORMS = (
    "a folder that transformers saved, or CONFIG.py:CHECKPOINT of mmdet, mmseg or Detectron2 (a lazy config); "
    "defocus convert-checkpoint makes such a folder of other checkpoints"
)


@dataclass(frozen=True)
class Source:
    """A network as it is named on the command line.

    Attributes:
        path: A folder of transformers, or the config.
        checkpoint: File of the config's weights; None for a folder.
    """

    path: Path
    checkpoint: str | None

    @classmethod
    def read(cls, word: str) -> Source:
        """The source that a word of the command line names.

        Raises:
            ValueError: The word has another form, or a file of it is not there.
        """
        path, colon, checkpoint = word.partition(":")
        if Path(word).is_dir():
            return cls(Path(word), None)
        if not colon or not path.endswith(".py") or not checkpoint:
            raise ValueError(f"{word} is not {_FORMS}")
        absent = [name for name in (path, checkpoint) if "://" not in name and not Path(name).is_file()]
        if absent:
            raise ValueError(f"{absent[0]} does not exist (looked from {Path.cwd()})")
        return cls(Path(path), checkpoint)

    @property
    def framework(self) -> str:
        """The module of this package that opens it."""
        if self.checkpoint is None:
            return "transformers"
        return "detectron2" if is_lazy(self.path) else "openmmlab"

    def open(self, device: str = "cpu") -> Opened:
        """Builds the network and loads its weights.

        Raises:
            ValueError: It cannot be opened; the message says why.
        """
        try:
            if self.framework == "transformers":
                from backbones.integrations.app.transformers import open_folder

                return open_folder(self.path, device)
            if self.framework == "detectron2":
                from backbones.integrations.app.detectron2 import open_lazy_config as open_config
            else:
                from backbones.integrations.app.openmmlab import open_config
            return open_config(str(self.path), self.checkpoint, device)
        except (CheckpointError, FrameworkError, ValueError, OSError) as error:
            raise ValueError(str(error)) from error
        # A config is a program of the user's, which raises anything.
        except Exception as error:
            raise ValueError(f"{self.path} cannot be built ({type(error).__name__}: {error})") from error
