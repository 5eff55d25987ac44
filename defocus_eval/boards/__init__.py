"""Packages that a leaderboard's server accepts: checked by its own rules, written whole or not at all, rehearsed."""

from defocus_eval.boards.content import Request
from defocus_eval.boards.rules import BOARDS, Board, board_named
from defocus_eval.boards.submission import Rehearsal, Submission, make_submission, rehearse

__all__ = ["BOARDS", "Board", "Rehearsal", "Request", "Submission", "board_named", "make_submission", "rehearse"]
