import base64
import io
import signal
import sys
import threading
import wave
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.cli.fakes import PEER, FakeDaemon, souk

SOUK = {"job_id": "aa", "peer": PEER, "contract_id": "c0ffee00", "cost_microcredits": 12, "duration_ms": 340}
ANY = {"on": "any", "path": "auto"}


def answer(daemon: FakeDaemon, task: str, **fields: Any) -> dict[str, Any]:
    usage = {"units_in": 3, "units_out": 2}
    payload = {"schema": 1, "model": "m", "usage": usage, "souk": SOUK, **fields}
    daemon.answer(f"POST /api/v1/tasks/{task}", payload)
    return payload


def write_wav(path: Path, frames: bytes, *, channels: int = 1, bits: int = 16, rate_hz: int = 16_000) -> str:
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(bits // 8)
        file.setframerate(rate_hz)
        file.writeframes(frames)
    return str(path)


VECTORS = [{"index": 0, "vector": [0.6, -0.8]}, {"index": 1, "vector": [1.0, 0.0]}]


def test_embed_shows_each_text_with_its_vector(daemon: FakeDaemon) -> None:
    payload = answer(daemon, "embed", vectors=VECTORS)
    ran = souk("embed", "m", "a cat", "a dog")
    assert daemon.body == {"model": "m", "texts": ["a cat", "a dog"], "souk": ANY}
    assert [line.split() for line in ran.out.splitlines()[1:]] == [
        ["a", "cat", "2", "+0.6000", "-0.8000"],
        ["a", "dog", "2", "+1.0000", "+0.0000"],
    ]
    assert (ran.code, ran.err) == (0, "answered by …bziXHP7Z · 12 µc · 340 ms\n")
    assert souk("embed", "m", "a", "b", "-o", "json").json() == payload
    assert (
        souk("embed", "m", "a", "b", "-o", "jsonl", "-q").out.splitlines()[0]
        == '{"index": 0, "vector": [0.6, -0.8]}'
    )


def test_embed_reads_a_text_a_line_from_a_file_or_a_pipe(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(daemon, "embed", vectors=VECTORS)
    (tmp_path / "texts").write_text("a cat\nein Mädchen\n", "utf-8")
    assert souk("embed", "m", "--file", str(tmp_path / "texts")).code == 0
    assert daemon.body["texts"] == ["a cat", "ein Mädchen"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"one\ntwo")))
    assert souk("embed", "m").code == 0
    assert daemon.body["texts"] == ["one", "two"]


@pytest.mark.parametrize("data", [b"", b"a\n\nb\n", b"\xff\n"])
def test_embed_asks_nothing_when_its_file_is_no_list_of_texts(
    daemon: FakeDaemon, tmp_path: Path, data: bytes
) -> None:
    (tmp_path / "texts").write_bytes(data)
    assert souk("embed", "m", "--file", str(tmp_path / "texts")).code == 2
    assert souk("embed", "m", "a", "--file", str(tmp_path / "texts")).code == 2
    assert not daemon.asked


@pytest.mark.parametrize("name", ["picture.png", "picture.jpg", "picture.ppm"])
def test_classify_sends_pixels_and_shows_classes(daemon: FakeDaemon, tmp_path: Path, name: str) -> None:
    classes = [
        {"index": 282, "label": "tiger cat", "probability": 0.75},
        {"index": 7, "label": None, "probability": 0.031},
    ]
    answer(daemon, "classify", images=[{"index": 0, "classes": classes}])
    Image.new("RGB", (3, 2), (200, 100, 50)).save(tmp_path / name)
    ran = souk("classify", "m", str(tmp_path / name), "--top", "2", "--on", "remote", "--max-price", "9")
    assert ran.code == 0
    assert [line.split() for line in ran.out.splitlines()[1:]] == [
        ["tiger", "cat", "282", "75.0"],
        ["class", "7", "7", "3.1"],
    ]
    (image,) = daemon.body["images"]
    pixels = base64.b64decode(image["rgb"])
    assert (image["width"], image["height"], len(pixels)) == (3, 2, 18)
    assert all(abs(got - sent) < 6 for got, sent in zip(pixels, (200, 100, 50) * 6, strict=True))
    assert (daemon.body["top"], daemon.body["souk"]) == (2, ANY | {"on": "remote", "max_price": 9})


def test_classify_makes_large_pictures_small_enough_to_travel(daemon: FakeDaemon, tmp_path: Path) -> None:
    answer(daemon, "classify", images=[])
    Image.new("L", (2048, 1024)).save(tmp_path / "large.png")
    assert souk("classify", "m", str(tmp_path / "large.png")).code == 0
    (image,) = daemon.body["images"]
    assert (image["width"], image["height"]) == (512, 256)
    assert len(base64.b64decode(image["rgb"])) == 512 * 256 * 3


def test_classify_turns_a_photograph_upright(daemon: FakeDaemon, tmp_path: Path) -> None:
    answer(daemon, "classify", images=[])
    exif = Image.Exif()
    exif[0x0112] = 6  # taken with the camera on its side
    Image.new("RGB", (4, 2)).save(tmp_path / "side.jpg", exif=exif)
    assert souk("classify", "m", str(tmp_path / "side.jpg")).code == 0
    assert (daemon.body["images"][0]["width"], daemon.body["images"][0]["height"]) == (2, 4)


def test_classify_says_what_to_do_when_a_file_is_no_picture_or_pillow_is_missing(
    daemon: FakeDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text").write_text("no picture")
    ran = souk("classify", "m", str(tmp_path / "text"))
    assert ran.code == 2 and "cannot be read as a picture" in ran.err
    monkeypatch.setitem(sys.modules, "PIL", None)
    ran = souk("classify", "m", str(tmp_path / "text"))
    assert ran.code == 1 and "souk[images]" in ran.err
    assert not daemon.asked


def test_vad_sends_samples_and_shows_segments(daemon: FakeDaemon, tmp_path: Path) -> None:
    segments = [{"start_ms": 64, "end_ms": 384}, {"start_ms": 700, "end_ms": 1000}]
    answer(daemon, "vad", segments=segments, duration_ms=1000, window_ms=32, speech_milli=[])
    sound = write_wav(tmp_path / "a.wav", frames := bytes(range(200)))
    ran = souk("vad", "m", sound, "--threshold", "0.7")
    assert (ran.code, [line.split() for line in ran.out.splitlines()[1:]]) == (
        0,
        [["0.06", "0.38"], ["0.70", "1.00"]],
    )
    assert base64.b64decode(daemon.body["samples"]) == frames and daemon.body["threshold"] == 0.7
    assert len(souk("vad", "m", sound, "-o", "jsonl").out.splitlines()) == 2
    answer(daemon, "vad", segments=[])
    assert souk("vad", "m", sound).out == "no speech\n"


@pytest.mark.parametrize(
    ("frames", "form", "why"),
    [
        (bytes(8), {"channels": 2}, "got 2 of 16 bits at 16000 Hz; ffmpeg"),
        (bytes(8), {"bits": 8}, "got 1 of 8 bits"),
        (bytes(8), {"rate_hz": 44_100}, "at 44100 Hz"),
        (b"", {}, "no sound"),
        (bytes(2 * 32 * 16_000 + 2), {}, "32 s"),
    ],
)
def test_vad_asks_nothing_when_the_sound_cannot_travel(
    daemon: FakeDaemon, tmp_path: Path, frames: bytes, form: dict[str, int], why: str
) -> None:
    ran = souk("vad", "m", write_wav(tmp_path / "a.wav", frames, **form))
    assert ran.code == 2 and why in ran.err and not daemon.asked


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound at all, and longer than a header"])
def test_vad_says_so_when_a_file_is_no_wav(daemon: FakeDaemon, tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.wav").write_bytes(data)
    ran = souk("vad", "m", str(tmp_path / "a.wav"))
    assert ran.code == 2 and "cannot be read as a WAV file" in ran.err and not daemon.asked


def test_forward_writes_the_tensors_that_came(daemon: FakeDaemon, tmp_path: Path) -> None:
    answer(daemon, "forward", tensors=base64.b64encode(b"out").decode())
    (tmp_path / "in").write_bytes(b"in")
    ran = souk("forward", "m", str(tmp_path / "in"), str(tmp_path / "out"), "--max-bytes", "4096", "-o", "json")
    assert ran.code == 0 and (tmp_path / "out").read_bytes() == b"out"
    assert daemon.body == {
        "model": "m", "tensors": base64.b64encode(b"in").decode(), "output_bytes_max": 4096, "souk": ANY,
    }  # fmt: skip
    told = ran.json()
    assert (told["file"], told["bytes"], told["souk"]) == (
        str(tmp_path / "out"),
        3,
        SOUK,
    ) and "tensors" not in told


def test_forward_asks_nothing_when_the_answer_has_no_place_or_the_input_is_too_long(
    daemon: FakeDaemon, tmp_path: Path
) -> None:
    (tmp_path / "in").write_bytes(bytes((1 << 20) + 1))
    assert souk("forward", "m", str(tmp_path / "in"), str(tmp_path / "out")).code == 2
    (tmp_path / "in").write_bytes(b"in")
    assert souk("forward", "m", str(tmp_path / "in"), str(tmp_path / "none" / "out")).code == 2
    assert not daemon.asked and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("status", "code", "ends"),
    [
        (400, "task_not_served", 2),
        (400, "context_length_exceeded", 2),
        (404, "model_not_found", 5),
        (503, "no_capacity", 6),
        (504, "deadline", 7),
    ],
)
def test_verbs_end_with_the_code_of_what_went_wrong(daemon: FakeDaemon, status: int, code: str, ends: int) -> None:
    error = {"error": {"message": "why", "type": "x", "param": None, "code": code}}
    daemon.answer("POST /api/v1/tasks/embed", error, status)
    ran = souk("embed", "m", "a")
    assert (ran.code, ran.out, ran.err) == (ends, "", "souk: why\n")


def test_ctrl_c_ends_the_job_and_says_so(daemon: FakeDaemon) -> None:
    main = threading.main_thread().ident or 0
    daemon.answer("POST /api/v1/tasks/embed", [lambda: signal.pthread_kill(main, signal.SIGINT)])
    ran = souk("embed", "m", "a")
    assert ran.code == 130 and "cancelled: the connection is closed" in ran.err
