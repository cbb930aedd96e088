"""Every error a user can cause, each saying what was expected, what was found and what to do."""

from __future__ import annotations


class XnorError(Exception):
    """Base of all errors of this package; the command line turns it into exit code 2.

    expected, got, remedy : the three parts of the message; `remedy` may be empty.
    """

    def __init__(self, expected: str, got: str, remedy: str = "") -> None:
        self.expected, self.got, self.remedy = expected, got, remedy
        message = f"expected {expected}, got {got}"
        super().__init__(f"{message}. {remedy}" if remedy else message)


class ModelFileError(XnorError):
    """A model file that is damaged, hostile, or newer than this version."""


class ConvertError(XnorError):
    """A checkpoint that no importer can bring over faithfully."""


class ModelError(XnorError):
    """A model whose layers do not fit together."""


class ShapeError(XnorError):
    """An array of the wrong shape, or a size a kernel cannot hold exactly."""


class FrameError(XnorError):
    """A frame that is not uint8[H, W, 3]."""


class VideoError(XnorError):
    """A video that cannot be opened, or holds no frame."""


class EvaluateError(XnorError):
    """Labels that cannot be read, or that do not fit the model or the video."""


class XnorWarning(UserWarning):
    """Something the user should know of that does not stop the work."""
