"""Arrays inside JSON: base64 of their bytes, as the explorer's data holds them."""

import base64
import dataclasses
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

PackedType = Literal["uint8", "int8", "uint16", "int32", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Packed:
    """An array of any shape; a value is ``scale`` times what is stored."""

    dtype: PackedType
    shape: tuple[int, ...]
    data: str
    """Base64 of the stored numbers, little-endian, in C order."""
    scale: float = 1.0


def pack(array: npt.ArrayLike, dtype: PackedType) -> Packed:
    """An array for the explorer.

    Integers and truth values are stored as they are. Fractional numbers become float32, or, of an integer type, the
    nearest of its steps, where the largest value is the last step: an error of at most half a step, 1/510 of the
    largest value for uint8.

    Args:
      array: any shape; numbers or truth values.
      dtype: how they are stored.

    Raises:
      ValueError: an integer does not fit the type; a fractional number to be stored as an integer is negative (of an
        unsigned type) or not finite.

    >>> packed = pack([[0.0, 0.5], [0.25, 1.0]], "uint8")
    >>> packed.shape, round(packed.scale * 255, 6), unpack(packed).round(2).tolist()
    ((2, 2), 1.0, [[0.0, 0.5], [0.25, 1.0]])
    """
    if dtype not in get_args(PackedType):
        raise ValueError(f"dtype={dtype!r} cannot be packed; choose one of {', '.join(get_args(PackedType))}")
    values, scale = np.asarray(array), 1.0
    if dtype != "float32":
        limits = np.iinfo(dtype)
        if values.dtype.kind == "f":
            values, scale = _steps(values, limits, dtype)
        if values.size and not limits.min <= values.min() <= values.max() <= limits.max:
            raise ValueError(f"values from {values.min()} to {values.max()} do not fit {dtype}, which holds "
                             f"{limits.min} to {limits.max}; choose a wider dtype")
    stored = np.ascontiguousarray(values, np.dtype(dtype).newbyteorder("<"))
    return Packed(dtype=dtype, shape=values.shape, data=base64.b64encode(stored.tobytes()).decode(), scale=scale)


def pack_steps(array: npt.ArrayLike, step: float, dtype: PackedType) -> Packed:
    """Numbers as the nearest multiples of a step, whatever the largest is: coarse ones are small when compressed.

    Raises:
      ValueError: a number of steps does not fit the type.

    >>> unpack(pack_steps([0.5, -0.26], 0.25, "int8")).tolist()
    [0.5, -0.25]
    """
    return dataclasses.replace(pack(np.rint(np.asarray(array) / step).astype(np.int64), dtype), scale=step)


def unpack(packed: Packed) -> np.ndarray:
    """The array, its integers as they are where the scale is 1, else float32."""
    stored = np.frombuffer(base64.b64decode(packed.data), np.dtype(packed.dtype).newbyteorder("<"))
    values = stored.reshape(packed.shape)
    return values if packed.scale == 1 else values.astype(np.float32) * np.float32(packed.scale)


def _steps(values: np.ndarray, limits: np.iinfo, dtype: str) -> tuple[np.ndarray, float]:
    """Fractional numbers as counts of equal steps, and the step; that of zeros alone is 1."""
    if not np.isfinite(values).all():
        raise ValueError(f"numbers that are not finite do not fit {dtype}; leave them out, or pack them as float32")
    if values.size and values.min() < 0 == limits.min:
        raise ValueError(f"negative numbers ({values.min():g}) do not fit {dtype}; pack their sizes, or float32")
    scale = float(np.abs(values).max(initial=0.0)) / limits.max
    return (np.rint(values / scale).astype(np.int64), scale) if scale else (values.astype(np.int64), 1.0)
