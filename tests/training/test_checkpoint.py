import json
import struct
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from samkd.errors import BadInputError, IntegrityError, OutputError, SamkdError
from samkd.training.checkpoint import load_shared, load_state, load_weights, save_state, save_weights


def test_weights_come_back_exactly(tmp_path):
    one, two = torch.nn.Linear(3, 4), torch.nn.Linear(3, 4)
    save_weights(one, tmp_path / "w.safetensors")
    load_weights(two, tmp_path / "w.safetensors")
    assert torch.equal(one.weight, two.weight) and torch.equal(one.bias, two.bias)


def test_tensors_that_share_storage_are_written_apart(tmp_path):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    network[1].weight = network[0].weight
    save_weights(network, tmp_path / "w.safetensors")
    assert len(load_file(tmp_path / "w.safetensors")) == 4


def test_another_networks_weights_are_refused(tmp_path):
    save_weights(torch.nn.Linear(3, 4), tmp_path / "w.safetensors")
    with pytest.raises(BadInputError, match="not this network's"):
        load_weights(torch.nn.Linear(3, 5), tmp_path / "w.safetensors")


def test_a_network_of_other_classes_takes_what_does_not_depend_on_them(tmp_path):
    one, two = (torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, classes)) for classes in (7, 2))
    save_weights(one, tmp_path / "w.safetensors")
    theirs, before = one.state_dict(), {name: tensor.clone() for name, tensor in two.state_dict().items()}
    assert load_shared(two, tmp_path / "w.safetensors") == ["1.bias", "1.weight"]
    after = two.state_dict()
    assert all(torch.equal(after[name], theirs[name]) for name in ("0.weight", "0.bias"))
    assert all(torch.equal(after[name], before[name]) for name in ("1.weight", "1.bias"))


def test_a_pickle_is_not_read(tmp_path):
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(IntegrityError, match="not a readable safetensors"):
        load_weights(torch.nn.Linear(3, 4), tmp_path / "w.safetensors")


def test_an_interrupted_write_leaves_the_old_weights(tmp_path, monkeypatch):
    network = torch.nn.Linear(3, 4)
    path = tmp_path / "w.safetensors"
    save_weights(network, path)
    before = path.read_bytes()

    def full_disk(tensors, target, metadata):
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("samkd.training.checkpoint.save_file", full_disk)
    with pytest.raises(OutputError, match="No space left"):
        save_weights(network, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def trained() -> tuple[torch.nn.Linear, torch.optim.Optimizer]:
    """A network of 5 weights after one step."""
    torch.manual_seed(0)
    network = torch.nn.Linear(1, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return network, optimizer


def write_state(path) -> None:
    network, optimizer = trained()
    average = {"weight": torch.ones(2, 1), "bias": torch.zeros(2)}
    save_state(path, network=network, optimizer=optimizer, progress={"step": 1, "seconds": 0.5}, average=average)


def read_state(path) -> dict:
    network, optimizer = trained()
    average = {"weight": torch.zeros(2, 1), "bias": torch.zeros(2)}
    return load_state(path, network=network, optimizer=optimizer, average=average)


def write_linear(path) -> None:
    save_weights(trained()[0], path)


def read_linear(path) -> None:
    load_weights(trained()[0], path)


KINDS = {"weights": (write_linear, read_linear), "state": (write_state, read_state)}


@pytest.mark.parametrize("kind", KINDS)
def test_one_flipped_bit_anywhere_is_refused_with_exit_4(tmp_path, kind):
    write, read = KINDS[kind]
    path = tmp_path / "x.safetensors"
    write(path)
    read(path)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(IntegrityError, match=r"x\.safetensors: not a readable .*; remove") as refused:
            read(path)
        assert refused.value.exit_code == 4
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        with pytest.raises(IntegrityError):
            read(path)


def test_the_same_weights_give_the_same_bytes(tmp_path):
    """Students and caches are named after the sha256 of the whole file."""
    for name in "ab":
        write_linear(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_files_of_earlier_releases_have_no_sum_and_are_read(tmp_path):
    write_linear(tmp_path / "w")
    write_state(tmp_path / "s")
    for name, metadata in (
        ("w", {"format": "samkd-weights-1"}),
        ("s", {"format": "samkd-state-1", "progress": json.dumps({"step": 1})}),
    ):
        save_file(load_file(tmp_path / name), tmp_path / name, metadata=metadata)
    read_linear(tmp_path / "w")
    assert read_state(tmp_path / "s") == {"step": 1}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_neither_written_nor_read(tmp_path, value):
    network, optimizer = trained()
    write_linear(tmp_path / "w")
    write_state(tmp_path / "s")
    before = {name: (tmp_path / name).read_bytes() for name in "ws"}
    with torch.no_grad():
        network.bias[1] = value
    with pytest.raises(SamkdError, match=r"training went astray: NaN or infinity in bias"):
        save_weights(network, tmp_path / "w")
    with pytest.raises(SamkdError, match=r"network\.bias.*lower training\.learning_rate"):
        save_state(tmp_path / "s", network=network, optimizer=optimizer, progress={"step": 2})
    assert before == {name: (tmp_path / name).read_bytes() for name in "ws"}
    tensors = load_file(tmp_path / "w")
    tensors["bias"][0] = value
    for metadata in (None, {"format": "samkd-weights-1"}):
        save_file(tensors, tmp_path / "w", metadata=metadata)
        with pytest.raises(IntegrityError, match="NaN or infinity in bias"):
            read_linear(tmp_path / "w")
        with pytest.raises(IntegrityError, match="NaN or infinity in bias"):
            load_shared(trained()[0], tmp_path / "w")


def renamed(old: str, new: str):
    return lambda tensors: tensors.update({new: tensors.pop(old)})


HOSTILE_STATES = {
    "no dot": renamed("network.bias", "networks"),
    "unknown kind": renamed("network.bias", "buffers.bias"),
    "index is text": renamed("optimizer.0.exp_avg", "optimizer.x.exp_avg"),
    "index beyond": renamed("optimizer.0.exp_avg", "optimizer.9999.exp_avg"),
    "index only": renamed("optimizer.0.exp_avg", "optimizer.0"),
    "three dots": renamed("optimizer.0.exp_avg", "optimizer.0.exp.avg.x"),
    "index is a digit of no number": renamed("optimizer.0.exp_avg", "optimizer.².exp_avg"),
    "moment of another shape": lambda tensors: tensors.update({"optimizer.0.exp_avg": torch.zeros(7)}),
    "no average": lambda tensors: tensors.pop("average.bias"),
    "average of another": renamed("average.bias", "average.other"),
    "all moments of another name": lambda tensors: [
        renamed(name, f"{name}_2")(tensors) for name in list(tensors) if name.startswith("optimizer")
    ],
    "a moment missing": lambda tensors: tensors.pop("optimizer.1.exp_avg_sq"),
}


@pytest.mark.parametrize("name", HOSTILE_STATES)
def test_a_state_that_is_not_this_trainings_is_refused(tmp_path, name):
    path = tmp_path / "s"
    write_state(path)
    tensors = load_file(path)
    HOSTILE_STATES[name](tensors)
    save_file(tensors, path, metadata={"format": "samkd-state-1", "progress": "{}"})
    with pytest.raises(IntegrityError, match="not a readable training state"):
        read_state(path)


def test_averaged_weights_without_a_place_for_them_are_refused(tmp_path):
    write_state(tmp_path / "s")
    network, optimizer = trained()
    with pytest.raises(IntegrityError, match="averaged weights"):
        load_state(tmp_path / "s", network=network, optimizer=optimizer)


@pytest.mark.parametrize("header", [b"", b"{}", b"[" * 50_000, b'{"__metadata__": 5}', b'{"a": {"dtype": "F32"}}'])
def test_a_broken_header_is_refused(tmp_path, header):
    (tmp_path / "w").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises((IntegrityError, BadInputError)):
        read_linear(tmp_path / "w")


FULL_DISK = """
import pathlib, resource, signal, sys
import torch
from samkd.errors import OutputError
from samkd.training.checkpoint import save_weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    save_weights(torch.nn.Linear(200, 200), pathlib.Path(sys.argv[1]))
except OutputError as error:
    print(error.exit_code, error)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_is_one_line_and_leaves_the_old_weights(tmp_path):
    """With safetensors' own exception, in a process that may write files of 50 kB."""
    path = tmp_path / "w.safetensors"
    write_linear(path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"3 {path}: cannot be written (") and "File too large" in done.stdout
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
