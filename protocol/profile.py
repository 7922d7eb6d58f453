"""Numeric profiles: what computed an answer, as the label that quotes and receipts repeat, and what that allows.

A label is written and read here only. Two of them tell whether a verifier may expect the same tokens, may measure
margins, or may conclude nothing. Spec 04, section 9.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias, get_args

from protocol.fields import Dtype

Sampler: TypeAlias = Literal["spec", "own"]
"""``spec``: noise as in spec 04, section 3; ``own``: the runtime's, which nobody repeats."""

Comparison: TypeAlias = Literal["tokens", "margins", "nothing"]

_VERSION_CHARS_MAX: Final = 16
_OWN: Final = "own sampler"
_WORDS: Final = r"[!-:<-~]+(?: [!-:<-~]+)*?"
_LABEL: Final = re.compile(
    r"(?P<runtime>[a-z]+) (?P<version>[!-:<-~]+)"
    rf"; (?P<device>cpu|cuda) (?P<architecture>{_WORDS})(?: x(?P<cards>[2-9]|[1-9][0-9]{{1,3}}))?"
    rf"; (?P<dtype>{'|'.join(get_args(Dtype))}); (?P<kernels>{_WORDS})(?P<own>; {_OWN})?"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What computes: ``torch 2.13.0; cpu avx512; bf16; sdpa``."""

    runtime: str
    """``torch`` or ``vllm``: whose kernels multiply."""
    version: str
    device: Literal["cpu", "cuda"]
    architecture: str
    dtype: Dtype
    kernels: str
    """Of attention, or another library's name and version where that one arranges the computation."""
    cards: int = 1
    """Devices that share each layer: a sum over them is in another order."""
    sampler: Sampler = "spec"

    @property
    def label(self) -> str:
        """Return the profile as messages carry it."""
        cards = f" x{self.cards}" if self.cards > 1 else ""
        # What follows + names a build; the numbers follow from the release.
        version = self.version.partition("+")[0][:_VERSION_CHARS_MAX]
        sampler = f"; {_OWN}" if self.sampler == "own" else ""
        device = f"{self.device} {self.architecture}{cards}"
        return f"{self.runtime} {version}; {device}; {self.dtype}; {self.kernels}{sampler}"


def read_profile(label: str) -> Profile | None:
    """Return what ``label`` says, ``None`` when it is of another form: any label is legal, few are understood."""
    found = _LABEL.fullmatch(label)
    if found is None:
        return None
    return Profile(
        runtime=found["runtime"],
        version=found["version"],
        device="cpu" if found["device"] == "cpu" else "cuda",
        architecture=found["architecture"],
        cards=int(found["cards"] or 1),
        dtype=_dtype(found["dtype"]),
        kernels=found["kernels"],
        sampler="own" if found["own"] else "spec",
    )


def comparison(claimed: Profile | None, own: Profile | None, *, is_greedy: bool) -> Comparison:
    """Return what an answer computed under ``claimed`` may be held to by a verifier that computes under ``own``.

    ``tokens``: each must be the one that would be chosen here; ``margins``: each must be close to it, as
    calibrated; ``nothing``: no token says anything.
    """
    if claimed is None or own is None or claimed.dtype != own.dtype:
        return "nothing"
    if not is_greedy and "own" in (claimed.sampler, own.sampler):
        return "nothing"
    # In fp32 a text does not depend on its batch, in 16 bits it does.
    return "tokens" if claimed == own and own.dtype == "fp32" and own.runtime == "torch" else "margins"


def _dtype(text: str) -> Dtype:
    for dtype in get_args(Dtype):
        if dtype == text:
            return dtype  # type: ignore[no-any-return]  # get_args gives the literal's own values
    raise AssertionError("the pattern takes no other")
