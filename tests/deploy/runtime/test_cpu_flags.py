"""Where int8 may overflow, the device says so before it segments."""

from dataclasses import replace

import pytest

from samkd.deploy.runtime import cpu_flags
from samkd.deploy.runtime.package import Package, warn_before_use

NO_VNNI = "fpu avx2 fma avx512f"


@pytest.mark.parametrize(
    ("flags", "machine", "precision", "quantization", "warned"),
    [
        (NO_VNNI, "x86_64", "int8", "plain", True),
        (NO_VNNI, "x86_64", "int8", "plain, half range", False),
        (NO_VNNI, "x86_64", "fp32", None, False),
        (NO_VNNI + " avx_vnni", "x86_64", "int8", "plain", False),
        ("asimd", "aarch64", "int8", "plain", False),
        (None, "x86_64", "int8", "plain", False),
    ],
)
def test_int8_of_the_full_range_is_warned_of_without_vnni(
    built, monkeypatch, tmp_path, capsys, flags, machine, precision, quantization, warned
):
    if flags is not None:
        (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(cpu_flags, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu_flags.platform, "machine", lambda: machine)
    package = Package.open(built, threads=1)
    warn_before_use(
        replace(
            package, trusted=True, manifest=replace(package.manifest, precision=precision, quantization=quantization)
        )
    )
    assert ("has no VNNI" in capsys.readouterr().err) is warned
