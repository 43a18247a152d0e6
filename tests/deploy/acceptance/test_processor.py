"""The class of processors that a package is judged for: its arithmetic, its seconds, what cannot stand in for it."""

import gc
import os
from pathlib import Path

import numpy as np
import pytest
from helpers.packages import Levels, deploy, patches

from samkd.deploy.acceptance import processor
from samkd.deploy.acceptance.processor import CLASSES, LimitedProcessor, Processor, require_processor
from samkd.deploy.export.base import Precision
from samkd.deploy.export.quantize_openvino import SCHEMES
from samkd.deploy.runtime.package import Package
from samkd.errors import GateRefusedError, IntegrityError, UsageError

AVX512 = pytest.mark.skipif(
    not CLASSES["avx512"].flags <= processor._own_flags(), reason="this machine has no AVX-512 to be limited to"
)

VNNI = pytest.mark.skipif(
    not CLASSES["avx512_vnni"].flags <= processor._own_flags(),
    reason="this machine has no AVX512-VNNI",
)


@pytest.fixture
def flags(monkeypatch, tmp_path):
    """Makes this a machine of those flags."""

    def has(names: str) -> None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: fpu {names}\nbugs\t: none\n")
        monkeypatch.setattr(processor, "_CPUINFO", tmp_path / "cpuinfo")

    return has


def test_what_no_class_of_this_machine_is_is_refused(flags):
    flags("avx2 fma avx512f avx512bw avx512dq avx512vl")
    fits = {"target": "openvino", "precision": Precision.INT8}
    for name in (None, "avx2", "avx512"):
        require_processor(name, **fits)
    with pytest.raises(UsageError, match=r"lacks avx512_vnni; deploy on a machine"):
        require_processor("avx512_vnni", **fits)
    with pytest.raises(UsageError, match="lacks amx_bf16, amx_int8, amx_tile, avx512_bf16"):
        require_processor("amx", **fits)
    with pytest.raises(UsageError, match="is no class of processors; choose one of avx2, "):
        require_processor("pentium", **fits)
    with pytest.raises(UsageError, match="only the target openvino"):
        require_processor("avx2", target="onnx", precision=Precision.INT8)
    with pytest.raises(UsageError, match="has no bfloat16"):
        require_processor("avx512", target="openvino", precision=Precision.BF16)


def test_a_system_that_does_not_say_is_refused(monkeypatch):
    monkeypatch.setattr(processor, "_CPUINFO", Path("/nowhere"))
    with pytest.raises(UsageError, match="lacks avx2, fma"):
        require_processor("avx2", target="openvino", precision=Precision.FP32)


@AVX512
def test_an_engine_keeps_to_the_class_in_a_process_of_its_own(built):
    own, limited = Processor(), LimitedProcessor("avx512")
    job = {"name": built / "model.xml", "precision": "f32", "threads": 1}
    inputs = patches(2)[0][None]
    expected = own.open_engine("openvino", built / "model.xml", **job)(inputs)
    spent = limited.spent()
    engine = limited.open_engine("openvino", built / "model.xml", **job)
    np.testing.assert_allclose(engine(inputs), expected, atol=1e-5)
    np.testing.assert_array_equal(engine.begin(inputs)(), engine(inputs))
    assert engine.input_shapes == [(1, 1, 16, 16, 16)] and engine.threads == 1
    assert engine.version.startswith("openvino ") and engine.version.endswith(", as on avx512")
    assert limited.spent() > spent and limited._in_engines > 0
    child = engine._child  # type: ignore[attr-defined]
    assert "ONEDNN_MAX_CPU_ISA" not in os.environ
    del engine
    gc.collect()
    assert child.returncode == 0


@AVX512
def test_what_the_engine_raises_is_raised_here(tmp_path):
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(IntegrityError, match="cannot run this model"):
        LimitedProcessor("avx512").open_engine(
            "openvino", tmp_path / "model.xml", name=tmp_path / "model.xml", precision="f32"
        )


@pytest.mark.parametrize(("program", "end"), [("exit 7", "exit 7"), ("kill -SEGV $$", "signal 11")])
def test_an_engine_that_ends_is_told_as_a_class_that_cannot_be_judged(built, tmp_path, monkeypatch, program, end):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{program}\n")
    python.chmod(0o755)
    monkeypatch.setattr(processor.sys, "executable", str(python))
    with pytest.raises(UsageError, match=rf"cpu avx2: OpenVINO ends here \({end}\).*deploy on a machine of that class"):
        LimitedProcessor("avx2").open_engine("openvino", built / "model.xml", name=built, precision="f32")


def test_layers_that_use_more_are_counted():
    kinds = {"brgconv_avx2_f32": 4, "jit_avx512_f32": 2, "gemm_mlas_f32": 1}
    assert processor._beyond("avx2", kinds) == " but for 3 of 7 layers"
    assert processor._beyond("avx512", kinds) == processor._beyond("avx2", {"jit_avx2_f32": 4}) == ""


@VNNI
@pytest.mark.slow
@pytest.mark.parametrize("seconds", [{"fp32": 2.0, "int8": 1.0}, {"fp32": 1.0, "int8": 1.0}], ids=["faster", "not"])
def test_a_precision_that_is_not_faster_there_is_not_packed(tmp_path, monkeypatch, seconds):
    """The clock is ours; the arithmetic is the class's."""
    clock = {"now": 0.0, "next": iter(seconds.values())}

    def spent(self):
        clock["now"] += next(clock["next"], 0.0) * 3 if clock["running"] else 0.0  # three scans
        clock["running"] = not clock["running"]
        return clock["now"]

    clock["running"] = False
    monkeypatch.setattr(LimitedProcessor, "spent", spent)
    folder = deploy(Levels(), tmp_path, precision="int8", cpu="avx512_vnni", max_drop=0.01)
    package = Package.open(folder, threads=1)
    manifest = package.manifest
    assert manifest.processor == "avx512_vnni" and manifest.judged_on.endswith(", as on avx512_vnni")
    assert [each.cpu_seconds for each in manifest.candidates] == list(seconds.values())
    first, last = manifest.candidates
    assert first.refusal is None
    card = (folder / "MODEL_CARD.md").read_text()
    assert "Chosen for processors of the class avx512_vnni." in card
    if seconds["int8"] < seconds["fp32"]:
        assert manifest.precision == "int8" and last.refusal is None and "i8" in package.engine.layer_precisions()
    else:
        assert manifest.precision == "fp32" and "i8" not in package.engine.layer_precisions()
        assert last.refusal is not None and "It passed, but takes 1.00 s" in last.refusal
        assert manifest.quantization is None and manifest.scores[0].drop == pytest.approx(0, abs=1e-6)


@AVX512
@pytest.mark.slow
def test_int8_for_processors_without_vnni_leaves_room_for_sums(tmp_path, monkeypatch):
    """Two products are added in 16 bits there: weights of the full range overflow, and the gate sees it."""
    folder = deploy(Levels(), tmp_path, precision="int8", cpu="avx512", max_drop=0.01)
    first, last = Package.open(folder).manifest.candidates
    assert (last.quantization, first.refusal) == ("plain, half range", None)
    assert last.snr_db is not None and last.snr_db > 30 and last.agreement is not None and last.agreement > 0.99
    monkeypatch.setattr("samkd.deploy.export.quantize_openvino.WITHOUT_VNNI", SCHEMES[:1])
    (tmp_path / "full").mkdir()
    with pytest.raises(GateRefusedError, match=r"int8 \(plain\): more than 0.01 of Dice was lost"):
        deploy(Levels(), tmp_path / "full", precision="int8", cpu="avx512", max_drop=0.01)


@pytest.mark.slow
def test_without_a_class_nothing_is_timed_or_replaced(tmp_path):
    manifest = Package.open(deploy(Levels(), tmp_path, precision="int8", max_drop=0.01)).manifest
    assert manifest.processor is None and manifest.precision == "int8"
    assert {each.cpu_seconds for each in manifest.candidates} == {None}
