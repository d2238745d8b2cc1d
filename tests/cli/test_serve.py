"""`asrkit serve`: starts, serves and ends as it should, and one line for what is wrong."""

import json
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("websockets", reason="websockets is not installed (extra 'serve')")

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from asrkit.cli.main import main


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_all_results(experiment, tmp_path, number):
    (tmp_path / "token").write_text("secret\n")
    options = ["--port", "0", "--token-file", tmp_path / "token", "--threads", "1", "--beam", "1"]
    command = [sys.executable, "-m", "asrkit.cli.main", "serve", "--model", experiment, *options]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        line = server.stdout.readline()
        assert line.startswith("listening at http://127.0.0.1:") and line.endswith("/#token=…\n")
        address = line.split("//")[1].split("/")[0]
        with connect(f"ws://{address}/stream", compression=None, proxy=None) as client:
            client.send(json.dumps({"type": "start", "rate": 16000, "token": "secret"}))
            draw = np.random.default_rng(0)
            client.send(draw.integers(-9999, 9999, 32000).astype("<i2").tobytes())
            assert json.loads(client.recv())["type"] == "ready"
            server.send_signal(number)
            messages = []
            with pytest.raises(ConnectionClosed):
                while True:
                    messages.append(json.loads(client.recv()))
        assert {message.get("code") for message in messages} == {None, "shutdown"}
        assert messages[-1]["type"] == "closed"
        assert server.wait(20) == 0
        assert server.stdout.read() == server.stderr.read() == ""
        assert [file.name for file in tmp_path.iterdir()] == ["token"]  # nothing was written
    finally:
        server.kill()
        server.wait()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--streams", "0"], "--streams 0: must be positive and finite"),
        (["--idle", "-1"], "--idle -1.0: must be positive and finite"),
        (["--seconds", ".inf"], "--seconds inf: must be positive and finite"),
        (["--message-bytes", "0"], "--message-bytes 0: must be positive and finite"),
        (["--chunk-size", "0"], "--chunk-size 0: must be positive and finite"),
        (["--port", "65536"], "--port 65536: must be from 0 to 65535"),
        (["--token-file", "none"], "none: cannot be read: No such file or directory"),
        (["--token-file", "empty"], "empty: must hold one word, the token"),
        (["--token-file", "words"], "words: must hold one word, the token"),
        (["--host", "192.0.2.1", "--token-file", "token"], "192.0.2.1:8000: "),
        (["--model", "none"], "none/config.yaml: No such file or directory"),
        (["--compiled", "none"], "none/model.json: No such file or directory"),
    ],
)
def test_what_is_wrong_is_one_line(experiment, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    for name, text in {"empty": "", "words": "two words", "token": "t"}.items():
        (tmp_path / name).write_text(text)
    assert main(["serve", "--model", str(experiment), *options]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"asrkit serve: {message}")


def test_a_compiled_encoder_has_one_chunk(experiment, monkeypatch, capsys):
    def use(recogniser, folder):
        recogniser.only_chunk = (8, 2)

    monkeypatch.setattr("asrkit.cli.serve.use_encoder", use)
    assert main(["serve", "--model", str(experiment), "--compiled", "c", "--chunk-size", "4"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "asrkit serve: chunk size 4, lookahead 2: this encoder was compiled for 8 and 2"


def test_a_port_that_is_taken(experiment, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--model", str(experiment), "--port", str(port)]) == 1
    assert capsys.readouterr().err.startswith(f"asrkit serve: 127.0.0.1:{port}: ")


def test_an_open_door_is_said(experiment, capsys):
    assert main(["serve", "--model", str(experiment), "--host", "192.0.2.1"]) == 1
    warning, _ = capsys.readouterr().err.splitlines()
    assert warning == "warning: everybody who reaches 192.0.2.1 may use this server: no --token-file"


def test_without_websockets(experiment, monkeypatch, capsys):
    for module in ("asrkit.cli.serve", "asrkit.serve.server", "asrkit.serve.pages"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, "websockets.asyncio.server", None)
    assert main(["serve", "--model", str(experiment)]) == 1
    assert capsys.readouterr().err == "asrkit serve: websockets is not installed: pip install 'asrkit[serve]'\n"
