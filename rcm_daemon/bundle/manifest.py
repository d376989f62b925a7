"""manifest.json of a model bundle: what the two networks expect, give and were made from."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from rcm_daemon.errors import BundleError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SCHEMA = "rcm-bundle-1"
MANIFEST_FILE = "manifest.json"
ESTIMATOR_FILE = "estimator.json"
"""Of bundles whose recurrent network gives evidence; others do without."""
REQUIRED_FILES = ("cnn.onnx", "rcn.onnx", "golden.npz", "MODEL_CARD.md")
RCN_INPUTS = ("embeddings", "z_um", "weight")
NOTICE = "trained on phantoms, research use only, not a medical device"
MAX_MANIFEST_BYTES = 1 << 20
MAX_FILE_BYTES = 1 << 30

Kind = Literal["single", "context", "partial", "whole"]
OtherVariant = Literal["int8", "fp16"]
VariantName = Literal["fp32", OtherVariant]
"""fp32 is cnn.onnx itself, which every bundle has."""
PlainName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")]
PositiveUm = Annotated[float, Field(gt=0, le=1000)]
Share = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class InputField(_Record):
    """The one field of view the CNN takes: [rows, columns], grey levels and pitch in um per pixel."""

    shape: tuple[Annotated[int, Field(ge=16, le=8192)], Annotated[int, Field(ge=16, le=8192)]]
    dtype: Literal["uint8"]
    pixel_size_um: PositiveUm


class BundleFile(_Record):
    """SHA-256 (lower-case hex) and length of one file of the folder."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    n_bytes: Annotated[int, Field(ge=0, le=MAX_FILE_BYTES)]


class Variant(_Record):
    """The same CNN in other numbers: what it computes, and what that cost on validation stacks.

    Attributes
    ----------
    network, golden
        Files of the folder: the ONNX graph, and the embeddings that it gives of the golden slices.
    embedding_tolerance
        Largest difference from these on any provider, as a share of their largest value.
    accuracy, accuracy_fp32
        Shares of the validation slices labelled as the readers do, with this CNN and with cnn.onnx.
    agreement
        Share of them that both label alike.
    """

    network: PlainName
    golden: PlainName
    embedding_tolerance: Annotated[float, Field(gt=0, le=0.5)]
    n_calibration_slices: Annotated[int, Field(ge=0)]
    n_validation_slices: Annotated[int, Field(ge=1)]
    accuracy: Share
    accuracy_fp32: Share
    agreement: Share


class Provenance(_Record):
    """Where the networks come from: data, seed, commands, versions, ISO date, metrics by flat name."""

    data_digest: str
    seed: int
    commands: tuple[str, ...]
    versions: dict[str, str]
    created: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}")]
    metrics: dict[str, float]


class Manifest(_Record):
    """One manifest.json; every key but variants is required and no other allowed.

    Attributes
    ----------
    kind
        Where a label comes from. single: the slice alone; context: a CNN over the slice between its two
        neighbours, so that nothing can be said before the slice below is there; partial: a recurrent network
        over a few neighbours, as far as they are there; whole: one over all slices so far.
    max_slices
        Longest stack the recurrent network takes, 0 = no limit.
    attention_half_width
        D of the Toeplitz attention with kernel 2D+1, 0 where there is none.
    z_step_um
        Smallest and largest slice spacing of the training stacks, in um.
    rcn_inputs
        Inputs of rcn.onnx, in the order embeddings, z_um, weight.
    files
        Every file of the folder but the manifest itself, by plain name.
    variants
        Other forms of the CNN that the folder holds, int8 or fp16.
    """

    schema_name: Annotated[Literal["rcm-bundle-1"], Field(alias="schema")]
    name: PlainName
    version: PlainName
    kind: Kind
    max_slices: Annotated[int, Field(ge=0)]
    classes: tuple[Literal["epidermis"], Literal["dej"], Literal["dermis"]]
    input: InputField
    embedding_size: Annotated[int, Field(ge=1, le=65536)]
    attention_half_width: Annotated[int, Field(ge=0)]
    z_step_um: tuple[PositiveUm, PositiveUm]
    rcn_inputs: Annotated[tuple[Literal["embeddings", "z_um", "weight"], ...], Field(min_length=1)]
    files: dict[PlainName, BundleFile]
    variants: dict[OtherVariant, Variant] = {}
    provenance: Provenance
    notice: Annotated[str, Field(min_length=1)]

    @field_validator("z_step_um")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("the smallest step must come first")
        return value

    @field_validator("rcn_inputs")
    @classmethod
    def _in_order(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value[0] != "embeddings" or value != tuple(name for name in RCN_INPUTS if name in value):
            raise ValueError("inputs must be embeddings, then z_um, then weight, each at most once")
        return value

    @field_validator("files")
    @classmethod
    def _all_there(cls, value: dict[str, BundleFile]) -> dict[str, BundleFile]:
        if missing := [name for name in REQUIRED_FILES if name not in value]:
            raise ValueError(f"must list {', '.join(missing)}")
        if MANIFEST_FILE in value:
            raise ValueError(f"must not list {MANIFEST_FILE} itself")
        return value

    @model_validator(mode="after")
    def _variants_there(self) -> Manifest:
        named = {name for variant in self.variants.values() for name in (variant.network, variant.golden)}
        if missing := sorted(named - self.files.keys()):
            raise ValueError(f"files must list {', '.join(missing)}, which variants name")
        return self

    @property
    def cnn_shape(self) -> tuple[int, ...]:
        """What the CNN takes: [rows, columns], or [3, rows, columns] with the neighbours above and below."""
        return (3, *self.input.shape) if self.kind == "context" else self.input.shape

    @classmethod
    def load(cls, folder: Path | str) -> Manifest:
        """Read and check `folder`/manifest.json; the other files are not looked at.

        Raises
        ------
        BundleError
            Naming every fault of the manifest at once.
        """
        return cls.parse(read_manifest_bytes(Path(folder)), Path(folder) / MANIFEST_FILE)

    @classmethod
    def parse(cls, data: bytes, where: Path | str) -> Manifest:
        """Check manifest bytes; `where` only names them in errors."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            faults = [_fault(item["loc"], item["msg"]) for item in error.errors(include_url=False)]
            raise BundleError(
                f"a bundle manifest must follow {SCHEMA}, got {len(faults)} "
                f"fault{'s' * (len(faults) > 1)} ({'; '.join(faults)}) in {where}"
            ) from error


def _fault(location: tuple[int | str, ...], message: str) -> str:
    place = ".".join(str(part) for part in location) or "document"
    return f"{place}: {message.removeprefix('Value error, ')}"


def read_manifest_bytes(folder: Path) -> bytes:
    """Bytes of `folder`/manifest.json; BundleError when there is none, it is a link, or it is too long."""
    path = folder / MANIFEST_FILE
    if not os.path.isdir(folder):  # False, too, where the folder may not be looked into
        raise BundleError(f"a bundle must be a folder with {MANIFEST_FILE}, found no folder at {folder}")
    return read_plain_file(path, MAX_MANIFEST_BYTES)


def read_plain_file(path: Path, max_bytes: int) -> bytes:
    """Read one regular file, following no link and reading at most `max_bytes`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        found = "a link" if os.path.islink(path) else (error.strerror or "an error")
        raise BundleError(f"a bundle holds plain readable files, got {found.lower()} at {path}") from error
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise BundleError(f"a bundle holds plain files only, found something else at {path}")
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise BundleError(f"a bundle file must have at most {max_bytes} bytes, got more in {path}")
    return data


def bundle_digest(manifest_bytes: bytes) -> str:
    """SHA-256 (hex) of manifest.json, which names every other file's digest: the bundle's identity."""
    return hashlib.sha256(manifest_bytes).hexdigest()


def variant_digest(digest: str, variant: VariantName) -> str:
    """Identity (hex) of what makes embeddings: the bundle's own for fp32, another one for each variant.

    Results and the journal carry it, so that embeddings of two variants are never taken for one another's.
    """
    return digest if variant == "fp32" else hashlib.sha256(f"{digest} {variant}".encode()).hexdigest()


def digests_of(manifest: Manifest, digest: str) -> dict[VariantName, str]:
    """`variant_digest` of everything that a bundle of this digest holds."""
    held: tuple[VariantName, ...] = ("fp32", *manifest.variants)
    return {variant: variant_digest(digest, variant) for variant in held}


def write_manifest(
    folder: Path | str,
    *,
    name: str,
    version: str,
    kind: Kind,
    field_shape: tuple[int, int],
    pixel_size_um: float,
    z_step_um: tuple[float, float],
    rcn_inputs: Sequence[str],
    provenance: Mapping[str, Any],
    max_slices: int = 0,
    attention_half_width: int = 0,
    embedding_size: int = 256,
    notice: str = NOTICE,
    variants: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write manifest.json over the files now in `folder`, taking their lengths and digests.

    Parameters
    ----------
    folder
        Holds at least cnn.onnx, rcn.onnx, golden.npz and MODEL_CARD.md, and nothing that is not to ship.
    provenance
        Keys data_digest, seed, commands, versions, created, metrics, as in `Provenance`.
    variants
        By name, each with the keys of `Variant`; none by default.

    Raises
    ------
    BundleError
        A file is missing or the description breaks a rule; nothing is written then.
    """
    folder = Path(folder)
    document = {
        "schema": SCHEMA,
        "name": name,
        "version": version,
        "kind": kind,
        "max_slices": max_slices,
        "classes": ["epidermis", "dej", "dermis"],
        "input": {"shape": list(field_shape), "dtype": "uint8", "pixel_size_um": pixel_size_um},
        "embedding_size": embedding_size,
        "attention_half_width": attention_half_width,
        "z_step_um": list(z_step_um),
        "rcn_inputs": list(rcn_inputs),
        "files": _listed(folder),
        "variants": dict(variants or {}),
        "provenance": dict(provenance),
        "notice": notice,
    }
    return _write(folder, document)


def rewrite_manifest(folder: Path | str, manifest: Manifest, **changes: Any) -> Manifest:
    """Write a manifest anew over the files now in `folder`, all else as it was but for `changes`.

    Raises
    ------
    BundleError
        As for `write_manifest`.
    """
    folder = Path(folder)
    document = manifest.model_dump(mode="json", by_alias=True) | {"files": _listed(folder)} | changes
    return _write(folder, document)


def _listed(folder: Path) -> dict[str, dict[str, Any]]:
    files = {}
    for path in sorted(folder.iterdir()):
        if path.name != MANIFEST_FILE:
            data = read_plain_file(path, MAX_FILE_BYTES)
            files[path.name] = {"sha256": hashlib.sha256(data).hexdigest(), "n_bytes": len(data)}
    return files


def _write(folder: Path, document: Mapping[str, Any]) -> Manifest:
    data = (json.dumps(document, indent=2) + "\n").encode()
    manifest = Manifest.parse(data, folder / MANIFEST_FILE)
    (folder / MANIFEST_FILE).write_bytes(data)
    return manifest
