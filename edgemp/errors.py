"""Every error that edgemp raises on purpose: what was wrong, where, and what to do about it."""

from __future__ import annotations


class EdgempError(Exception):
    """Base of all edgemp errors. `exit_code` is what the command line returns for it."""

    exit_code = 2


class BoundError(EdgempError):
    """A promised bound does not hold (fidelity, budget, verification, placement)."""

    exit_code = 1


# The description, the network and its samples


class PipelineError(EdgempError):
    """The pipeline description is invalid."""


class ResolveError(PipelineError):
    """A reference (`package:resource`, `module:factory`, a path) does not resolve."""


class FunctionMissingError(ResolveError):
    """A host function named by the pipeline cannot be imported here."""


class NetworkError(EdgempError):
    """A network cannot be read, exported or given a static shape."""


class UnsupportedOpError(NetworkError):
    """An engine does not implement an operator of the network."""


class FusionError(NetworkError):
    """A fusion block is built with, or given, what it cannot fuse."""


class SamplesError(EdgempError):
    """Samples are missing, of the wrong shape or type, or not finite."""


class TargetError(EdgempError):
    """A target is unknown or its description is invalid."""


# Compiling


class BackendError(EdgempError):
    """A backend is unknown, broken or refuses a network."""


class ToolchainMissing(BackendError):
    """The toolchain of a backend is not installed; the message names what to install."""


class TrialError(EdgempError):
    """A candidate's own process crashed, hung or ran out of memory."""


class FidelityError(BoundError):
    """No candidate holds the fidelity bound."""


class BudgetError(BoundError):
    """No combination of candidates fits the size or latency budget."""


class PlacementError(BoundError):
    """An engine would run nodes elsewhere than the bundle states."""


class VerificationError(BoundError):
    """Golden outputs do not match on this engine."""


class CacheError(EdgempError):
    """The stage cache cannot be used."""


class OutputError(EdgempError):
    """A file cannot be written, or must not be: it is an input, or of another kind."""


class CompressError(EdgempError):
    """A module, its training data or an option cannot be used for compression or distillation."""


class UnsupportedModuleError(CompressError):
    """A torch module has no structure that a transform knows how to change."""


class CheckpointError(CompressError):
    """A checkpoint is damaged, or another run's."""


class TrainingMemoryError(CompressError):
    """Memory does not suffice for a single training sample."""


class DivergedError(CompressError):
    """Training ran into NaN or infinity again after every roll-back."""


# The bundle


class BundleError(EdgempError):
    """Something is wrong with a bundle file."""


class NotABundleError(BundleError):
    """The file is missing, truncated or not a zip archive."""


class MemberError(BundleError):
    """A member is missing, undeclared, truncated or its hash differs."""


class UnsafeMemberError(BundleError):
    """A member's name or type could escape the archive (absolute, `..`, symlink)."""


class BundleSizeError(BundleError):
    """A member unpacks to more than declared or allowed (a zip bomb)."""


class SchemaVersionError(BundleError):
    """The manifest's schema version is not one this edgemp reads."""


class ManifestError(BundleError):
    """The manifest does not validate against its schema."""


class UnknownBackendError(BundleError):
    """The bundle needs a backend that is not installed here."""


class WrongTargetError(BundleError):
    """The bundle was compiled for another kind of machine."""


class SignatureError(BundleError):
    """The signature is missing, or does not match the manifest and key."""


# The runtime


class InputError(EdgempError):
    """A value given to `step` is missing, malformed or not what the signal declares."""


class TimestampError(InputError):
    """A time stamp is not finite or lies before the previous one."""


class EnrolError(InputError):
    """A class cannot be enrolled, forgotten, saved or loaded."""


class ConcurrentUseError(EdgempError):
    """A runtime was entered from a second thread while in use."""


class ClosedError(EdgempError):
    """The runtime or stream was already closed."""
