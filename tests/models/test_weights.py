"""Public weight files: caches, checksums, downloads from a server of our own."""

import hashlib
import os
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from davae.models import weights
from davae.models.weights import LPIPS_LINEAR, VGG16, PublicFile, cache_folder, fetch, find, load_weights

STATE = {"a": torch.arange(6.0), "b": torch.ones(2, 2)}


class _Server(ThreadingHTTPServer):
    requests: list[str]
    cut = False
    """Whether the connection breaks halfway."""


class _Handler(SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        data = Path(self.translate_path(self.path)).read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if self.server.cut else data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What the server serves."""
    folder = tmp_path / "public"
    folder.mkdir()
    return folder


@pytest.fixture
def server(folder: Path) -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), partial(_Handler, directory=str(folder))) as server:
        server.requests = []
        Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DAVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "cache"


def public(folder: Path, server: _Server, state: dict[str, Tensor] = STATE, name: str = "net.pth") -> PublicFile:
    """A public file of these tensors, in the format of the real ones (older than zip archives)."""
    torch.save(state, folder / name, _use_new_zipfile_serialization=False)
    data = (folder / name).read_bytes()
    url = f"http://127.0.0.1:{server.server_port}/{name}"
    return PublicFile(f"Net {name}", name, url, hashlib.sha256(data).hexdigest(), len(data))


def assert_state(loaded: dict[str, Tensor]) -> None:
    assert loaded.keys() == STATE.keys()
    assert all(torch.equal(loaded[key], STATE[key]) for key in STATE)


def test_the_public_files_are_the_published_ones() -> None:
    assert VGG16.sha256.startswith(Path(VGG16.url).stem.partition("-")[2])  # the zoo's names carry their hash
    assert VGG16.name == Path(VGG16.url).name  # so torch.hub's copy is found
    assert all(len(bytes.fromhex(file.sha256)) == 32 for file in weights.PUBLIC_FILES)
    assert all(file.url.startswith("https://") for file in weights.PUBLIC_FILES)
    assert LPIPS_LINEAR.url.endswith("/v0.1/vgg.pth")


def test_a_download_is_made_once_and_announced(folder: Path, server: _Server, cache: Path) -> None:
    file, messages = public(folder, server), []
    for _ in range(2):
        assert_state(*load_weights({file: None}, allow_download=True, say=messages.append))
    assert server.requests == ["/net.pth"]
    assert len(messages) == 1
    assert file.url in messages[0]
    assert str(cache / "net.pth") in messages[0]
    assert (cache / "net.pth").read_bytes() == (folder / "net.pth").read_bytes()
    assert {path.name for path in cache.iterdir()} == {"net.pth", "net.pth.lock"}


def test_what_a_killed_download_left_is_removed(folder: Path, server: _Server, cache: Path) -> None:
    cache.mkdir()
    (cache / f".net.pth.{platform.node().replace('.', '-')}.99999999.tmp").write_bytes(b"half")
    fetch(public(folder, server))
    assert {path.name for path in cache.iterdir()} == {"net.pth", "net.pth.lock"}


def test_nothing_is_downloaded_unasked(folder: Path, server: _Server, cache: Path) -> None:
    one, other = public(folder, server), public(folder, server, name="other.pth")
    with pytest.raises(FileNotFoundError) as error:
        load_weights({one: None, other: None})
    for file in (one, other):  # everything that is missing, in one message
        assert f"curl --create-dirs -Lo {cache / file.name} {file.url}" in str(error.value)
    assert server.requests == []
    assert not cache.exists()


def test_simultaneous_downloads_are_one(folder: Path, server: _Server, cache: Path) -> None:
    file = public(folder, server)
    with ThreadPoolExecutor(4) as pool:
        assert set(pool.map(lambda _: fetch(file), range(4))) == {cache / "net.pth"}
    assert server.requests == ["/net.pth"]


def test_a_wrong_download_is_not_kept(folder: Path, server: _Server, cache: Path) -> None:
    file = public(folder, server)
    (folder / "net.pth").write_bytes(b"<html>moved</html>")
    with pytest.raises(ValueError, match=r"/net\.pth is not the file of the Net.*\(18 bytes\), expected") as error:
        load_weights({file: None}, allow_download=True)
    assert hashlib.sha256(b"<html>moved</html>").hexdigest() in str(error.value)
    assert file.sha256 in str(error.value)
    assert [path.name for path in cache.iterdir()] == ["net.pth.lock"]


def test_half_a_download_is_not_kept(folder: Path, server: _Server, cache: Path) -> None:
    file = public(folder, server)
    server.cut = True
    with pytest.raises((ValueError, ConnectionError), match=r"Try again|Cannot fetch"):
        load_weights({file: None}, allow_download=True)
    assert find(file) is None
    server.cut = False
    assert_state(*load_weights({file: None}, allow_download=True))


def test_without_a_network_the_message_says_what_to_do(folder: Path, server: _Server, cache: Path) -> None:
    files = [public(folder, server), public(folder, server, name="other.pth")]
    server.shutdown()
    server.server_close()
    with pytest.raises(ConnectionError, match=r"Cannot fetch http.*refused.*Fetch by hand") as error:
        load_weights(dict.fromkeys(files), allow_download=True)
    assert all(f"-Lo {cache / file.name} {file.url}" in str(error.value) for file in files)
    with pytest.raises(ConnectionError, match="No such file"):  # file:// goes the same way
        fetch(PublicFile("Net", "absent.pth", (folder / "absent.pth").as_uri(), "0", 1))


def test_a_wrong_copy_is_refused_and_stays(folder: Path, server: _Server, cache: Path) -> None:
    file = public(folder, server)
    cache.mkdir()
    (cache / "net.pth").write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"net\.pth is not the file .*: got sha256 \w{64} \(4 bytes\)"):
        load_weights({file: None}, allow_download=True)
    assert (cache / "net.pth").read_bytes() == b"mine"
    assert server.requests == []


def test_the_copy_of_torch_hub_serves(folder: Path, server: _Server, cache: Path, tmp_path: Path) -> None:
    file = public(folder, server)
    hub = tmp_path / "torch" / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    (folder / "net.pth").rename(hub / "net.pth")
    assert find(file) == hub / "net.pth"
    assert_state(*load_weights({file: None}))
    assert not cache.exists()


def test_a_given_path_is_the_public_file_or_a_conversion(folder: Path, server: _Server, tmp_path: Path) -> None:
    file = public(folder, server)
    assert_state(*load_weights({file: folder / "net.pth"}))
    save_file(STATE, tmp_path / "mine.safetensors")
    assert_state(*load_weights({file: tmp_path / "mine.safetensors"}))
    torch.save(STATE, tmp_path / "mine.pth")  # the same tensors in other bytes: nobody vouches for them
    with pytest.raises(ValueError, match=r"mine\.pth is not the file"):
        load_weights({file: tmp_path / "mine.pth"})
    with pytest.raises(ValueError, match=r"got '\.bin', allowed are \.pth .* and \.safetensors"):
        load_weights({file: (folder / "net.pth").rename(tmp_path / "net.bin")})
    with pytest.raises(FileNotFoundError, match=r"no file at absent\.pth\. Correct the path, or give none"):
        load_weights({file: Path("absent.pth")}, allow_download=True)


def test_another_public_file_is_named(folder: Path, server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    one = public(folder, server)
    other = public(folder, server, {"c": torch.zeros(1)}, "other.pth")
    monkeypatch.setattr(weights, "PUBLIC_FILES", (one, other))
    with pytest.raises(ValueError, match=r"It is the file of the Net other\.pth\. Give the right one"):
        load_weights({one: folder / "other.pth"})


def test_code_in_a_file_is_not_run(folder: Path, server: _Server, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "evil"),)

    file = public(folder, server, {"a": Evil()})  # type: ignore[dict-item]
    with pytest.raises(Exception, match="mkdir"):
        load_weights({file: folder / "net.pth"})
    assert not (tmp_path / "evil").exists()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("DAVAE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "davae"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "davae"
