"""``classify``: images in, the likeliest classes of each out (spec 04, section 6). An image is a unit.

Images travel as raw pixels: no decoder ever reads what a peer has sent (decision 0011).
"""

from collections.abc import Sequence
from typing import Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from protocol import limits
from protocol.schema import Message
from protocol.task import FinishReason
from protocol.tasks.comparison import Comparison

CHANNELS: Final = 3
PIXELS_PER_UNIT: Final = 256
MILLION: Final = 1_000_000
MARGIN_PPM: Final = 10_000
"""How much likelier our own best class may be than theirs. Batches of up to 8 and other threads made 1 at most."""

Side = Annotated[int, Meta(ge=1, le=limits.IMAGE_SIDE_MAX)]


class Image(Message, frozen=True, kw_only=True):
    """Rows from the top, each from the left, three bytes (red, green, blue) for each pixel."""

    width: Side
    height: Side
    rgb: Annotated[bytes, Meta(min_length=CHANNELS, max_length=limits.INPUT_BYTES_MAX)]

    def __post_init__(self) -> None:
        if len(self.rgb) != (expected := self.width * self.height * CHANNELS):
            raise ValueError(f"expected {expected} bytes of pixels, got {len(self.rgb)}")


class ClassifyInput(Message, frozen=True, kw_only=True):
    """Images, and how many classes of each are wanted."""

    images: Annotated[tuple[Image, ...], Meta(min_length=1, max_length=limits.IMAGES_MAX)]
    top: Annotated[int, Meta(ge=1, le=limits.CLASSES_MAX)] = 5

    @property
    def units_in_max(self) -> int:
        """The exact number: it follows from the sides alone."""
        return sum(-(-image.width * image.height // PIXELS_PER_UNIT) for image in self.images)

    @property
    def units_out(self) -> int:
        return len(self.images)

    def after(self, units: int) -> "ClassifyInput":
        """Return what is left when ``units`` images, but not all, are done."""
        assert units < self.units_out
        return replace(self, images=self.images[units:])


class ImageClass(Message, frozen=True, kw_only=True):
    """One class of an image."""

    index: Annotated[int, Meta(ge=0, le=limits.TOKENS_MAX)]
    label: Annotated[str, Meta(max_length=limits.TEXT_BYTES_MAX)]
    """What the model's files call it, for people; empty where they have no name."""
    probability_ppm: Annotated[int, Meta(ge=0, le=MILLION)]


class ClassifyOutput(Message, frozen=True, kw_only=True):
    """One output frame: the classes of the next image, likeliest first."""

    classes: Annotated[tuple[ImageClass, ...], Meta(min_length=1, max_length=limits.CLASSES_MAX)]
    finish: FinishReason | None = None

    @property
    def units(self) -> int:
        return 1


def compare_classes(theirs: Sequence[ClassifyOutput], ours: Sequence[ClassifyOutput]) -> Comparison:
    """Judge classes by our own of the same images, of which we ask for as many as a job may.

    Their best class must be, by our own run, at most ``MARGIN_PPM`` less likely than our best.
    """
    if len(theirs) != len(ours):
        return Comparison(holds=False, worst=1.0, message=f"expected {len(ours)} images, got {len(theirs)}")
    worst = max((_margin_ppm(a, b) for a, b in zip(theirs, ours, strict=True)), default=0)
    message = f"expected a best class within {MARGIN_PPM} ppm of ours, got one {worst} ppm below"
    return Comparison(holds=worst <= MARGIN_PPM, worst=worst / MILLION, message=message)


def _margin_ppm(theirs: ClassifyOutput, ours: ClassifyOutput) -> int:
    known = {it.index: it.probability_ppm for it in ours.classes}
    best, claimed = ours.classes[0].probability_ppm, theirs.classes[0]
    # A class that is not among ours is at most as likely as our last.
    return max(best - known.get(claimed.index, 0), abs(best - claimed.probability_ppm))
