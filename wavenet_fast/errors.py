"""The errors this package raises. Each message says what was given, what is possible, and what to do."""


class WavenetFastError(Exception):
    """Base of every error raised on purpose; the command line turns it into exit code 2 without a traceback."""


class ConfigError(WavenetFastError, ValueError):
    """A configuration field is missing, unknown or out of range; the message names its path."""


class CheckpointError(WavenetFastError, ValueError):
    """A checkpoint directory or one of its files cannot be used."""


class ShapeError(WavenetFastError, ValueError):
    """An array has the wrong rank, size or axis order."""


class InputError(WavenetFastError, ValueError):
    """An argument has the right shape and a value that cannot be used (NaN, a negative seed, temperature 0 …)."""


class AudioError(WavenetFastError, ValueError):
    """A sound or mel file cannot be read, or does not fit the voice."""


class StateError(WavenetFastError, ValueError):
    """A saved stream state belongs to another model, version or number format."""


class BackendError(WavenetFastError, RuntimeError):
    """A backend, device, number format or instruction set was asked for that is not available here."""


class GateError(WavenetFastError, RuntimeError):
    """An engine computes something else than the network it was given, so that its speed means nothing."""


class MelMismatchWarning(UserWarning):
    """The mel does not look like the mels this voice was trained on."""


class PatchWarning(UserWarning):
    """A patched model was asked for something that its own code has to do; the message says why."""


class BackendWarning(UserWarning):
    """A GPU is there and `auto` does not use it, or compiled kernels cannot be kept; the message says why."""


class EmulationError(WavenetFastError, RuntimeError):
    """The PTX executor cannot translate a kernel, or the kernel it ran did something wrong; `line` is the PTX line."""

    def __init__(self, message: str, line: int | None = None, report: str = "") -> None:
        super().__init__(message)
        self.line = line
        self.report = report


class RaceError(EmulationError):
    """ThreadSanitizer found two accesses of a kernel that nothing orders; `report` is its report."""


class BoundsError(EmulationError):
    """AddressSanitizer found an access out of bounds; `report` is its report."""
