"""The one door to files: the same behaviour locally and on a real S3 server, and its failures."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import pytest
from conftest import SECRET_KEY, S3Server
from faulty_proxy import Plan, always, every, faulty_proxy

from pipeline import storage
from pipeline.errors import StorageDown, UserError

BIG = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder, locally or on S3."""
    if request.param == "local":
        return str(tmp_path / "place")
    return storage.join(request.getfixturevalue("s3_server").url, "place")


def test_names() -> None:
    assert storage.join("s3://b/a/", "c", "d.png") == "s3://b/a/c/d.png"
    assert storage.join("/", "x") == "/x"
    assert storage.name_of("s3://b/a/c.png") == "c.png"
    assert storage.is_local("a/b")
    assert not storage.is_local("s3://b")
    assert storage.absolute("x") == str(Path.cwd() / "x")
    assert storage.absolute("s3://b/x/") == "s3://b/x"


def test_round_trip(place: str, tmp_path: Path) -> None:
    url = storage.join(place, "a", "b.bin")
    assert not storage.exists(url)
    storage.write_bytes(url, BIG)
    assert storage.read_bytes(url) == BIG
    assert storage.read_bytes(url, 100, 400) == BIG[100:400]
    assert storage.read_bytes(url, 5, 5) == b""
    assert storage.size(url) == len(BIG)
    assert storage.exists(url)
    assert not storage.is_dir(url)
    storage.download(url, tmp_path / "down.bin")
    assert (tmp_path / "down.bin").read_bytes() == BIG
    storage.upload(tmp_path / "down.bin", storage.join(place, "up.bin"))
    assert storage.read_bytes(storage.join(place, "up.bin")) == BIG


def test_text_and_json(place: str) -> None:
    url = storage.join(place, "x.json")
    storage.write_json(url, {"b": [1, 2], "a": "ä"})
    assert storage.read_json(url) == {"b": [1, 2], "a": "ä"}
    storage.write_text(url, "{")
    with pytest.raises(UserError, match="not valid JSON"):
        storage.read_json(url)
    storage.write_bytes(url, b"\xff\xfe")
    with pytest.raises(UserError, match="UTF-8"):
        storage.read_text(url)


def test_listing_and_deleting(place: str) -> None:
    assert storage.list_names(place) == []
    assert storage.find(place) == []
    for name in ("b/2", "b/1", "a", "c d"):
        storage.write_bytes(storage.join(place, name), b"12345")
    assert storage.list_names(place) == ["a", "b", "c d"]
    assert storage.is_dir(place)
    assert [(e.relative, e.size) for e in storage.find(place)] == [
        ("a", 5), ("b/1", 5), ("b/2", 5), ("c d", 5),
    ]  # fmt: skip
    assert storage.read_bytes(storage.find(place)[1].url) == b"12345"
    storage.delete(storage.join(place, "a"))
    storage.delete(storage.join(place, "b"))
    storage.delete(storage.join(place, "never was"))
    assert storage.list_names(place) == ["c d"]


def test_overwriting_is_whole(place: str) -> None:
    url = storage.join(place, "x")
    storage.write_bytes(url, BIG)
    storage.write_bytes(url, b"new")
    assert storage.read_bytes(url) == b"new"
    assert storage.list_names(place) == ["x"]


def test_missing_file(place: str, tmp_path: Path) -> None:
    url = storage.join(place, "nowhere.bin")
    for read in (storage.read_bytes, storage.size, lambda u: storage.download(u, tmp_path / "x")):
        with pytest.raises(UserError, match="no such"):
            read(url)
    assert not (tmp_path / "x").exists()


def test_reading_past_the_end(place: str) -> None:
    url = storage.join(place, "x")
    storage.write_bytes(url, b"12345")
    if storage.is_local(url):
        with pytest.raises(UserError, match="cut short"):
            storage.read_bytes(url, 0, 9)


def test_what_a_killed_writer_left_is_not_listed_and_can_be_removed(tmp_path: Path) -> None:
    url = str(tmp_path / "place")
    storage.write_bytes(storage.join(url, "whole", "x"), b"1")
    for name in (".shard.tar.0a1b2c3d.era-part", ".abc.era-part/shard.tar", ".abc.era-part/d/y"):
        left = tmp_path / "place" / name
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"half")
    assert [entry.relative for entry in storage.find(url)] == ["whole/x"]
    assert storage.list_names(url) == ["whole"]
    storage.remove_unfinished(url)
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["whole"]
    storage.remove_unfinished(str(tmp_path / "nowhere"))


def test_patience_outlasts_an_outage_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (0.01, 0.01))
    ends: list[Exception | int] = [StorageDown("silent"), StorageDown("silent"), 7]

    def work() -> int:
        end = ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return end

    assert storage.retry_outages(work, "work") == 7
    ends = [StorageDown("silent")] * 3
    with pytest.raises(StorageDown):
        storage.retry_outages(work, "work")
    ends = [UserError("denied"), 7]
    with pytest.raises(UserError, match="denied"):
        storage.retry_outages(work, "work")
    monkeypatch.setattr("pipeline.storage.outage_retry.WAITS", (60.0,))
    giving_up = threading.Event()
    ends = [StorageDown("silent"), StorageDown("silent")]
    threading.Timer(0.1, giving_up.set).start()
    began = time.monotonic()
    with pytest.raises(StorageDown):
        storage.retry_outages(work, "work", giving_up)
    assert time.monotonic() - began < 5


def test_check_writable(place: str) -> None:
    storage.check_writable(storage.join(place, "deep", "down"))
    assert storage.find(place) == []


def test_multipart_upload(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.storage.bucket.UPLOAD_PART", 5 << 20)
    monkeypatch.setattr("pipeline.storage.ranges.PART", 3 << 20)
    data = BIG * 12
    (tmp_path / "big").write_bytes(data)
    url = storage.join(s3_server.url, "big")
    storage.upload(tmp_path / "big", url)
    assert (s3_server.folder / s3_server.bucket / "big").read_bytes() == data
    storage.download(url, tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data


@pytest.mark.parametrize("url", ["", "file://", " "])
def test_empty_url_is_not_the_current_folder(url: str) -> None:
    for use in (storage.absolute, storage.local_path, storage.exists, storage.list_names):
        with pytest.raises(UserError, match="an empty URL"):
            use(url)


def test_unknown_scheme() -> None:
    with pytest.raises(UserError, match="ftp:// is not supported"):
        storage.read_bytes("ftp://x/y")
    with pytest.raises(UserError, match="names no bucket"):
        storage.read_bytes("s3://")


# What cannot work locally


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    for call in (
        lambda: storage.write_bytes(str(tmp_path / "file" / "below"), b"y"),
        lambda: storage.check_writable(str(tmp_path / "file" / "below")),
    ):
        with pytest.raises(UserError, match="not a folder"):
            call()


def test_read_only_place() -> None:
    with pytest.raises(UserError, match="/proc/era"):
        storage.write_bytes("/proc/era/x", b"y")


def test_a_folder_that_cannot_be_listed_is_not_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there" / "below").mkdir(parents=True)
    (tmp_path / "there" / "below" / "x").touch()
    real, fault = os.scandir, OSError()

    def scandir(path: str) -> Any:
        if Path(path).name == "below":
            raise OSError(fault.errno, os.strerror(fault.errno or 0), path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    for code in (errno.EIO, errno.EACCES):
        fault.errno = code
        with pytest.raises(UserError, match=r"there/below: "):
            storage.find(str(tmp_path / "there"))
    for code in (errno.ENOENT, errno.ESTALE):  # removed meanwhile
        fault.errno = code
        assert storage.find(str(tmp_path / "there")) == []


def test_credentials_that_cannot_be_had_for_a_moment_are_asked_for_again() -> None:
    from botocore.exceptions import CredentialRetrievalError, NoCredentialsError
    from google.auth.exceptions import RefreshError, TransportError
    from requests.exceptions import ProxyError

    from pipeline.storage.clouds import CloudFiles
    from pipeline.storage.faults import is_transient

    assert is_transient(CredentialRetrievalError(provider="pod", error_msg="502"))
    assert not is_transient(NoCredentialsError())
    files = CloudFiles("gs", None)
    for error in (ProxyError(), TransportError("reset"), RefreshError("busy", retryable=True)):
        assert files.is_transient(error)
    assert not files.is_transient(RefreshError("revoked"))


def test_full_disk_leaves_nothing(tmp_path: Path) -> None:
    """A file-size limit stands for a full disk: the write fails midway in the same way."""
    program = (
        "import resource, sys\n"
        "from pipeline import storage\n"
        "import pipeline.storage.local  # now, or its compiled form would be cut short\n"
        "from pipeline.errors import StorageDown, UserError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "for size in 100_000, 1001:\n"  # what is small is buffered: closing it fails, too
        "    try: storage.write_bytes(sys.argv[1], bytes(size))\n"
        "    except UserError as error: print(error)\n"
    )
    url = str(tmp_path / "d" / "x")
    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, text=True, check=True
    )
    assert done.stdout.count(f"{url}: the file grows beyond the size") == 2
    assert list((tmp_path / "d").iterdir()) == []


# What cannot work on S3: one clear line, no credential in it


def _refusal(url: str) -> str:
    with pytest.raises(UserError) as caught:
        storage.read_bytes(url)
    message = str(caught.value)
    assert "\n" not in message
    assert SECRET_KEY not in message
    return message


def test_missing_bucket(s3_server: S3Server) -> None:
    assert "no such bucket" in _refusal("s3://never-made/x")
    for call in (storage.list_names, storage.find, storage.exists, storage.check_writable):
        with pytest.raises(UserError, match="no such bucket"):
            call("s3://never-made/x")


@pytest.mark.parametrize("name", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_wrong_keys(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "someone-else")
    message = _refusal(f"{s3_server.url}/x")
    assert "AWS_ACCESS_KEY_ID" in message
    assert "someone-else" not in message


def test_no_keys(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert "no S3 credentials" in _refusal(f"{s3_server.url}/x")


def test_expired_token(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with faulty_proxy(s3_server.endpoint, always("ExpiredToken")) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert "expired" in _refusal(f"{s3_server.url}/x")
        assert len(proxy.asked) <= 2  # a permanent fault is not retried


def test_nobody_listens(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://user:hidden@127.0.0.1:9")
    monkeypatch.setattr("pipeline.storage.bucket.RETRY_FOR", 1.0)
    message = _refusal(f"{s3_server.url}/x")
    assert "http://127.0.0.1:9" in message
    assert "hidden" not in message


# Faults that pass

Work = Callable[[str, Path], None]


def _read(url: str, scratch: Path) -> None:
    assert storage.read_bytes(f"{url}/there") == BIG


def _write(url: str, scratch: Path) -> None:
    storage.write_bytes(f"{url}/new", BIG)


def _upload(url: str, scratch: Path) -> None:
    (scratch / "big").write_bytes(BIG * 12)
    storage.upload(scratch / "big", f"{url}/new")


def _download(url: str, scratch: Path) -> None:
    storage.download(f"{url}/there", scratch / "copy")
    assert (scratch / "copy").read_bytes() == BIG


def _list(url: str, scratch: Path) -> None:
    assert storage.list_names(url) == ["there"]


CASES: list[tuple[Work, str, str]] = [
    (_read, "GET", "slowdown"),
    (_read, "GET", "drop"),
    (_read, "GET", "cut"),
    (_download, "GET", "cut"),
    (_list, "GET", "InternalError"),
    (_write, "PUT", "slowdown"),
    (_write, "PUT", "drop"),
    (_write, "PUT", "late-drop"),
    (_upload, "PUT", "slowdown"),
    (_upload, "POST", "InternalError"),
]


@pytest.mark.parametrize(("work", "method", "fault"), CASES)
def test_passing_faults(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    work: Work, method: str, fault: str,
) -> None:  # fmt: skip
    monkeypatch.setattr("pipeline.storage.bucket.UPLOAD_PART", 5 << 20)
    storage.write_bytes(f"{s3_server.url}/there", BIG)
    with faulty_proxy(s3_server.endpoint, every(method, 2, fault)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        work(s3_server.url, tmp_path)
        assert proxy.faults() == 2
    written = s3_server.folder / s3_server.bucket / "new"
    if work in (_write, _upload):
        assert written.read_bytes() == (BIG if work is _write else BIG * 12)


def test_a_store_that_refuses_conditional_writes_holds_runs(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Backblaze B2 does, with 501: the object is then made unless it is seen."""
    url = f"{s3_server.url}/made"
    for expected, left in ((True, b"one"), (False, b"one")):
        with faulty_proxy(s3_server.endpoint, every("PUT", 1, "NotImplemented")) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            assert storage.create(url, b"one" if expected else b"two") is expected
            assert proxy.faults() == 1  # it is not asked again
        assert storage.read_bytes(url) == left


@pytest.mark.full
@pytest.mark.parametrize("plan", [always("slowdown"), always("drop"), always("hang")])
def test_lasting_faults_end_in_one_line(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, plan: Plan
) -> None:
    with faulty_proxy(s3_server.endpoint, plan) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        assert proxy.endpoint in _refusal(f"{s3_server.url}/x")
        assert len(proxy.asked) >= 3


def test_environment_is_read_each_time(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{s3_server.url}/x", b"1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    _refusal(f"{s3_server.url}/x")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ["AWS_ACCESS_KEY_ID"])


def test_a_file_that_leads_nowhere_is_not_listed(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "b").symlink_to("gone")  # like one that is removed while the folder is read
    assert [entry.relative for entry in storage.find(str(tmp_path))] == ["a"]


# What looks like a file or a URL, and is not


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3:", "names no bucket"),
        ("s3:/x", "names no bucket"),
        ("s3:///x", "names no bucket"),
        ("s3://key:hidden-word@bucket/x", "with credentials"),
        ("s3://key:hidden-word/with/slash@bucket/x", "with credentials"),
        ("s3://b/x?X-Amz-Signature=hidden-word", "presigned"),
        ("https://h/a.png?X-Amz-Signature=hidden-word", "https:// is not supported"),
        ("ftp://u:hidden-word@h/a.png", "ftp:// is not supported"),
        ("s3n://key:abc/hidden-word@b/x", "s3n:// is not supported"),
        ("S3://key:abc/hidden-word@b/x", "S3:// is not supported"),
        ("ftp://u:p@hidden-word@h/a.png", "ftp:// is not supported"),
        ("ftp://u@hidden-word@h/a.png", "ftp:// is not supported"),
        ("zip://b/x", "zip:// is not supported"),
        ("memory://b/x", "memory:// is not supported"),
        ("nonsense://b/x", "nonsense:// is not supported"),
        ("gs://key:hidden-word@b/x", "with credentials|is not supported"),
        ("az:/x", "names no bucket"),
        ("a\0b", "NUL"),
    ],
)
def test_urls_that_name_no_file_are_refused(url: str, said: str) -> None:
    for use in (storage.absolute, storage.exists, storage.read_bytes, storage.check_writable):
        with pytest.raises(UserError, match=said) as refused:
            use(url)
        assert "hidden-word" not in str(refused.value)
    with pytest.raises(UserError, match=said):
        storage.write_bytes(storage.join(url, "below"), b"x")


@pytest.mark.parametrize(("scheme", "extra"), [("gs", "gcs"), ("az", "azure"), ("abfs", "azure")])
def test_a_scheme_without_its_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, scheme: str, extra: str
) -> None:
    monkeypatch.setattr("pipeline.storage.url._has", lambda package: False)
    with pytest.raises(UserError, match=rf"{scheme}:// is not supported .*\[{extra}\]"):
        storage.exists(f"{scheme}://bucket/key")


@pytest.mark.parametrize(
    "endpoint",
    ["http://usr:hidden-word@127.0.0.1:99999", "http://usr:hidden-word@[::1", "hidden-word"],
)
def test_endpoints_that_are_no_address(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    message = _refusal("s3://b/x")
    assert "AWS_ENDPOINT_URL is not an address" in message
    assert "hidden-word" not in message


def test_fifos_devices_and_folders_are_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for url in (str(tmp_path / "fifo"), "/dev/zero"):
        for use in (storage.read_bytes, lambda u: storage.download(u, tmp_path / "copy")):
            with pytest.raises(UserError, match="not a regular file"):
                use(url)
    with pytest.raises(UserError, match="this is a folder"):
        storage.read_bytes(str(tmp_path))
    (tmp_path / "sparse").touch()
    os.truncate(tmp_path / "sparse", 5 << 30)
    with pytest.raises(UserError, match="5368709120 bytes; at most 4294967296 are read"):
        storage.read_bytes(str(tmp_path / "sparse"))


def test_reads_are_bounded(place: str) -> None:
    url = storage.join(place, "x")
    storage.write_bytes(url, b"12345")
    assert storage.read_bytes(url, most=5) == b"12345"
    with pytest.raises(UserError, match="5 bytes; at most 4 are read"):
        storage.read_bytes(url, most=4)
    storage.write_bytes(url, b'{"a": NaN}')
    with pytest.raises(UserError, match="not valid JSON"):
        storage.read_json(url)


def test_versions_are_read_only(s3_server: S3Server) -> None:
    url = f"{s3_server.url}/x?versionId=abc"
    for use in (lambda u: storage.write_bytes(u, b"x"), storage.delete):
        with pytest.raises(UserError, match="a version can be read only"):
            use(url)


def test_a_name_with_a_tilde_is_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage.write_bytes("~no-such-user.png", b"x")
    assert (tmp_path / "~no-such-user.png").read_bytes() == b"x"
    with pytest.raises(UserError, match=r"nobody's home directory here; .* \./~no-such-user/x"):
        storage.write_bytes("~no-such-user/x", b"x")
    storage.write_bytes("./~no-such-user/x", b"x")
    assert (tmp_path / "~no-such-user" / "x").read_bytes() == b"x"


class _Objects(BaseHTTPRequestHandler):
    """The parts of S3 needed for objects whose keys end in a slash, which rclone cannot hold."""

    protocol_version = "HTTP/1.1"  # answers Expect: 100-continue
    kept: ClassVar[dict[str, bytes]] = {}

    def _answer(self, status: int, body: bytes = b"") -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        key = self.path[1:].partition("?")[0]
        self._answer(200 if key in self.kept or key == "bucket" else 404)

    def do_PUT(self) -> None:
        self.kept[self.path[1:]] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer(200)

    def do_DELETE(self) -> None:
        del self.kept[self.path[1:]]
        self._answer(204)

    def do_GET(self) -> None:
        query = dict(parse_qsl(self.path.partition("?")[2]))
        prefix, cut = f"bucket/{query.get('prefix', '')}", query.get("delimiter", "")
        inner = ""
        for key in sorted(key for key in self.kept if key.startswith(prefix)):
            rest, name = key[len(prefix) :], key.removeprefix("bucket/")
            if cut and cut in rest:
                above = name[: len(name) - len(rest) + rest.index(cut) + 1]
                inner += f"<CommonPrefixes><Prefix>{above}</Prefix></CommonPrefixes>"
            else:
                size = len(self.kept[key])
                inner += f"<Contents><Key>{name}</Key><Size>{size}</Size></Contents>"
        self._answer(200, f"<ListBucketResult>{inner}</ListBucketResult>".encode())

    def log_message(self, *_: object) -> None:
        pass


def test_folders_made_in_a_web_console_are_no_content(
    s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are empty objects whose key ends in a slash."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Objects) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        try:
            _Objects.kept.update({"bucket/folder/": b"", "bucket/folder/sub/": b""})
            assert storage.find("s3://bucket/folder") == []
            storage.write_bytes("s3://bucket/folder/sub/x", b"1")
            assert [entry.relative for entry in storage.find("s3://bucket/folder")] == ["sub/x"]
            assert storage.list_names("s3://bucket/folder") == ["sub"]
            storage.delete("s3://bucket/folder")
            assert _Objects.kept == {}
        finally:
            server.shutdown()
