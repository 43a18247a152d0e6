import subprocess
import sys
import textwrap
import warnings
from collections import Counter

import numpy as np
import pytest
import torch
from monai.networks.nets import swin_unetr as monai

from samkd.deploy.export.graphs import whole
from samkd.deploy.export.openvino import convert, save, share_repeated_columns, store_in_three_bytes
from samkd.deploy.export.quantize_openvino import SCHEMES, layer_graph, quantize
from samkd.deploy.export.sensitivity import attention_layers, end_layers
from samkd.deploy.runtime.clock import Clock
from samkd.deploy.runtime.engine_openvino import Engine, core, load_openvino
from samkd.students import build_student

pytestmark = pytest.mark.slow

PATCH = (32, 32, 64)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def student():
    torch.manual_seed(0)
    return build_student("swinunetr-tiny", in_channels=1, num_classes=3, patch=PATCH).eval()


@pytest.fixture(scope="module")
def model(student):
    return convert(whole(student, patch=PATCH, in_channels=1))


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((4, 1, *PATCH), dtype=np.float32)


@pytest.fixture(scope="module")
def expected(student, images):
    with torch.inference_mode():
        return student(torch.from_numpy(images)).softmax(1).numpy()


def test_fp32_equals_torch(model, images, expected, tmp_path):
    save(model, tmp_path / "model.xml", half=False)
    engine = Engine(tmp_path / "model.xml", precision="f32", threads=1)
    assert engine.precision == "f32" and engine.threads == 1
    clock = Clock()
    probabilities = clock.waiting("network", engine.begin)(images)()
    assert probabilities.dtype == np.float32 and probabilities.shape == (4, 3, *PATCH)
    assert np.abs(probabilities - expected).max() <= 1e-4
    assert clock.seconds["network"] > 0
    assert set(engine.layer_precisions()) == {"f32"}


def test_fp16_halves_the_file_and_stays_close(model, images, expected, tmp_path):
    for half in (False, True):
        save(model, tmp_path / f"{half}.xml", half=half)
    sizes = {half: (tmp_path / f"{half}.bin").stat().st_size for half in (False, True)}
    assert sizes[True] < 0.7 * sizes[False]
    assert np.abs(Engine(tmp_path / "True.xml", precision="f32", threads=1)(images[:1]) - expected[:1]).max() <= 5e-3


def test_shared_position_bias_changes_the_file_only(model, images, tmp_path):
    before = Engine(model, precision="f32", threads=1)(images[:1])
    smaller = model.clone()
    assert share_repeated_columns(smaller) == 6  # the last stage has one window of 8 tokens: nothing to share
    assert np.array_equal(Engine(smaller, precision="f32", threads=1)(images[:1]), before)
    save(model, tmp_path / "model.xml", half=True)
    constants = [layer.get_byte_size() for layer in model.get_ops() if layer.get_type_name() == "Constant"]
    assert (tmp_path / "model.bin").stat().st_size < 0.4 * sum(constants)


def test_three_bytes_keep_every_row_to_23_bits(tmp_path):
    rows = np.random.default_rng(0).standard_normal((64, 512)).astype(np.float32)
    rows *= np.float32(10.0) ** np.arange(-32, 32, dtype=np.float32)[:, None]
    rows[3] = 0
    rows[4] = np.nextafter(np.float32(1), np.float32(0))  # the largest below a power of two
    ov = load_openvino()
    image = ov.opset13.parameter([64, 512], np.float32)
    model = ov.Model([ov.opset13.multiply(image, ov.opset13.constant(rows))], [image])
    assert store_in_three_bytes(model) == 1
    ov.save_model(model, tmp_path / "model.xml", compress_to_fp16=False)
    assert rows.nbytes * 0.75 <= (tmp_path / "model.bin").stat().st_size < rows.nbytes * 0.76
    result = core().compile_model(tmp_path / "model.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(
        np.ones_like(rows)
    )[0]
    assert (np.abs(result - rows).max(1) <= np.abs(rows).max(1) * 2.0**-23).all()


def test_a_third_of_the_file_of_a_plain_conversion_and_the_same_numbers(student, model, images, tmp_path):
    ov = load_openvino()
    from openvino.tools.ovc import convert_model

    theirs = monai.SwinUNETR(in_channels=1, out_channels=3, feature_size=12).eval()
    theirs.load_state_dict(student.state_dict())
    shape = (1, 1, *PATCH)
    with torch.no_grad(), warnings.catch_warnings(action="ignore"):
        plain = convert_model(theirs, example_input=torch.zeros(shape), input=[shape])
    ov.save_model(plain, tmp_path / "plain.xml", compress_to_fp16=False)
    save(model, tmp_path / "ours.xml", half=False)
    sizes = {
        name: sum((tmp_path / f"{name}.{end}").stat().st_size for end in ("xml", "bin")) for name in ("plain", "ours")
    }
    assert sizes["ours"] < 0.55 * sizes["plain"]  # a third at 96^3 (the benchmark), with more masks and larger biases
    logits = Engine(plain, precision="f32", threads=1)(images[:1])
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert np.abs(Engine(tmp_path / "ours.xml", precision="f32", threads=1)(images[:1]) - expected).max() <= 1e-5
    layers = Counter(layer.get_type_name() for layer in model.get_ops())
    assert layers["ScaledDotProductAttention"] == 8
    assert not layers.keys() & {"Roll", "ScatterNDUpdate", "ShapeOf"} and sum(layers.values()) < 1200


def test_int8_computes_in_int8_and_still_looks_at_its_input(model, images, expected, tmp_path):
    save(quantize(model, list(images), SCHEMES[0]), tmp_path / "model.xml", half=False)
    engine = Engine(tmp_path / "model.xml", precision="f32", threads=1)
    result = engine(images[:2])
    assert engine.precision == "f32" and engine.layer_precisions()["i8"] > 20
    assert np.isfinite(result).all() and np.abs(result[0] - result[1]).max() > 1e-2
    agree = (result.argmax(1) == expected[:2].argmax(1)).mean()
    assert agree > 0.9  # random weights: nearly every voxel is a close call
    assert (tmp_path / "model.bin").stat().st_size < 6e6


def test_schemes_keep_what_they_name_in_float(model):
    graph = layer_graph(model)
    kinds = {name: layer.kind for name, layer in graph.layers.items()}
    assert sorted(kinds[name] for name in attention_layers(graph)) == ["ScaledDotProductAttention"] * 8
    ends = {kinds[name] for name in end_layers(graph)}
    assert ends == {"Convolution"} and 3 <= len(end_layers(graph)) <= 4  # embedding, two of encoder 1, the output
    assert len({scheme.name for scheme in SCHEMES}) == len(SCHEMES)


def test_signals_arrive_after_engines_are_freed_in_any_order():
    """OpenVINO's CPU plugin unmaps the signal stack it installed; a Ctrl-C after `samkd deploy` must not crash."""
    program = """
        import signal
        import numpy as np
        from samkd.deploy.runtime.engine_openvino import Engine, load_openvino
        ov = load_openvino()
        image = ov.opset13.parameter([1, 2, 4, 4, 4], np.float32, name="image")
        engines = [Engine(ov.Model([ov.opset13.softmax(image, 1)], [image]), precision="f32") for _ in range(3)]
        while engines:
            engines.pop(0)
        signal.signal(signal.SIGINT, lambda *_: print("arrived"))
        signal.raise_signal(signal.SIGINT)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "arrived\n"), done.stderr


FULL_DISK = """
import pathlib, resource, signal, sys
import numpy as np
import openvino as ov
from openvino import opset13 as ops
from samkd.deploy.export.openvino import save
from samkd.errors import OutputError
image = ops.parameter([1, 300], np.float32)
rng = np.random.default_rng(0)
model = ov.Model([ops.matmul(image, ops.constant(rng.random((300, 300), np.float32)), False, False)], [image])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
try:
    save(model, pathlib.Path(sys.argv[1]), half=True)
except OutputError as error:
    print(error.exit_code, error)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line(tmp_path):
    """With OpenVINO's own RuntimeError, in a process that may write files of 10 kB."""
    path = tmp_path / "model.xml"
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"3 {path}: cannot be written (") and len(done.stdout.splitlines()) == 1
