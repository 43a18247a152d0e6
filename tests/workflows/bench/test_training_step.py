"""`samkd bench teacher` and `bench student`: what a row says of a training step, by setting."""

import json
from dataclasses import replace

import pytest
import torch
from helpers.command_line import run_cli

from samkd.errors import UsageError
from samkd.workflows.bench import training_step
from samkd.workflows.bench.training_step import StepJob, StepSetting, bench_steps, matrix_product_rate, measure

TEACHER = StepJob(name="masam", backbone="vit_tiny_p8", patch=(3, 32, 32), batch=2, steps=1)


@pytest.mark.slow
def test_a_row_has_speed_waiting_memory_and_the_share_of_the_devices_peak():
    plain = measure(TEACHER, StepSetting())
    assert plain["seconds"] > 0 and 0 < plain["waiting"] < 1 and plain["peak_mb"] > 50
    assert plain["share_of_peak"] == pytest.approx(plain["flops_per_second"] / plain["device_flops_per_second"])
    assert plain["flops_per_second"] == pytest.approx(plain["flops"] / plain["seconds"])
    again = measure(TEACHER, StepSetting(checkpointing=True))
    assert again["flops"] == plain["flops"]  # what is computed again is no work
    half = measure(replace(TEACHER, batch=1), StepSetting(bf16=True, published_attention=True))
    assert plain["flops"] == pytest.approx(2 * half["flops"], rel=0.1)


def test_a_setting_that_is_none_is_refused_before_anything_is_measured():
    with pytest.raises(UsageError, match="'fast' is none; expected plain"):
        next(bench_steps(TEACHER, ["plain", "bf16+fast"]))
    assert StepSetting.parse("plain") == StepSetting()
    assert StepSetting.parse("bf16+compile") == StepSetting(bf16=True, compile=True)


def test_a_network_without_checkpointing_is_told():
    student = StepJob(name="segresnet", backbone=None, patch=(16, 16, 16), batch=1, steps=1)
    with pytest.raises(UsageError, match="segresnet has no activation checkpointing"):
        measure(student, StepSetting(checkpointing=True))


def test_the_rate_of_a_product_is_one_of_operations():
    assert 1e8 < matrix_product_rate(torch.device("cpu"), bf16=False, repeats=2) < 1e13


def test_the_verbs_print_a_table_or_json(monkeypatch):
    row = {
        "setting": "plain",
        "seconds": 2.0,
        "samples_per_second": 0.5,
        "waiting": 0.125,
        "peak_mb": 300.0,
        "flops": 4e9,
        "flops_per_second": 2e9,
        "device_flops_per_second": 8e9,
        "share_of_peak": 0.25,
        "device": "CPU",
    }
    jobs = []

    def rows(job, settings):
        jobs.append((job, list(settings)))
        return iter([row, {"setting": "compile", "fault": "no compiler"}])

    monkeypatch.setattr(training_step, "bench_steps", rows)
    outcome = run_cli("bench", "student", "--shape", "32x32x64", "--batch", "2", "--json", in_process=True)
    assert json.loads(outcome.stdout)[0] == row
    job, settings = jobs[-1]
    assert (job.name, job.backbone, job.patch, job.batch) == ("swinunetr-tiny", None, (32, 32, 64), 2)
    assert settings == ["plain", "bf16", "compile", "bf16+compile"]
    outcome = run_cli("bench", "teacher", "--setting", "plain", "--setting", "compile", in_process=True)
    assert "12.5%" in outcome.stdout and "25%" in outcome.stdout and "no compiler" in outcome.stdout
    job, settings = jobs[-1]
    assert (job.name, job.backbone, job.patch) == ("masam", "vit_b", (5, 512, 512)) and settings == ["plain", "compile"]
    assert run_cli("bench", "student", "--student", "nobody", in_process=True).exit_code == 2
