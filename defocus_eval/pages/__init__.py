"""Pages: one HTML file that shows a run, or compares two, and needs nothing else."""

from defocus_eval.pages.page import Question, write_page
from defocus_eval.pages.provenance import RunFiles

__all__ = ["Question", "RunFiles", "write_page"]
