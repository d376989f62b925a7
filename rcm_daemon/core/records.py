"""The records of `rcm-slice-1` and what is estimated of a stack.

The four messages are frozen pydantic models whose fields are the keys on the wire; `Slice` joins a slice's
header to its bytes. Bounds are wide enough for any microscope and narrow enough that no later arithmetic
can overflow.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

if TYPE_CHECKING:
    from numpy.typing import NDArray

STRATA = ("epidermis", "dej", "dermis")
"""Class names in anatomical order; a label is an index into them."""

BOUNDARIES = ("epidermis_dej", "dej_dermis")
"""The two boundaries; boundary k lies above the first slice whose label is k + 1 or more."""

SLICE_SCHEMA = "rcm-slice-1"
MAX_INDEX = 9_999
MAX_SIDE = 16_384
MAX_SAFE_INTEGER = 2**53 - 1
DTYPES: dict[str, np.dtype[Any]] = {"uint8": np.dtype("<u1"), "uint16": np.dtype("<u2")}

_SLASH_LOOKALIKES = frozenset("\u2044\u2215\u29f8\u29f5\u27cb\u27cd")  # NFKC leaves these as they are
_LATIN_LOOKALIKES = frozenset("АВЕЅІЈКМНОРСТУХԌԚԜаеоѕіјрсухһԁԛԝԍΑΒΕΖΗΙΚΜΝΟΡΤΥΧονυϲϳ")
"""Cyrillic and Greek letters that look Latin: fine among their own, not in a word with Latin letters."""


def _integral(value: object) -> object:
    """Turn an integral float into an int (MATLAB writes 3.0); refuse booleans and strings."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be a whole number")
    return value


def _number(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("must be a number")
    return float(value) if abs(value) < 1e300 else value


def _encodable(text: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("must be valid Unicode (no lone surrogates)")
    return text


@lru_cache(maxsize=256)  # every slice of a stack bears its id
def _safe_id(text: str) -> str:
    """Refuse ids that could pass for a path or for another id."""
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    if "/" in text or "\\" in text or _SLASH_LOOKALIKES & set(text):
        raise ValueError("must not have a slash, a backslash or a character that looks like one")
    # The micro sign is what keyboards give for um; its normal form is the Greek letter.
    if unicodedata.normalize("NFKC", text.replace("µ", "u")) != text.replace("µ", "u"):
        raise ValueError("must not have look-alike characters (its NFKC form differs)")
    has_latin = any(unicodedata.name(c, "").startswith("LATIN ") for c in text)
    if has_latin and _LATIN_LOOKALIKES & set(text):
        raise ValueError("must not mix Latin letters with letters of other scripts that look like them")
    return text


def _sides(value: object) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("must be [rows, columns]")
    return tuple(value)


WireInt = Annotated[int, BeforeValidator(_integral)]
WireFloat = Annotated[float, BeforeValidator(_number), Field(allow_inf_nan=False)]
Count = Annotated[WireInt, Field(ge=0, le=MAX_SAFE_INTEGER)]
Nanoseconds = Annotated[WireInt, Field(ge=0, le=999_999_999)]
Side = Annotated[WireInt, Field(ge=1, le=MAX_SIDE)]
Shape = Annotated[tuple[Side, Side], BeforeValidator(_sides)]
Pitch = Annotated[WireFloat, Field(gt=0, le=1_000)]
Depth = Annotated[WireFloat, Field(ge=-1e6, le=1e6)]
INSTRUMENT_PATTERN = r"^[A-Za-z0-9_-]{1,64}$"
Instrument = Annotated[str, Field(pattern=INSTRUMENT_PATTERN)]
RunId = Annotated[str, Field(max_length=200), AfterValidator(_encodable)]
StackId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_safe_id)]
NoStack = Literal[""]
NumberOfSlices = Annotated[WireInt, Field(ge=0, le=MAX_INDEX + 1)]


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    # `schema` is a method of pydantic's models, so the key has another name in Python.
    schema_: Literal["rcm-slice-1"] = Field(alias="schema", default="rcm-slice-1")
    instrument: Instrument
    run_id: RunId
    msg_number: Count


class StackStart(_Header):
    """A stack begins; all its slices will have this shape, dtype and pitch."""

    htype: Literal["stack_start"] = "stack_start"
    stack_id: StackId
    n_slices: NumberOfSlices
    shape: Shape
    dtype: Literal["uint8", "uint16"]
    pixel_size_um: Pitch
    z_start_um: Depth
    z_step_um: Depth


class SliceHeader(_Header):
    """One slice; it describes itself, so that a daemon which starts late can still use it."""

    htype: Literal["slice"] = "slice"
    stack_id: StackId
    index: Annotated[WireInt, Field(ge=0, le=MAX_INDEX)]
    z_um: Depth
    shape: Shape
    dtype: Literal["uint8", "uint16"]
    max_value: Annotated[WireInt, Field(ge=0, le=65_535)]
    byte_order: Literal["little"]
    encoding: Literal["raw"]
    pixel_size_um: Pitch
    crc32: Annotated[WireInt, Field(ge=0, le=2**32 - 1)]
    time_s: Count
    time_ns: Nanoseconds


class StackEnd(_Header):
    """A stack ended; `n_slices` is how many were sent."""

    htype: Literal["stack_end"] = "stack_end"
    stack_id: StackId
    n_slices: NumberOfSlices
    reason: Literal["completed", "aborted"]


class Heartbeat(_Header):
    """The controller lives; `msg_number` is the highest sent (-1 = none yet) and is not counted."""

    htype: Literal["heartbeat"] = "heartbeat"
    msg_number: Annotated[WireInt, Field(ge=-1, le=MAX_SAFE_INTEGER)]
    stack_id: StackId | NoStack
    time_s: Count
    time_ns: Nanoseconds


@dataclass(frozen=True)
class Slice:
    """A slice's header and its bytes, of which nothing has been copied."""

    header: SliceHeader
    blob: memoryview = field(repr=False)

    @property
    def pixels(self) -> NDArray[np.uint8] | NDArray[np.uint16]:
        """Grey levels [rows, columns], a view on the received bytes."""
        return np.frombuffer(self.blob, dtype=DTYPES[self.header.dtype]).reshape(self.header.shape)


Message = StackStart | Slice | StackEnd | Heartbeat


Status = Literal["not_reached", "inside", "above_start"]


@dataclass(frozen=True)
class Boundary:
    """Where one boundary lies in what has been seen of a stack.

    `status` is `above_start` (the first slice lies below it), `inside`, or `not_reached`. Depths are in um;
    those that do not apply are 0. `low_um` and `high_um` bound the stated interval, 0 and 0 where the
    estimator gives none.
    """

    status: Status = "not_reached"
    um: float = 0.0
    low_um: float = 0.0
    high_um: float = 0.0
    forecast_um: float = 0.0
    forecast_low_um: float = 0.0
    forecast_high_um: float = 0.0

    @property
    def found(self) -> bool:
        """Whether the boundary lies between two slices of the stack."""
        return self.status == "inside"


@dataclass(frozen=True)
class MosaicDepth:
    """One depth to take a mosaic at, and the ends of its interval, in um."""

    name: str
    z_um: float
    low_um: float
    high_um: float


@dataclass(frozen=True)
class Advice:
    """What the controller should do; `z_um` counts for `acquire_at` alone."""

    kind: Literal["continue", "stop", "acquire_at", "none"] = "none"
    z_um: float = 0.0


@dataclass(frozen=True)
class StrataEstimate:
    """What is estimated of the n slices of a partial stack, in depth order.

    Shapes: `labels` [n] (0 epidermis, 1 DEJ, 2 dermis), `probabilities` and `posterior` [n, 3] (rows of zeros
    where the estimator has no posterior), `settled` [n]; `boundaries` holds epidermis-DEJ and DEJ-dermis.
    """

    labels: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    posterior: NDArray[np.float32]
    settled: NDArray[np.bool_]
    boundaries: tuple[Boundary, Boundary]
    mosaic: tuple[MosaicDepth, ...] = ()
    advice: Advice = Advice()

    @property
    def said(self) -> tuple[float | None, float | None]:
        """Depths in um at which the boundaries are said to lie, none where they are not found."""
        first, second = (place.um if place.found else None for place in self.boundaries)
        return first, second
