"""Field types that several messages share, each with its bound (spec 03, section 1)."""

from typing import Annotated, Literal, TypeAlias

from msgspec import Meta

from protocol import limits

Hash: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A SHA-256 value: a message id, a model id, a chain."""

Key: TypeAlias = Annotated[bytes, Meta(min_length=32, max_length=32)]
"""A raw Ed25519 public key."""

JobKey: TypeAlias = Annotated[bytes, Meta(min_length=16, max_length=16)]
Money: TypeAlias = Annotated[int, Meta(ge=0, le=limits.MICROCREDITS_MAX)]
TimeMs: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 53)]
DurationMs: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 40)]
Count: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 32)]
Tokens: TypeAlias = Annotated[int, Meta(ge=0, le=limits.TOKENS_MAX)]
SomeTokens: TypeAlias = Annotated[int, Meta(ge=1, le=limits.TOKENS_MAX)]
Bytes: TypeAlias = Annotated[int, Meta(ge=0, le=1 << 53)]

# \Z, not $: in Python "$" also matches before a newline at the end.
Name: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}\Z")]
"""What a person calls a model: looked up, never joined to a path."""

Label: TypeAlias = Annotated[str, Meta(min_length=1, max_length=limits.NAME_BYTES_MAX)]
Text: TypeAlias = Annotated[str, Meta(max_length=limits.TEXT_BYTES_MAX)]
Address: TypeAlias = Annotated[str, Meta(min_length=1, max_length=limits.TEXT_BYTES_MAX)]
Dtype: TypeAlias = Literal["fp32", "bf16", "fp16"]
Task: TypeAlias = Literal["generate", "embed", "classify", "vad", "forward"]
