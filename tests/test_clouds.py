"""Google Cloud Storage and Azure through the same door, on emulators of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import _free_port
from faulty_proxy import every, faulty_proxy

from pipeline import storage
from pipeline.data.split import open_split
from pipeline.errors import UserError

pytestmark = pytest.mark.full
BIG = bytes(range(256)) * 40960  # 10 MiB: a download of two ranges
AZURITE_PACKAGE = "azurite@3.37.0"
AZURITE = ("devstoreaccount1", "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/"
           "K1SZFPTOtr/KBHBeksoGMGw==")  # fmt: skip  # Azurite's own, the same everywhere


def _started(command: list[str], port: int, folder: Path) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if "PROXY" not in k.upper()}
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
    for _ in range(600):
        assert process.poll() is None, "the emulator ended at once"
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=1)
            return process
        except urllib.error.HTTPError:
            return process
        except OSError:
            time.sleep(0.1)
    process.kill()
    raise AssertionError("the emulator does not answer")


def _azurite(folder: Path) -> str:
    if found := shutil.which("azurite-blob"):
        return found
    (folder / "package.json").write_text('{"private": true}')
    subprocess.run(["npm", "install", AZURITE_PACKAGE], cwd=folder, check=True)
    return str(folder / "node_modules" / ".bin" / "azurite-blob")


@pytest.fixture(scope="module", params=["gs", "az"])
def cloud(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, str]]:
    """(scheme, endpoint) of a running emulator."""
    folder, port = tmp_path_factory.mktemp("cloud"), _free_port()
    if request.param == "gs":
        command = [str(Path(sys.executable).with_name("gcp-storage-emulator")), "start"]
        command += ["--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=bucket"]
    else:
        command = [_azurite(folder), "--silent", "--blobPort", str(port), "--inMemoryPersistence"]
        command += ["--skipApiVersionCheck", "--disableTelemetry"]
    process = _started(command, port, folder)
    try:
        yield request.param, f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def _point_at(monkeypatch: pytest.MonkeyPatch, scheme: str, endpoint: str) -> None:
    if scheme == "gs":
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", endpoint)
        return
    name, key = AZURITE
    monkeypatch.setenv(
        "AZURE_STORAGE_CONNECTION_STRING",
        f"DefaultEndpointsProtocol=http;AccountName={name};AccountKey={key};"
        f"BlobEndpoint={endpoint}/{name};",
    )


@pytest.fixture
def place(cloud: tuple[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """An empty folder in the emulator's bucket."""
    scheme, endpoint = cloud
    _point_at(monkeypatch, scheme, endpoint)
    if scheme == "az":
        import adlfs

        filesystem = adlfs.AzureBlobFileSystem(skip_instance_cache=True)
        if not filesystem.exists("bucket"):
            filesystem.mkdir("bucket")
    return f"{scheme}://bucket/{tmp_path.name}"


def test_files_come_back_as_they_were(place: str, tmp_path: Path) -> None:
    url = f"{place}/a/b.bin"
    assert not storage.exists(url)
    storage.write_bytes(url, BIG)
    assert storage.read_bytes(url) == BIG
    assert storage.read_bytes(url, 100, 400) == BIG[100:400]
    assert storage.size(url) == len(BIG)
    assert storage.exists(url)
    assert storage.is_dir(place)
    assert storage.modified(url).tzinfo is not None
    storage.download(url, tmp_path / "down")
    assert (tmp_path / "down").read_bytes() == BIG
    storage.upload(tmp_path / "down", f"{place}/up.bin")
    storage.write_json(f"{place}/c.json", {"x": 1})
    assert storage.read_json(f"{place}/c.json") == {"x": 1}
    assert storage.list_names(place) == ["a", "c.json", "up.bin"]
    assert next((e.relative, e.url) for e in storage.find(place)) == ("a/b.bin", url)
    storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"new"
    storage.check_writable(place)
    storage.delete(place)
    assert storage.find(place) == []
    assert not storage.exists(place)
    storage.delete(place)


def test_faults_say_what_they_say_elsewhere(place: str) -> None:
    scheme = place.partition(":")[0]
    with pytest.raises(UserError, match="no such object"):
        storage.read_bytes(f"{place}/missing")
    storage.write_bytes(f"{place}/short", b"abc")
    with pytest.raises(UserError, match="cut short"):
        storage.read_bytes(f"{place}/short", 0, 10)
    with pytest.raises(UserError, match="no such bucket"):
        storage.read_bytes(f"{scheme}://never-made/x")
    with pytest.raises(UserError, match="at most 2 are read"):
        storage.read_bytes(f"{place}/short", most=2)


def test_a_passing_fault_is_no_fault(
    cloud: tuple[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{place}/there", b"content")
    monkeypatch.setattr("pipeline.storage.clouds.READ_SECONDS", 1.0)
    # Azure's client waits for a minute by itself, gcsfs for ever.
    for fault in ("drop", "InternalError", *(["hang"] if cloud[0] == "gs" else [])):
        with faulty_proxy(cloud[1], every("GET", 1, fault)) as proxy:
            _point_at(monkeypatch, cloud[0], proxy.endpoint)
            assert storage.read_bytes(f"{place}/there", 0, 7) == b"content"
            assert proxy.faults() == 1


def test_a_deletion_whose_answer_is_lost_is_done(
    cloud: tuple[str, str], place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{place}/there", b"content")
    with faulty_proxy(cloud[1], every("DELETE", 1, "late-drop")) as proxy:
        _point_at(monkeypatch, cloud[0], proxy.endpoint)
        storage.delete(f"{place}/there")
        assert proxy.faults() == 1
        assert not storage.exists(f"{place}/there")


def test_shards_are_trained_on_from_there(place: str, tiny_data: Path, tmp_path: Path) -> None:
    for path in (tiny_data / "train").iterdir():
        storage.upload(path, f"{place}/train/{path.name}")
    there, here = open_split(f"{place}/train", str(tmp_path)), open_split(str(tiny_data / "train"))
    assert there.keys == here.keys
    assert (there.load(0).blur == here.load(0).blur).all()
