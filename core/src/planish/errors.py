"""What planish raises when the user, a file or a plugin is at fault: one line, no traceback in the CLI."""

from __future__ import annotations


class PlanishError(Exception):
    """A mistake that the user can mend. The text is one line: the field, the value, the valid choices."""


class ConfigError(PlanishError):
    """A recipe or a method's options do not validate."""


class UnknownMethod(PlanishError):
    """No installed plugin offers the method that was asked for."""


class BrokenPlugin(PlanishError):
    """The plugin that offers the method could not be loaded; the text carries the reason."""


class ArtifactError(PlanishError):
    """A model folder is incomplete, damaged, unsafe or of the wrong kind."""


class DataError(PlanishError):
    """Data is missing, too short, or not the data that the run was started with."""


class RunError(PlanishError):
    """A run folder is in use, belongs to another run, or cannot be written."""


class MissingRequirement(PlanishError):
    """A module or program that the method needs is not installed; the text says how to get it."""
