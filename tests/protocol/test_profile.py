from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol import limits
from protocol.profile import Comparison, Profile, comparison, read_profile

CPU = Profile(runtime="torch", version="2.13.0", device="cpu", architecture="avx512", dtype="fp32", kernels="sdpa")
VLLM = Profile(
    runtime="vllm",
    version="0.32.0",
    device="cuda",
    architecture="sm_90",
    cards=4,
    dtype="bf16",
    kernels="paged",
    sampler="own",
)


def test_label_is_what_receipts_have_always_said() -> None:
    assert CPU.label == "torch 2.13.0; cpu avx512; fp32; sdpa"
    assert VLLM.label == "vllm 0.32.0; cuda sm_90 x4; bf16; paged; own sampler"


@pytest.mark.parametrize(
    "profile", [CPU, VLLM, replace(CPU, kernels="transformers 5.23.0", architecture="no avx")]
)
def test_label_reads_back_as_it_was_written(profile: Profile) -> None:
    assert read_profile(profile.label) == profile


def test_label_names_the_release_when_a_build_has_a_long_name() -> None:
    profile = replace(VLLM, version="0.32.1rc2.dev103+g0123456789.cu129")
    assert len(profile.label) <= limits.NAME_BYTES_MAX
    assert read_profile(profile.label) == replace(profile, version="0.32.1rc2.dev103")


@pytest.mark.parametrize(
    "label",
    ["scripted; fp32", "", "torch 2.13.0; cpu avx512; fp64; sdpa", CPU.label + "\n", CPU.label + "; spec sampler",
     "torch 2.13.0; tpu v5; bf16; sdpa", "vllm 0.32.0; cuda sm_90 x4; bf16; paged; own sampler; and more"],
)  # fmt: skip
def test_label_of_another_form_says_nothing(label: str) -> None:
    assert read_profile(label) is None
    assert comparison(read_profile(label), CPU, is_greedy=True) == "nothing"


@given(st.text(max_size=limits.NAME_BYTES_MAX))
def test_reader_takes_any_text(label: str) -> None:
    profile = read_profile(label)
    assert profile is None or profile.label == label


@pytest.mark.parametrize(
    ("claimed", "own", "greedy", "sampled"),
    [
        (CPU, CPU, "tokens", "tokens"),
        (CPU, replace(CPU, version="2.14.0"), "margins", "margins"),
        (CPU, replace(CPU, kernels="transformers 5.23.0"), "margins", "margins"),
        (replace(CPU, device="cuda", architecture="sm_90"), CPU, "margins", "margins"),
        (replace(CPU, dtype="bf16"), replace(CPU, dtype="bf16"), "margins", "margins"),
        (replace(CPU, dtype="bf16"), CPU, "nothing", "nothing"),
        (VLLM, replace(CPU, dtype="bf16"), "margins", "nothing"),
        (replace(CPU, dtype="bf16"), VLLM, "margins", "nothing"),
        (VLLM, VLLM, "margins", "nothing"),
    ],
)
def test_profiles_tell_what_an_answer_may_be_held_to(
    claimed: Profile, own: Profile, greedy: Comparison, sampled: Comparison
) -> None:
    assert comparison(claimed, own, is_greedy=True) == greedy
    assert comparison(claimed, own, is_greedy=False) == sampled
