"""A serialized TensorRT engine on the device: through a double of the library, for what is around it."""

import gc

import numpy as np
import pytest
from helpers import fake_tensorrt

from samkd.deploy.runtime import engine_tensorrt
from samkd.deploy.runtime.engine_tensorrt import tensorrt_engine
from samkd.deploy.runtime.engine_tensorrt_native import Engine, this_machine
from samkd.deploy.runtime.tensorrt_file import EngineKey, read_facts, read_serialized, write_engine
from samkd.errors import IntegrityError, MissingExtraError

HERE = EngineKey("NVIDIA Test", "9.0", "10.9.0")
PATCH = (1, 1, 2, 3, 4)
DOUBLES = fake_tensorrt.serialized("doubles", {"image": PATCH}, ("probabilities", PATCH))


@pytest.fixture
def cuda(monkeypatch):
    fake_tensorrt.COMPUTES.update({"doubles": lambda image: 2 * image, "adds": lambda one, other: one + other})
    return fake_tensorrt.install(monkeypatch)


@pytest.fixture
def model(tmp_path, monkeypatch):
    """An ONNX model that no engine opens, and the engine beside it; ONNX Runtime has no TensorRT."""
    monkeypatch.setattr(engine_tensorrt, "has_provider", lambda _: False)
    (tmp_path / "model.onnx").write_bytes(b"")
    write_engine(tmp_path / "model.engine", DOUBLES, key=HERE, precision="f16")
    return tmp_path / "model.onnx"


def test_patches_go_through_one_by_one_and_memory_is_freed(cuda):
    engine = Engine(DOUBLES, name="model.engine", precision="f32")
    assert engine.input_shapes == [(None, 1, 2, 3, 4)] and engine.output_shape == (None, 1, 2, 3, 4)
    assert (engine.version, engine.precision, engine.threads) == ("tensorrt 10.9.0 (NVIDIA Test)", "f32", 1)
    patches = np.random.default_rng(0).random((3, 1, 2, 3, 4))
    np.testing.assert_array_equal(engine(patches), 2 * patches.astype(np.float32))
    first, second = engine.begin(patches[:1]), engine.begin(patches[1:, :, ::1])
    np.testing.assert_array_equal(second(), 2 * patches[1:].astype(np.float32))
    np.testing.assert_array_equal(first(), 2 * patches[:1].astype(np.float32))
    assert len(cuda.memory) == 2 and cuda.streams
    del engine, first, second
    gc.collect()
    assert not cuda.memory and not cuda.streams


def test_inputs_keep_their_order(cuda):
    adds = fake_tensorrt.serialized("adds", {"a": (1, 2), "b": (1, 2)}, ("c", (1, 2)))
    engine = Engine(adds, name="model.engine", precision="f32")
    answer = engine(np.array([[1.0, 2], [3, 4]]), np.array([[10.0, 20], [30, 40]]))
    np.testing.assert_array_equal(answer, [[11, 22], [33, 44]])
    with pytest.raises(IntegrityError, match=r"a is of \(3,\), expected \(2,\)"):
        engine(np.zeros((1, 3)), np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("serialized", "message"),
    [
        (b"no engine", "it cannot be deserialized"),
        (fake_tensorrt.serialized("doubles", {"image": (-1, 1, 2)}, ("p", (1, 1, 2))), "expected float32 of one patch"),
        (fake_tensorrt.serialized("doubles", {"image": (2, 1, 2)}, ("p", (2, 1, 2))), "expected float32 of one patch"),
        (fake_tensorrt.serialized("half outside", {"image": PATCH}, ("p", PATCH)), "expected float32 of one patch"),
    ],
)
def test_another_engine_is_refused(cuda, serialized, message):
    with pytest.raises(IntegrityError, match=rf"model.engine: TensorRT 10.9.0 cannot run this model .*{message}"):
        Engine(serialized, name="model.engine", precision="f32")


def test_a_gpu_that_is_too_small_is_told(cuda):
    cuda.room = 10
    with pytest.raises(IntegrityError, match="CUDA says 2"):
        Engine(DOUBLES, name="model.engine", precision="f32")


def test_the_packed_engine_is_for_this_gpu_and_a_signer_who_is_trusted(cuda, model, monkeypatch):
    assert this_machine() == HERE
    engine = tensorrt_engine(model, precision="f16", trusted=True)
    assert isinstance(engine, Engine) and engine.precision == "f16"
    for precision, trusted, message in (
        ("f16", False, "engine in the package is code, and it was not checked whose: give --trust PUBKEY"),
        ("f32", True, r"is for NVIDIA Test \(9.0\) with TensorRT 10.9.0 in f16; here is .*, f32"),
    ):
        with pytest.raises(MissingExtraError, match=message):
            tensorrt_engine(model, precision=precision, trusted=trusted)
    for other in ({"gpu": "NVIDIA Other"}, {"version": "10.10.0"}):
        fake_tensorrt.install(monkeypatch, **other)
        with pytest.raises(MissingExtraError, match=r"is for NVIDIA Test \(9.0\) with TensorRT 10.9.0 in f16; here is"):
            tensorrt_engine(model, precision="f16", trusted=True)


def test_a_device_without_the_libraries_is_told(model, monkeypatch):
    monkeypatch.setitem(fake_tensorrt.sys.modules, "tensorrt", None)
    with pytest.raises(MissingExtraError, match=r"needs ONNX Runtime with TensorRT.*but tensorrt: cannot be imported"):
        tensorrt_engine(model, precision="f16", trusted=True)


@pytest.mark.parametrize(
    "raw", [b"", b"samkd tensorrt engine 1\n", b"samkd tensorrt engine 1\n[]\nx", b'x\n{"gpu": 1}\n']
)
def test_a_file_that_is_no_engine_is_refused(model, raw):
    model.with_suffix(".engine").write_bytes(raw)
    with pytest.raises(IntegrityError, match="is no engine of samkd"):
        tensorrt_engine(model, precision="f16", trusted=True)


def test_a_file_gives_back_what_was_written(tmp_path):
    write_engine(tmp_path / "e", b"\n\nengine\n", key=HERE, precision="f32")
    assert read_facts(tmp_path / "e") == (HERE, "f32") and read_serialized(tmp_path / "e") == b"\n\nengine\n"
