import pytest
import torch
from safetensors.torch import load_file

from samkd.errors import BadInputError, IntegrityError, OutputError
from samkd.training.checkpoint import load_shared, load_weights, save_weights


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
