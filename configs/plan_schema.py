"""What a config may say of a plan: how a raw scan becomes the network's input, intensity rules included."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Triple = tuple[int, int, int]


class Strict(BaseModel):
    """A group of keys: an unknown key is a fault, and the docstring below a key is what `samkd info config` prints."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def added(default: Any) -> Any:
    """A key that came after the first release: at its default no run records it, so that a run's hash stays."""
    return Field(default, exclude_if=lambda value: value == default)


class Range(Strict):
    """Two numbers, the lower one first."""

    low: float
    """The lower end, in the scan's own units (HU for CT)."""
    high: float
    """The upper end, in the scan's own units (HU for CT); it must be above `low`."""

    @model_validator(mode="after")
    def ordered(self):
        if self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class Window(Range):
    """Clip to [low, high] and map to [0, 1]."""

    rule: Literal["window"]
    """`window` clips to [low, high] and maps that range to [0, 1]."""


class Clip(Range):
    """Clip to [low, high]."""

    rule: Literal["clip"]
    """`clip` clips to [low, high] and leaves the units as they are."""


class ShiftScale(Strict):
    """Compute (value - subtract) / divide."""

    rule: Literal["shift_scale"]
    """`shift_scale` computes (value - subtract) / divide."""
    subtract: float
    """This is subtracted from every value first, in the scan's own units (HU for CT)."""
    divide: Annotated[float, Field(gt=0)]
    """The difference is divided by this, in the scan's own units (HU for CT)."""


class Percentile(Range):
    """Clip to the scan's own percentiles and map to [0, 1]."""

    rule: Literal["percentile"]
    """`percentile` clips to two percentiles of the scan itself and maps that range to [0, 1]."""
    low: Annotated[float, Field(ge=0, lt=100)] = 0.5
    """The lower percentile of the scan's values, in percent."""
    high: Annotated[float, Field(gt=0, le=100)] = 99.5
    """The upper percentile of the scan's values, in percent; it must be above `low`."""


class ZScore(Strict):
    """Subtract the mean and divide by the standard deviation."""

    rule: Literal["zscore"]
    """`zscore` subtracts the scan's mean and divides by its standard deviation."""
    nonzero: bool = False
    """If true, mean and standard deviation are those of the scan's nonzero voxels."""


Rule = Annotated[Window | Clip | ShiftScale | Percentile | ZScore, Field(discriminator="rule")]


class PlanSettings(Strict):
    """How a raw scan becomes the network's input."""

    orientation: Annotated[str, Field(pattern="^[LRAPSI]{3}$")] = "SPL"
    """The anatomical directions in which the axes d, h and w increase: one of each pair L/R, A/P and S/I."""
    spacing: tuple[float | None, float | None, float | None] | None = None
    """The spacing in mm along d, h and w to which a scan is resampled; null keeps the scan's own."""
    size: tuple[int | None, int | None, int | None] | None = None
    """The number of voxels along d, h and w to which a scan is resampled; null leaves an axis to `spacing`."""
    long_side: Annotated[int, Field(ge=1)] | None = None
    """The number of voxels along the longer of h and w; the shorter one follows, so that pixels stay square."""
    intensity: tuple[Rule, ...]
    """The intensity rules, which are applied one after the other."""
    patch: Triple
    """The size of the network's input in voxels along d, h and w."""
    overlap: Annotated[float, Field(ge=0, le=0.9)] = 0.5
    """The part of a patch by which the sliding window's neighbouring patches overlap."""

    @model_validator(mode="after")
    def one_axis_each(self):
        axes = {"LR": 0, "AP": 0, "SI": 0}
        for pair in axes:
            if sum(code in pair for code in self.orientation) != 1:
                raise ValueError(f"orientation {self.orientation!r} must name one of each of L/R, A/P, S/I")
        if self.long_side and any(
            grid is not None and (grid[1] is not None or grid[2] is not None) for grid in (self.size, self.spacing)
        ):
            raise ValueError("long_side settles h and w: leave both null in size and spacing")
        return self
