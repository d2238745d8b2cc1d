"""Image sets, their batches, the networks, and `asrkit vision`."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from asrkit.cli.main import main
from asrkit.cli.vision import interval
from asrkit.compress.vision.images import ImageConfig, ImageLoader, Images, read_images
from asrkit.compress.vision.networks import Classifier, NetworkConfig, build_network, count_right, load_classifier
from asrkit.errors import InputError
from asrkit.training.config import TrainingConfig
from asrkit.training.loop import train

TINY = (
    "--images digits --images.size 8 --network.width 0.25 --training.epochs 5 --training.warm_up_hours 0 "
    "--training.average 0 --training.learning_rate 0.005 "
)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """A function that runs `asrkit vision` in an empty folder and returns its status and what it said."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ASRKIT_IMAGES", raising=False)

    def call(line: str) -> tuple[int, str]:
        try:
            status = main(["vision", *line.split()])
        except SystemExit as stop:
            status = stop.code
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def some_images(number: int = 10, channels: int = 1, side: int = 8) -> Images:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (number, channels, side, side), dtype=np.uint8)
    return Images(images, np.arange(number) % 10)


def test_splits_do_not_overlap_and_never_change():
    config = ImageConfig(size=8)
    splits = {name: read_images(config, name) for name in ("train", "valid", "test")}
    assert [len(data.labels) for data in splits.values()] == [1257, 180, 360]
    assert all(set(data.labels) == set(range(10)) for data in splits.values())
    seen = [{image.tobytes() for image in data.images} for data in splits.values()]
    assert len(set.union(*seen)) == 1797
    few = read_images(ImageConfig(size=8, most=7), "train")
    np.testing.assert_array_equal(few.images, splits["train"].images[:7])


@pytest.mark.parametrize("size, inner", [(8, 8), (16, 16), (20, 16)])
def test_images_are_enlarged_by_a_whole_factor_and_padded(size, inner):
    original = read_images(ImageConfig(size=8), "test").images
    images = read_images(ImageConfig(size=size), "test").images
    assert images.shape == (360, 1, size, size) and images.dtype == np.uint8
    edge = (size - inner) // 2
    inside = images[:, :, edge : edge + inner, edge : edge + inner]
    assert inside.sum() == images.sum() > 0
    means = original.mean((1, 2, 3)), inside.mean((1, 2, 3))
    assert np.corrcoef(means)[0, 1] > 0.95


def test_an_epoch_is_a_function_of_seed_and_number():
    config = ImageConfig(batch=4)
    batches = list(ImageLoader(some_images(), config, training=True).epoch(3))
    assert [len(batch.labels) for batch in batches] == [4, 4]
    again = ImageLoader(some_images(), config, training=True)
    for batch, same in zip(batches[1:], again.epoch(3, skip=1), strict=True):
        assert torch.equal(batch.images, same.images) and torch.equal(batch.numbers, same.numbers)
    assert not torch.equal(batches[0].images, next(again.epoch(4)).images)
    assert again.hours == sum(batch.hours for batch in batches) == 8 / 3600
    dealt = [batch for rank in (0, 1) for batch in ImageLoader(some_images(), config, True, 0, rank, 2).epoch(3)]
    assert all(torch.equal(ours.images, theirs.images) for ours, theirs in zip(batches, dealt, strict=True))


def test_evaluation_sees_every_image_as_it_is():
    data = some_images()
    loader = ImageLoader(data, ImageConfig(batch=4))
    images = torch.cat([batch.images for batch in loader.epoch(5)])
    np.testing.assert_allclose(images.numpy(), data.images / 127.5 - 1, atol=1e-6)
    assert len(loader) == 10


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_training_images_are_moved_and_only_those_of_cifar_mirrored(name):
    data = some_images(200, side=12)
    moves = [(down, right) for down in range(-2, 3) for right in range(-2, 3)]
    found = set()
    for batch in ImageLoader(data, ImageConfig(name=name, batch=50), training=True).epoch(0):
        for image, number in zip(batch.images.numpy(), batch.numbers, strict=True):
            image = np.rint((image + 1) * 127.5).astype(np.uint8)
            padded = np.pad(data.images[number], ((0, 0), (2, 2), (2, 2)))
            shown = {
                (down, right, step)
                for down, right in moves
                for step in (1, -1)
                if np.array_equal(image, padded[:, 2 + down : 14 + down, 2 + right : 14 + right][..., ::step])
            }
            assert len(shown) == 1
            found |= shown
    assert {move[:2] for move in found} == set(moves)
    assert {step for _, _, step in found} == ({1, -1} if name == "cifar10" else {1})


def test_mnist_is_read_and_damage_named(tmp_path):
    parts = {"train": 12000, "test": 30}
    arrays = {f"x_{part}": np.full((number, 28, 28), 9, np.uint8) for part, number in parts.items()}
    arrays |= {f"y_{part}": np.arange(number, dtype=np.uint8) % 10 for part, number in parts.items()}
    (tmp_path / "mnist").mkdir()
    file = tmp_path / "mnist" / "mnist.npz"
    np.savez(file, **arrays)
    config = ImageConfig(name="mnist")
    assert read_images(config, "train", tmp_path).images.shape == (7000, 1, 32, 32)
    images = read_images(config, "test", tmp_path / "mnist").images
    assert images[0, 0, 2:30, 2:30].min() == 9 and images.sum() == 30 * 28 * 28 * 9
    file.write_bytes(file.read_bytes()[:-2000])
    with pytest.raises(InputError, match="mnist.npz: damaged"):
        read_images(config, "test", tmp_path)
    np.savez(file, x_test=np.array([object()]), y_test=np.zeros(1))
    with pytest.raises(InputError, match="mnist.npz: damaged"):
        read_images(config, "test", tmp_path)
    file.unlink()
    with pytest.raises(InputError, match="mnist.npz: No such file"):
        read_images(config, "test", tmp_path)


def cifar_records(number: int) -> bytes:
    rng = np.random.default_rng(number)
    return b"".join(bytes([n % 10]) + rng.integers(0, 256, 3072, dtype=np.uint8).tobytes() for n in range(number))


def test_cifar_as_records_as_archive_and_as_pictures(tmp_path):
    names = [*(f"data_batch_{n}.bin" for n in range(1, 6)), "test_batch.bin"]
    parts = {name: cifar_records(20 + n) for n, name in enumerate(names)}
    for folder in ("files", "archive", "pictures"):
        (tmp_path / folder).mkdir()
    for name, content in parts.items():
        (tmp_path / "files" / name).write_bytes(content)
    with tarfile.open(tmp_path / "archive" / "cifar-10-binary.tar.gz", "w:gz") as tar:
        for name, content in parts.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    config = ImageConfig(name="cifar10")
    expected = read_images(config, "test", tmp_path / "files")
    assert expected.images.shape == (25, 3, 32, 32) and list(expected.labels[:11]) == [*range(10), 0]
    assert expected.images[0].tobytes() == parts["test_batch.bin"][1:3073]
    for n, (image, label) in enumerate(zip(expected.images, expected.labels, strict=True)):
        file = tmp_path / "pictures" / "test" / f"class{label}" / f"{n:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(file)
    for other in ("archive", "pictures"):
        data = read_images(config, "test", tmp_path / other)
        order = np.argsort(expected.labels, kind="stable") if other == "pictures" else slice(None)
        np.testing.assert_array_equal(data.images, expected.images[order])
        np.testing.assert_array_equal(data.labels, expected.labels[order])
    assert len(read_images(config, "train", tmp_path / "archive").labels) == 55


def test_damaged_cifar_is_named(tmp_path):
    config = ImageConfig(name="cifar10")
    with pytest.raises(InputError, match="nothing of CIFAR-10"):
        read_images(config, "test", tmp_path)
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(b"")
    with pytest.raises(InputError, match="pickled"):
        read_images(config, "test", tmp_path)
    (tmp_path / "test_batch.bin").write_bytes(cifar_records(3)[:-1])
    with pytest.raises(InputError, match="not a whole number of records"):
        read_images(config, "test", tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"no archive")
    with pytest.raises(InputError, match="cifar-10-binary.tar.gz: damaged"):
        read_images(config, "test", tmp_path)
    (tmp_path / "test" / "cat").mkdir(parents=True)
    (tmp_path / "test" / "cat" / "1.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="1.png: not a picture"):
        read_images(config, "test", tmp_path)


@pytest.mark.parametrize("kind, convolutions", [("vgg16", 13), ("resnet32", 31 + 2), ("mobilenet", 1 + 2 * 10)])
@pytest.mark.parametrize("size, channels", [(32, 3), (16, 1), (8, 1)])
def test_networks(kind, convolutions, size, channels):
    network = build_network(NetworkConfig(kind=kind, width=0.125, channels=channels, classes=7, size=size)).eval()
    images = torch.randn(3, channels, size, size)
    logits = network(images)
    assert logits.shape == (3, 7)
    torch.testing.assert_close(network(images[1:2]), logits[1:2])
    found = [layer for layer in network.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(found) == convolutions and all(layer.out_channels % 8 == 0 for layer in found)


def test_parameters_of_the_published_shapes():
    """VGG-16 with batch norm and one linear layer has 14.7 million, ResNet-32 0.46 million for colour images."""
    sizes = {kind: Classifier(NetworkConfig(kind=kind, channels=3)) for kind in ("vgg16", "resnet32")}
    counts = {kind: sum(p.numel() for p in model.parameters()) for kind, model in sizes.items()}
    assert counts["vgg16"] == 14_724_042
    assert counts["resnet32"] == 464_154 + 16 * 32 + 32 * 64 + 2 * (32 + 64)  # the two shortcuts have weights here


def test_a_batch_that_is_not_finite_is_kept_by_its_images(tmp_path):
    """The training loop saves a batch to be looked at: images have numbers in place of cuts."""
    model = Classifier(NetworkConfig(width=0.125, size=8))
    torch.nn.init.constant_(model.network[0].weight, torch.nan)
    data = ImageLoader(some_images(), ImageConfig(batch=4), training=True)
    with pytest.raises(InputError, match="not finite"):
        train(model, data, None, TrainingConfig(epochs=3), tmp_path)
    saved = torch.load(tmp_path / "bad_batches" / "step-1.pt", weights_only=True)["batches"][0]
    assert torch.equal(saved["numbers"], next(data.epoch(0)).numbers)


def test_train_and_test(run, tmp_path):
    status, said = run(f"train --out exp {TINY}")
    assert status == 0, said
    status, said = run("test --model exp")
    assert status == 0 and said.startswith("accuracy ")
    report = json.loads((tmp_path / "exp" / "score.json").read_text())
    assert report["total"] == 360 and report["accuracy"] == 100 * report["right"] / 360 > 50
    assert report["interval"][0] < report["accuracy"] < report["interval"][1]
    model = load_classifier("exp")
    config = ImageConfig(size=8, batch=7)  # the size of batches changes no result
    assert count_right(model, ImageLoader(read_images(config, "test"), config)) == (report["right"], 360)


def test_wrong_use_gives_one_line(run, tmp_path):
    for line, complaint in {
        "train --out exp --images mnist": "mnist: where are its images?",
        "train --out exp --images mnist --images-dir nowhere": "nowhere: no such folder",
        "train --out exp --images letters": "letters",
        "train --out exp --images.size 4": "size must be at least 8",
        "train --out exp --network.width -1": "width",
        "test --model nothing": "nothing/config.yaml: No such file",
    }.items():
        status, said = run(line)
        assert status == 1 and complaint in said and len(said.splitlines()) == 1, said
    assert not any(tmp_path.iterdir())


def test_another_network_in_the_same_folder_is_refused(run):
    assert run(f"train --out exp {TINY}")[0] == 0
    status, said = run(f"train --out exp {TINY} --network.kind resnet32")
    assert status == 1 and "begun with another 'network' section" in said


def test_interval_of_a_fraction():
    low, high = interval(50, 100)
    assert (low, high) == pytest.approx((40.38, 59.62), abs=1e-2)  # Wilson's, from the literature
    assert interval(10, 10)[1] == pytest.approx(100.0) and interval(0, 10)[0] == pytest.approx(0.0)
