"""The command line as a user meets it: exit codes, one clear line, JSON as the last line."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from conftest import S3Server

from pipeline import storage
from pipeline.cli import main
from pipeline.cli.edge import conclude
from pipeline.errors import SafeFormatter

PREPROCESS = ["preprocess", "--dataset", "dpdd", "--source", "{tmp}/empty", "--dest", "{tmp}/x"]
EVALUATE = ["evaluate", "--checkpoint", "{tmp}/no", "--data", "{tmp}", "--out", "{tmp}/x"]
VERBS = ("demo", "synthesize", "preprocess", "verify", "train", "evaluate", "restore", "runs")
VERBS += ("submit",)


def era(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=120,
        check=False,
    )


def era_here(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The same in this process, which saves the start; global settings are restored."""
    log = logging.getLogger("era")
    kept = log.handlers[:], log.level, log.propagate
    others = logging.raiseExceptions, threading.excepthook, signal.getsignal(signal.SIGTERM)
    command, sys.argv = sys.argv, ["era", *arguments]
    out, err = io.StringIO(), io.StringIO()
    try:
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as left:
            main()
    finally:
        log.handlers[:], log.level, log.propagate = kept
        logging.raiseExceptions, threading.excepthook = others[:2]
        signal.signal(signal.SIGTERM, others[2])
        sys.argv = command
    code = int(left.value.code or 0)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def refused(*arguments: str) -> str:
    """The one line with which a command refuses."""
    done = era_here(*arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert [line for line in lines if "error" in line.lower()] == lines[-1:]
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_help_lists_every_verb_and_nothing_else() -> None:
    shown = era("--help").stdout
    listed = [
        line.split()[1]
        for line in shown.splitlines()
        if line.startswith("│ ") and line[2:3].isalpha()
    ]
    assert set(VERBS) <= set(listed)
    for verb in VERBS:
        assert "Usage" in era_here(verb, "--help").stdout


def test_json_is_the_last_line_and_the_only_one(tmp_path: Path) -> None:
    done = era("synthesize", "--dest", str(tmp_path), "--pairs", "3", "--size", "48x40", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["train_pairs"] == 1
    assert len(done.stdout.strip().splitlines()) == 1
    assert "synthesize: 3 of 3" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["synthesize", "--dest", "{tmp}/x", "--size", "wide"], "expected WIDTHxHEIGHT"),
        (["synthesize", "--dest", "/proc/era"], "/proc/era"),
        (["synthesize", "--dest", "{tmp}/x", "--photos", "{tmp}/empty"], "no image in this folder"),
        (
            ["preprocess", "--dataset", "dpdd", "--source", "{tmp}/empty", "--dest", "{tmp}/x"],
            "no image",
        ),
        (["verify", "{tmp}/empty"], "was it preprocessed"),
        (["train", "train.stepz=3"], "did you mean train.steps"),
        (["train"], "data.train is empty"),
        (["train", "data.train={tmp}/empty"], "make it with `era preprocess`"),
        (["train", "data.train={tmp}/empty", "--config", "tinny"], "no packaged train config"),
        (
            ["evaluate", "--checkpoint", "{tmp}/no", "--data", "{tmp}", "--out", "{tmp}/x"],
            "no manifest",
        ),
        (["restore", "{tmp}/no.png", "--out", "{tmp}/x"], "no such photograph"),
        (["restore", "{tmp}/empty", "--out", "{tmp}/x"], "no photographs in this folder"),
        (["runs", "list", "{tmp}/nowhere"], "nowhere"),
        (["verify", "ftp://host/x"], "not supported"),
        (["restore", "", "--out", "{tmp}/x"], "an empty URL"),
        (["restore", "{tmp}/photo.png", "--out", ""], "an empty URL"),
        (["train", "run.name=${foo}"], "run.name '${foo}' must be letters"),
        (["train", "--confg", "tiny"], "No such option: --confg"),
        (["synthesize", "--dest", "{tmp}/x", "--pairs", "abc"], "--pairs"),
    ],
)
def test_wrong_input_is_one_clear_line(arguments: list[str], message: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "photo.png").touch()
    assert message in refused(*(part.replace("{tmp}", str(tmp_path)) for part in arguments))


def test_missing_bucket_and_no_secret_shown(s3_server: S3Server) -> None:
    line = refused("verify", "s3://never-made/data")
    assert "no such bucket" in line
    assert s3_server.environment["AWS_SECRET_ACCESS_KEY"] not in line


def test_no_verb_shows_the_help() -> None:
    done = era_here()
    assert done.returncode == 2
    assert "synthesize" in done.stdout
    assert done.stderr == ""


def test_bad_pairs_set_aside_end_with_2(tiny_pairs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_pairs, tmp_path / "in")
    bad = next((tmp_path / "in" / "train_c" / "source").iterdir())
    bad.write_text("not a picture")
    arguments = ["preprocess", "--dataset", "dpdd", "--source", str(tmp_path / "in")]
    done = era_here(*arguments, "--dest", str(tmp_path / "out"), "--skip-bad", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["skipped"] == 1
    assert bad.name in done.stderr
    assert storage.exists(str(tmp_path / "out" / "train" / "manifest.json"))


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of shell; ``$ERA`` is the command, ``$SAY`` one with a verb that only prints."""
    return subprocess.run(
        ["bash", "-c", line],
        capture_output=True,
        text=True,
        errors="surrogateescape",
        cwd=folder,
        env={
            **os.environ,
            "ERA": f"{sys.executable} -m pipeline",
            "SAY": f"{sys.executable} say.py say",
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "PYTHONUNBUFFERED": "",
            **environment,
        },
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("$SAY --json >/dev/full", 2, "standard output: no space left on device"),
        ("$ERA --help >/dev/full", 2, "standard output: no space left on device"),
        ("$SAY >&-", 2, "standard output: bad file descriptor"),
        ("(sleep 1; $SAY; echo $? >rc) | true; exit $(cat rc)", 141, "reader"),
        ("(sleep 1; $ERA --help; echo $? >rc) | true; exit $(cat rc)", 141, "reader"),
        ("$ERA runs list runs 2>&-", 0, ""),
        ("$SAY 2>/dev/full", 0, ""),
        ("WORD=x $SAY --json 2>/dev/full", 0, ""),
        ("$ERA verify missing 2>&-", 2, ""),
    ],
)
def test_output_that_is_full_or_gone_is_told_by_the_exit_code(
    line: str, code: int, message: str, tmp_path: Path, small_runs: Path
) -> None:
    (tmp_path / "say.py").write_text(
        "import os\n"
        "from pipeline.cli import app, main\n"
        "from pipeline.cli.common import JsonFlag, run_verb, show_summary\n"
        "def work():\n"
        "    print(os.environ.get('WORD', ''), end='')\n"
        "    return {'name': '[red]x'}\n"
        "def say(json: JsonFlag = False):\n"
        "    run_verb(work, show_summary, json)\n"
        "app.command()(say)\n"
        "main()\n"
    )
    done = shell(line, tmp_path)
    assert done.returncode == code, done.stderr
    assert len(done.stderr.splitlines()) == (1 if message else 0), done.stderr
    assert message in done.stderr
    if code == 0:
        assert "[red]x" in done.stdout


def test_what_threads_of_libraries_print_is_not_in_the_summary(tmp_path: Path) -> None:
    """Ray prints what its nodes say until the process ends."""
    (tmp_path / "say.py").write_text(
        "import threading, time\n"
        "from pipeline.cli import app, main\n"
        "from pipeline.cli.common import JsonFlag, run_verb\n"
        "def late():\n"
        "    for _ in range(20):\n"
        "        print('(raylet) a word', flush=True)\n"
        "        time.sleep(0.02)\n"
        "def work():\n"
        "    threading.Thread(target=late).start()\n"
        "    return {'name': 'x'}\n"
        "def say(json: JsonFlag = False):\n"
        "    run_verb(work, lambda summary: print(*summary), json)\n"
        "app.command()(say)\n"
        "main()\n"
    )
    done = shell("$SAY --json", tmp_path)
    assert (done.returncode, done.stdout) == (0, '{"name": "x"}\n')
    assert done.stderr.count("(raylet) a word") == 20


@pytest.fixture
def small_runs(tmp_path: Path) -> Path:
    """A run whose name looks like markup."""
    from pipeline.checkpoint import META, fingerprint, write_commit

    folder = tmp_path / "runs" / "[red]x"
    step = folder / "checkpoints" / "step-00000001"
    step.mkdir(parents=True)
    (folder / "config.yaml").write_text("{}")
    meta = json.dumps({"format": "era-checkpoint/1", "step": 1}).encode()
    (step / META).write_bytes(meta)
    write_commit(str(step), 1, {"val/psnr": 20.0}, {META: fingerprint(meta)})
    return tmp_path / "runs"


def test_a_file_name_cannot_make_a_line_of_its_own() -> None:
    record = logging.makeLogRecord({"msg": "bad: %s", "args": ("a\n12:00:00 all is well\x1b[2J",)})
    assert SafeFormatter().format(record) == "bad: a\\n12:00:00 all is well\\x1b[2J"


def test_a_librarys_warning_is_one_line_without_a_traceback() -> None:
    program = """if True:
        import logging
        from pipeline.cli.common import set_up_logging
        set_up_logging()
        try:
            1 / 0
        except ZeroDivisionError:
            logging.getLogger("a library").warning("no answer", exc_info=True)
    """
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert re.fullmatch(r"[\d:]+ no answer\n", done.stderr)


def test_a_password_in_an_option_is_not_repeated(small_runs: Path) -> None:
    asked = ["runs", "list", str(small_runs), "--metric", "https://me:hunter22@host/a?sig=hunter22"]
    for options in ([], ["--json"]):
        done = era_here(*asked, *options)
        assert done.returncode == 0, done.stderr
        assert "hunter22" not in done.stdout + done.stderr


def test_an_error_of_ours_leaves_a_report_and_no_traceback(tmp_path: Path) -> None:
    """A verb's work fails in a way that no verb foresees."""
    program = (
        "from pipeline.cli import app, main\n"
        "from pipeline.cli.common import run_verb\n"
        "def work():\n"
        "    raise ValueError('[/b] \\udcff \\x1b[2J hunter22 s3://me:pw@host/x')\n"
        "app.command('broken')(lambda: run_verb(work, print, False))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, "broken"],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path), "SOME_TOKEN": "hunter22"},
        timeout=120,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.splitlines()
    (report,) = tmp_path.glob("era-report-*.txt")
    assert "ValueError: [/b] \\xff \\x1b[2J" in line
    assert "please report" in line and str(report) in line
    assert report.stat().st_mode & 0o777 == 0o600
    text = report.read_text()
    assert "Traceback (most recent call last)" in text
    for output in (line, text):
        assert "hunter22" not in output
        assert "me:pw" not in output
        assert "\x1b" not in output


def endless(number: int) -> int:
    return endless(number + 1)


@pytest.mark.parametrize(
    ("work", "code", "reason"),
    [
        (lambda: endless(0), 1, "RecursionError"),
        (lambda: bytearray(1 << 62), 1, "out of memory"),
        (lambda: int(float("inf")), 1, "OverflowError"),
        (lambda: os.write(os.open("/dev/full", os.O_WRONLY), b"x"), 2, "no space left"),
        (lambda: Path("a" * 5000).stat(), 2, "aaa: file name too long"),
    ],
)
def test_any_error_ends_in_one_line(
    work: Callable[[], object],
    code: int,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(Exception) as caught:
        work()
    assert conclude(caught.value) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert reason in line
    assert len(list(tmp_path.glob("era-report-*"))) == (code == 1)


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    done = shell("$ERA restore $'a\\xff\\x1b[2J.png' --out out", tmp_path)
    assert done.returncode == 2
    assert "a\\xff\\x1b[2J.png" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_does_not_wait_for_an_item_that_takes_minutes(workers: int) -> None:
    program = f"""
import signal, time
from pipeline.cli.common import _terminate
from pipeline.cli.edge import run_guarded
from pipeline.parallel_map import parallel_map

def work(seconds):
    print("ready", flush=True)
    time.sleep(seconds)

signal.signal(signal.SIGTERM, _terminate)
run_guarded(lambda: len(list(parallel_map(work, [600], workers={workers}))))
"""
    environment = {k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    assert process.wait(timeout=120) == 143
