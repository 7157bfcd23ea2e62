"""Errors raised by the library.

Each error also inherits the builtin a caller would expect, so `except ValueError` keeps working.
Messages name the layer or file, what was found, what was wanted, and the remedy.
"""


class CompressmError(Exception):
    """Base of every error the library raises on purpose."""


class InvalidSystemError(CompressmError, ValueError):
    """A state space system has inconsistent shapes, a wrong dtype, or values that are not finite."""


class UnstableSystemError(CompressmError, ValueError):
    """A system has a pole on or outside the stability boundary where a stable one is needed."""


class DerivativeError(CompressmError, RuntimeError):
    """A derivative of a second or higher order was asked for where only the first is known."""


class UnsupportedReductionError(CompressmError, ValueError):
    """The wanted reduction does not exist for this system or cannot be stored by this layer."""


class AdapterError(CompressmError, TypeError):
    """A layer has no adapter, two adapters, or an adapter that misreads it."""


class AdapterLawError(CompressmError, AssertionError):
    """An adapter breaks one of the laws that `compressm.testing.check_adapter` runs."""


class SurgeryError(CompressmError, RuntimeError):
    """Parameters, buffers or optimizer state cannot be replaced; nothing was changed."""


class TiedParametersError(SurgeryError):
    """A parameter that a cut would change belongs to another module, or to another layer, as well."""


class StaleModelError(CompressmError, RuntimeError):
    """A model changed after something was prepared from it."""


class CheckpointError(CompressmError, ValueError):
    """A checkpoint is truncated, altered, foreign, or does not fit the model."""


class ConfigError(CompressmError, ValueError):
    """A setting is unknown, has the wrong type, or contradicts another one."""


class DataError(CompressmError, ValueError):
    """A data set is missing, damaged, or does not have the documented form."""


class MissingDependencyError(CompressmError, ImportError):
    """A package that only some features need is not installed."""


class DistributedError(CompressmError, RuntimeError):
    """The processes of one run disagree, or one of them failed; go on from the last checkpoint."""
