"""A user's own files as what travels: pixels, samples, tensors, lines. No file of a peer is ever decoded."""

from pathlib import Path
from typing import Any, Final

from node.cli.exits import CliError, Exit
from protocol import limits

# The models read 224 × 224 pixels out of the middle; more cost more, and a MiB is the most that travels.
PICTURE_SIDE_MAX: Final = 512
SAMPLE_RATE_HZ: Final = 16_000
SAMPLE_BITS: Final = 16
# One job carries a MiB, of which 32.7 s of samples leave room for the rest of it.
AUDIO_S_MAX: Final = 32


def read_picture(path: Path) -> dict[str, Any]:  # a JSON body's part
    """Return the pixels of a picture, upright and with no side longer than ``PICTURE_SIDE_MAX``.

    Raises:
        CliError: it is no picture, or Pillow is not there.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as exc:
        raise CliError("pictures are read with Pillow, which is not there: pip install 'souk[images]'") from exc
    try:
        with Image.open(path) as file:
            picture = ImageOps.exif_transpose(file).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as exc:
        raise CliError(f"{path}: cannot be read as a picture: {exc}", Exit.USAGE) from exc
    picture.thumbnail((PICTURE_SIDE_MAX, PICTURE_SIDE_MAX))
    return {"width": picture.width, "height": picture.height, "rgb": _base64(picture.tobytes())}


def read_audio(path: Path) -> str:
    """Return the samples of a WAV file in base64.

    Raises:
        CliError: it is none, of another form, empty, or too long for one job.
    """
    import wave

    try:
        with wave.open(str(path)) as file:
            form = file.getnchannels(), 8 * file.getsampwidth(), file.getframerate()
            # Not what its header claims: pipes leave 2³²-1 there.
            samples = file.readframes(AUDIO_S_MAX * SAMPLE_RATE_HZ + 1)
    except (wave.Error, EOFError) as exc:
        raise CliError(f"{path}: cannot be read as a WAV file: {exc or 'it ends too early'}", Exit.USAGE) from exc
    if form != (1, SAMPLE_BITS, SAMPLE_RATE_HZ):
        raise CliError(
            f"{path}: expected 1 channel of {SAMPLE_BITS} bits at {SAMPLE_RATE_HZ} Hz, got {form[0]} of {form[1]} "
            f"bits at {form[2]} Hz; ffmpeg -i IN -ac 1 -ar {SAMPLE_RATE_HZ} -c:a pcm_s16le OUT.wav makes it",
            Exit.USAGE,
        )
    if not samples:
        raise CliError(f"{path}: there is no sound in it", Exit.USAGE)
    if len(samples) * 8 > AUDIO_S_MAX * SAMPLE_RATE_HZ * SAMPLE_BITS:
        raise CliError(f"{path}: a job takes {AUDIO_S_MAX} s of sound at most; cut it in parts", Exit.USAGE)
    return _base64(samples)


def read_tensor_file(path: Path) -> str:
    """Return a file in base64, whatever is in it: the daemon checks that.

    Raises:
        CliError: it is too long for one job.
    """
    with path.open("rb") as file:
        data = file.read(limits.INPUT_BYTES_MAX + 1)
    if len(data) > limits.INPUT_BYTES_MAX:
        raise CliError(f"{path}: a job takes {limits.INPUT_BYTES_MAX} bytes of tensors at most", Exit.USAGE)
    return _base64(data)


def read_lines(data: bytes, name: str) -> list[str]:
    """Return the texts in ``data``, one a line.

    Raises:
        CliError: it is not UTF-8, or has no line, or an empty one.
    """
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError as exc:
        raise CliError(f"{name}: expected UTF-8 text: {exc}", Exit.USAGE) from exc
    blank = next((place for place, line in enumerate(lines, 1) if not line), None if lines else 1)
    if blank is not None:
        raise CliError(f"{name}: expected a text on each line, line {blank} is empty", Exit.USAGE)
    return lines


def _base64(data: bytes) -> str:
    import base64

    return base64.b64encode(data).decode()
