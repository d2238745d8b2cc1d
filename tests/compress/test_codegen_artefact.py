"""The folder that a compiled network is: C that any compiler takes, on any machine; files, states, mistakes."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn

from asrkit.compress.codegen import TARGETS, chains, compile_network, load_network, native_target
from asrkit.compress.codegen import target as targets
from asrkit.compress.schemes import Scheme, make_mask
from asrkit.errors import InputError

STRICT = ["-std=c11", "-Wall", "-Wextra", "-Werror"]


def tool(name, reason=""):
    """Return the path of a program; skip the test without it."""
    return shutil.which(name) or pytest.skip(f"no {name}{reason}")


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


class Everything(nn.Module):
    """A little of each step: convolutions of all kinds with masks, pooling, attention, norms, two inputs and outputs.

    Inputs end at a multiple of a vector, so that a sanitizer sees each read beyond them.
    """

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 24, 3, padding=1)
        self.second = nn.Conv2d(24, 24, 3, padding=1, stride=2)
        self.third = nn.Conv2d(24, 24, 5, padding=2, groups=3)
        self.whole = nn.Conv2d(16, 16, 4, groups=16)
        self.rows = nn.Linear(24, 24)
        self.norm = nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        for layer, scheme in ((self.first, "pattern"), (self.second, "unstructured"), (self.third, "punched 4x1")):
            groups = getattr(layer, "groups", 1)
            layer.weight.data *= make_mask(layer.weight, Scheme.parse(scheme), 0.6, groups)

    def forward(self, x, y):
        picture = self.second(self.first(x).relu())
        picture = nn.functional.gelu(self.third(picture) + picture)
        rows = nn.functional.max_pool2d(picture, 2).flatten(2).transpose(1, 2)
        rows = rows + self.rows(self.norm(rows)).tanh()
        rows = rows + self.attention(rows, rows, rows)[0]
        small = self.whole(y.view(1, 16, 4, 4))
        return rows.softmax(-1), small, torch.cat([rows, rows[:, :3]], 1).mean((1, 2)), y.amax(1)


def inputs():
    draw = torch.Generator().manual_seed(1)
    return torch.randn(1, 3, 16, 20, generator=draw), torch.randn(1, 256, generator=draw)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """The folder of the network for each target, made when first asked for; what can be computed by chunks is."""
    made = {}
    root = tmp_path_factory.mktemp("compiled")
    torch.manual_seed(0)
    model = Everything().eval()

    def folder(name):
        if name not in made:
            made[name] = root / name
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(chains, "CHUNK", 1)
                compile_network(model, inputs(), made[name], TARGETS[name])
        return made[name]

    return folder


@pytest.fixture
def folder(folders, tmp_path):
    """A copy of the network for this machine, to be damaged."""
    return shutil.copytree(folders(native_target().name), tmp_path / "copy")


# --- the C


def compiler_for(name, compiler):
    """Return the command of gcc or clang for a target."""
    target = TARGETS[name]
    if name != "neon" or native_target().name == "neon":
        return [tool(compiler), *STRICT, *target.flags]
    if compiler == "clang":
        return [tool("clang"), "--target=aarch64-linux-gnu", *STRICT, *target.flags]
    return [tool("aarch64-linux-gnu-gcc", "; tools/install_aarch64.sh installs it"), *STRICT, *target.flags]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_compilers_find_nothing_to_complain_of(name, compiler, folders, tmp_path):
    folder = folders(name)
    command = compiler_for(name, compiler)
    run(*command, "-O1", *targets.FREESTANDING, "-c", folder / "model.c", "-o", tmp_path / "model.o")
    assert run(tool("nm"), "-u", tmp_path / "model.o") == ""


def test_the_library_calls_no_other(folders):
    assert run(tool("nm"), "-u", folders(native_target().name) / "model.so") == ""


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_sanitizers_find_nothing(compiler, folders, tmp_path):
    name = native_target().name
    folder, program = folders(name), tmp_path / "test"
    sanitize = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    sources = [folder / "model.c", folder / "test.c"]
    run(*compiler_for(name, compiler), *sanitize, *sources, "-lm", "-o", program)
    assert "largest difference" in run(program, folder, 2)


def test_arm_processors_give_what_torch_gives(folders, tmp_path):
    emulator = tool("qemu-aarch64-static", "; tools/install_aarch64.sh installs it")
    folder, program = folders("neon"), tmp_path / "test"
    command = [*compiler_for("neon", "gcc"), "-O3", *targets.FREESTANDING, "-static"]
    run(*command, folder / "model.c", folder / "test.c", "-lm", "-o", program)
    assert "largest difference" in run(emulator, program, folder)


@pytest.mark.parametrize("openmp", ["OFF", "ON"])
def test_cmake_builds_it(openmp, folders, tmp_path):
    folder = folders(native_target().name)
    run(tool("cmake"), "-S", folder, "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release", f"-DMODEL_OPENMP={openmp}")
    run("cmake", "--build", tmp_path)
    run("ctest", "--test-dir", tmp_path, env={"OMP_NUM_THREADS": "2", "PATH": "/usr/bin:/bin"})
    symbols = run(tool("nm"), "-u", tmp_path / "libmodel.a")
    assert ("GOMP_parallel" in symbols) == (openmp == "ON")


def test_threads_share_a_network(folders):
    network = load_network(folders(native_target().name))
    given = [[x * (i + 1) for x in inputs()] for i in range(4)]
    expected = [network(*x) for x in given]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for alone, together in zip(expected, pool.map(lambda x: network(*x), given), strict=True):
                assert all(np.array_equal(a, b) for a, b in zip(alone, together, strict=True))


# --- the program that compares with torch


@pytest.fixture(scope="module")
def program(folders, tmp_path_factory):
    path, folder = tmp_path_factory.mktemp("program") / "test", folders(native_target().name)
    run(*compiler_for(native_target().name, "gcc"), folder / "model.c", folder / "test.c", "-lm", "-o", path)
    return path


def test_the_program_tells_of_differences(program, folder):
    assert run(program, folder).startswith("largest difference")
    file = folder / "test/output-0.bin"
    right = np.fromfile(file, np.float32)
    for wrong in (right + 0.01, np.concatenate([right[:5], [np.nan], right[6:]])):
        wrong.astype(np.float32).tofile(file)
        assert subprocess.run([program, folder], capture_output=True).returncode == 1
    right.tofile(file)
    contents = bytearray((folder / "weights.bin").read_bytes())
    contents[-100] ^= 1
    (folder / "weights.bin").write_bytes(contents)
    done = subprocess.run([program, folder], capture_output=True, text=True)
    assert done.returncode == 1 and "not the weights of this network, or damaged" in done.stderr


def test_large_outputs_are_compared_by_their_size(tmp_path):
    model = nn.Linear(64, 8).eval()
    model.weight.data *= 1e4
    compile_network(model, (torch.randn(1, 64),), tmp_path / "net")
    folder, program = tmp_path / "net", tmp_path / "test"
    run(*compiler_for(native_target().name, "gcc"), folder / "model.c", folder / "test.c", "-lm", "-o", program)
    run(program, folder)


# --- from Python


def test_layers_steps_and_times_are_told(folder):
    network = load_network(folder)
    layers = {layer["path"]: layer for layer in network.layers}
    third = layers["third"]
    assert (third["shape"], third["pixels"] >= 80, third["macs"]) == ([24, 200], True, 24 * 200 * 80)
    assert third["nonzero"] == third["stored"] == 1920
    assert set(network.profile(2)) >= {"first", "second", "third", "rows", "norm", "attention"}
    assert network.seconds(3) > 0


def test_calls_do_not_depend_on_what_was_before(folder):
    network = load_network(folder)
    x, y = inputs()
    first = network(x, y)
    network(torch.randn_like(x) * 100, -y)
    again = network(x.numpy(), y.numpy())
    assert all(np.array_equal(one, other) for one, other in zip(first, again, strict=True))
    turned = network(x.mT.contiguous().mT, y)
    assert all(np.array_equal(one, other) for one, other in zip(first, turned, strict=True))


def test_two_networks_of_the_same_name_live_side_by_side(tmp_path):
    models = [nn.Linear(8, 4).eval(), nn.Linear(5, 3).eval()]
    examples = [torch.randn(1, 8), torch.randn(1, 5)]
    networks = []
    for model, x in zip(models, examples, strict=True):
        compile_network(model, (x,), tmp_path / "same")
        networks.append(load_network(tmp_path / "same"))
    for model, x, network in zip(models, examples, networks, strict=True):
        np.testing.assert_allclose(network(x)[0], model(x).detach().numpy(), atol=1e-5)


def test_outputs_may_be_nested(tmp_path):
    class Nested(nn.Module):
        def forward(self, x):
            return {"double": 2 * x, "more": (3 * x, [4 * x])}

    compile_network(Nested(), (torch.ones(1, 3),), tmp_path / "net", name="my_net2")
    assert [float(y[0, 0]) for y in load_network(tmp_path / "net")(torch.ones(1, 3))] == [2, 3, 4]
    assert {"my_net2.c", "my_net2.h"} < {file.name for file in (tmp_path / "net").iterdir()}


# --- mistakes


class Sorting(nn.Module):
    def forward(self, x):
        return x.sort(dim=-1)[0]


class Rounding(nn.Module):
    def forward(self, x):
        return x.int() * 2


class Indexing(nn.Module):
    def forward(self, x):
        return x[:, :0]


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Clamping(nn.Module):
    def forward(self, x):
        return x.clamp(min=x.mean())


def refused(folder, model, *inputs, **options):
    """Return what a network is refused with; nothing is written."""
    with pytest.raises(InputError) as error:
        compile_network(model, inputs, folder, **options)
    assert not list(folder.parent.iterdir())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_networks_that_cannot_be_compiled_are_refused(tmp_path):
    folder, x = tmp_path / "net", torch.randn(1, 3, 8, 8)
    inner = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.ReLU(), Sorting()))
    assert refused(folder, inner, x) == "1.1: operator 'sort' is unknown to the compiler"
    two, five = x.repeat(2, 1, 1, 1), torch.randn(1, 5, 8, 8)
    assert "0: an input of shape (2, 3, 8, 8): the compiler wants a batch of 1" in refused(folder, inner, two)
    assert "an input of shape (3, 8, 8)" in refused(folder, inner, x[0])
    assert "the compiler wants a batch of 1" in refused(folder, nn.MaxPool2d(2), two)
    assert "inputs of shape (1, 5, 8, 8)" in refused(folder, inner, five)
    assert "conversion to whole numbers" in refused(folder, Rounding(), x)
    assert "without elements" in refused(folder, Indexing(), x)
    assert "cannot be traced" in refused(folder, Branching(), x)
    assert "operator 'clamp' with these arguments" in refused(folder, Clamping(), x)
    assert "mode 'reflect'" in refused(folder, nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), x)


@pytest.mark.parametrize("name", ["", "2nd", "a-b", "a b", "naïve", "x;y", "../x", "test", "all"])
def test_names_that_cannot_be_in_c_are_refused(name, tmp_path):
    assert f"'{name}'" in refused(tmp_path / "net", nn.ReLU(), torch.ones(1, 3), name=name)


def test_without_a_compiler_nothing_is_written(tmp_path, monkeypatch, folder):
    monkeypatch.setattr(targets.shutil, "which", lambda name: None)
    assert "install cc or gcc or clang" in refused(tmp_path / "new" / "net", nn.ReLU(), torch.ones(1, 3))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    with pytest.raises(InputError, match="no C compiler"):
        compile_network(nn.ReLU(), (torch.ones(1, 3),), folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before


def test_a_compiler_that_fails_is_quoted(tmp_path, monkeypatch):
    monkeypatch.setattr(targets, "FREESTANDING", ())
    monkeypatch.setattr(targets, "BASE_FLAGS", ("-fno-such-option",))
    assert "no-such-option" in refused(tmp_path / "net", nn.ReLU(), torch.ones(1, 3))


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file"):
        compile_network(nn.ReLU(), (torch.ones(1, 3),), tmp_path / "file" / "net")


def test_wrong_inputs_are_refused(folder):
    network = load_network(folder)
    x, y = inputs()
    with pytest.raises(InputError, match="1 inputs for a network of 2"):
        network(x)
    with pytest.raises(InputError, match=r"input 1 is of shape \(1, 255\), not \(1, 256\)"):
        network(x, y[:, 1:])


def changed(contents):
    return bytes([*contents[:-100], contents[-100] ^ 1, *contents[-99:]])


@pytest.mark.parametrize(
    "file, change, complaint",
    [
        ("weights.bin", lambda contents: contents[:-64], "of the wrong size"),
        ("weights.bin", lambda contents: b"", "of the wrong size"),
        ("weights.bin", lambda contents: b"other" + contents[5:], "not a file of weights"),
        ("weights.bin", changed, "damaged"),
        ("model.json", lambda contents: contents[:-100], "damaged"),
        ("model.json", lambda contents: b"{}", "damaged"),
        ("model.json", lambda contents: b"[1]", "damaged"),
        ("model.json", lambda contents: contents.replace(b'"name": "model"', b'"name": "other"'), "of another network"),
        ("model.so", lambda contents: b"#!/bin/sh", "no library for this machine"),
    ],
)
def test_damaged_files_are_named(file, change, complaint, folder):
    (folder / file).write_bytes(change((folder / file).read_bytes()))
    with pytest.raises(InputError, match=f"{file}: .*{complaint}"):
        load_network(folder)


@pytest.mark.parametrize("file", ["weights.bin", "model.json", "model.so"])
def test_missing_files_are_named(file, folder):
    (folder / file).unlink()
    with pytest.raises(InputError, match=file):
        load_network(folder)


def test_a_network_for_another_machine_has_no_library(folders):
    if native_target().name == "neon":
        pytest.skip("this is that machine")
    folder = folders("neon")
    assert not (folder / "model.so").exists() and json.loads((folder / "model.json").read_text())["target"] == "neon"
    with pytest.raises(InputError, match="no library for this machine"):
        load_network(folder)
