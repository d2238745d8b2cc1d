"""Model files: what is written is read, and nothing else is."""

import os
import resource

import pytest
import torch
from torch import nn

from asrkit.errors import InputError
from asrkit.models.checkpoint import load_weights, read_checkpoint, save_checkpoint, save_weights


class Payload:
    """Makes a directory when unpickled."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_weights_come_back(tmp_path):
    saved, loaded = nn.Linear(3, 2), nn.Linear(3, 2)
    save_weights(saved, tmp_path / "model.pt")
    load_weights(loaded, tmp_path / "model.pt")
    assert torch.equal(saved.weight, loaded.weight) and torch.equal(saved.bias, loaded.bias)


def test_another_model_is_named_by_its_first_differences(tmp_path):
    file = tmp_path / "model.pt"
    save_weights(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)), file)
    model = nn.Sequential(nn.Linear(4, 2))
    before = model[0].weight.clone()
    with pytest.raises(InputError) as error:
        load_weights(model, file)
    assert str(error.value) == (
        f"{file}: weights of another model: '0.weight' is (2, 3) where the model has (2, 4); "
        "'1.weight' is unknown to the model; '1.bias' is unknown to the model"
    )
    assert torch.equal(model[0].weight, before)
    with pytest.raises(InputError, match=r"; and 2 more$"):
        load_weights(nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3), nn.Linear(3, 2)), file)


@pytest.mark.parametrize("hidden_in", ["model", "weights"])
def test_a_pickle_payload_is_refused_and_not_executed(tmp_path, hidden_in):
    payload = Payload(tmp_path / "trace")
    torch.save({"model": payload if hidden_in == "model" else {"weight": payload}}, tmp_path / "model.pt")
    with pytest.raises(InputError, match="model.pt: not a plain model file"):
        read_checkpoint(tmp_path / "model.pt")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("contents", [b"", b"text", b"cut"])
def test_a_damaged_file_is_one_line(tmp_path, contents):
    file = tmp_path / "model.pt"
    save_weights(nn.Linear(30, 20), file)
    file.write_bytes(file.read_bytes()[:1500] if contents == b"cut" else contents)
    with pytest.raises(InputError, match="model.pt: not a plain model file") as error:
        read_checkpoint(file)
    assert "\n" not in str(error.value)


def test_a_missing_file_and_a_file_without_weights(tmp_path):
    with pytest.raises(InputError, match="none.pt: No such file"):
        read_checkpoint(tmp_path / "none.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(InputError, match="no weights under the key 'model'"):
        read_checkpoint(tmp_path / "list.pt")


def test_a_failing_disk_leaves_the_old_file(tmp_path):
    file = tmp_path / "model.pt"
    save_checkpoint({"model": {}, "step": 1}, file)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (file.stat().st_size, limit[1]))  # longer writes now really fail
    try:
        with pytest.raises(InputError, match="model.pt: cannot be written: File too large"):
            save_checkpoint({"model": {"weight": torch.zeros(10_000)}, "step": 2}, file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert read_checkpoint(file)["step"] == 1
    assert list(tmp_path.iterdir()) == [file]
