"""Every bound of the wire protocol (spec 00, section 4). A reader checks them before it allocates."""

from typing import Final

KIB: Final = 1024

# Canonical encoding.
DEPTH_MAX: Final = 8
ENTRIES_MAX: Final = 256
KEY_BYTES_MAX: Final = 32
VALUES_MAX: Final = 4096
"""All values of one encoding together: a 1 MiB input of empty containers took two seconds to read without it."""

# Envelopes.
BODY_BYTES_MAX: Final = 16 * KIB
ADVERT_BYTES_MAX: Final = 4 * KIB
# Type, network, signer, signature and msgpack headers around a body take under 200 bytes.
ENVELOPE_OVERHEAD_BYTES_MAX: Final = 256
TYPE_BYTES_MAX: Final = 16

# Frames on a stream.
DATA_FRAME_BYTES_MAX: Final = 64 * KIB
INPUT_BYTES_MAX: Final = 1024 * KIB
FRAME_HEADER_BYTES: Final = 5

# Inside messages.
NAME_BYTES_MAX: Final = 64
TEXT_BYTES_MAX: Final = 256
ADDRESSES_MAX: Final = 8
DEVICES_MAX: Final = 16
MODELS_MAX: Final = 16
CHAT_MESSAGES_MAX: Final = 256
HELD_BYTES_MAX: Final = 256 * KIB
STOP_STRINGS_MAX: Final = 8
STOP_BYTES_MAX: Final = 128
OUTPUT_TOKENS_PER_FRAME_MAX: Final = 256
TEXTS_MAX: Final = 2048
"""Of one ``embed`` job: as many as OpenAI's clients send at once."""
TEXT_TOKENS_MAX: Final = 32_768
VECTOR_BYTES_MAX: Final = 32 * KIB
IMAGES_MAX: Final = 64
IMAGE_SIDE_MAX: Final = 4096
CLASSES_MAX: Final = 64
TENSOR_CHUNK_BYTES_MAX: Final = 32 * KIB
TOKENS_MAX: Final = 1 << 24
MICROCREDITS_MAX: Final = 1 << 53
"""2⁵³: an integer that every language's JSON reader holds exactly, and 9 billion credits."""

# Time. Wall clocks of two honest peers may differ by this much.
CLOCK_SKEW_MS_MAX: Final = 60_000
ADVERT_LIFE_MS_MAX: Final = 600_000
QUOTE_HOLD_MS_MAX: Final = 15_000
ACCEPT_WAIT_MS_MAX: Final = 5_000
JOB_LIFE_MS_MAX: Final = 3_600_000
ALIVE_PERIOD_MS: Final = 2_000
SILENCE_MS_MAX: Final = 6_000
"""Three missed signs of life: then a requester takes its stream for lost."""
DETACHED_MS_MAX: Final = 30_000
"""How long a provider keeps a job whose stream was lost."""
VOUCHER_WAIT_MS_MAX: Final = 20_000
CLOSING_WAIT_MS_MAX: Final = 30_000
