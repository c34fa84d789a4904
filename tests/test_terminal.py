"""What reaches the terminal, and how the process ends."""

import errno
import io
import os
import signal
import subprocess
import sys

import pytest
from conftest import HOSTILE, ROOT, newest_checkpoint

from simcse.cli import commands
from simcse.cli.main import main
from simcse.terminal import VisibleOutput, complain, visible
from simcse.training import loop


def test_every_character_that_acts_shows_as_an_escape():
    for number in [*range(0x300), *range(0x2000, 0x2100), 0xD800, 0xDFFF, 0xFEFF, 0x1F600]:
        character = chr(number)
        shown = visible(f"a{character}b")
        assert shown == f"a{character}b" or shown == f"a{ascii(character)[1:-1]}b"
        assert shown.isprintable() or number in (0xA0, 0xAD, 0x200B, 0x2000) or shown[1] != "\\"
    assert visible(HOSTILE).splitlines() == [visible(HOSTILE)]
    assert visible("naïve 模型 עברית 👩\u200d🔬") == "naïve 模型 עברית 👩\u200d🔬"
    assert visible("\x1b[31m\n\u202e\udce9") == "\\x1b[31m\\n\\u202e\\udce9"


def test_printed_text_keeps_its_lines_and_tabs():
    stream = io.StringIO()
    print("a\tb\x1b[2J\n\u202ec", file=VisibleOutput(stream))
    assert stream.getvalue() == "a\tb\\x1b[2J\n\\u202ec\n"


def test_a_long_line_keeps_its_place_and_its_end(capsys):
    complain(f"error: a.csv:7: {'x' * 5_000_000}; allowed is y")
    line = capsys.readouterr().err
    assert line.startswith("error: a.csv:7: xxx") and line.endswith("x; allowed is y\n")
    assert len(line) < 1000 and line.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "\x1b[31m.yaml"],
        ["train", "quickstart", "\x1b[31m=1"],
        ["train", "quickstart", "seed=\x1b[31m"],
        ["encode", "no\x1b[31m\n.txt", "-o", "e.npy"],
        ["encode", "caf\udce9.txt", "-o", "e.npy"],
        ["report", "no\x1b[31m"],
        ["search", "q", "--corpus", "c.txt", "--model", "no\x1b[31m"],
    ],
)
def test_an_error_line_has_no_character_that_acts(arguments, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and captured.err.count("\n") == 1
    assert "\x1b" not in captured.err and captured.out == ""


def test_unknown_arguments_are_named_as_they_can_be_shown(capsys):
    with pytest.raises(SystemExit):
        main(["encode", "x", "-o", "y.npy", "\x1b[31m"])
    assert "\x1b" not in capsys.readouterr().err


LAUNCH = "import sys; from simcse_launcher import main; sys.exit(main(sys.argv[1:]))"


@pytest.fixture
def start(tiny, tmp_path):
    """Encode two texts in a process of its own."""
    (tmp_path / "texts.txt").write_text("one\ntwo\n")
    words = ["encode", "texts.txt", "-o", "e.npy", "--model", str(tiny), "--pooling", "mean"]

    def start(options, code, **environment):
        return subprocess.run(
            [sys.executable, *options, "-c", code, *words],
            cwd=tmp_path, capture_output=True, text=True, env=os.environ | environment,
        )  # fmt: skip

    return start


@pytest.mark.slow
def test_commands_work_where_the_environment_asks_for_no_docstrings(start):
    found = start([], LAUNCH, PYTHONOPTIMIZE="2")
    assert (found.returncode, found.stderr) == (0, "")


def test_python_without_docstrings_or_with_warnings_as_errors(start):
    found = start(["-OO"], LAUNCH)
    assert found.returncode == 2
    assert found.stderr == "error: python -OO has no docstrings, which transformers needs\n"
    library = "import simcse.cli.main as cli, warnings; "
    library += "cli.main = lambda arguments: warnings.warn('of a library'); "
    found = start([], library + LAUNCH, PYTHONWARNINGS="error")
    assert "UserWarning" in found.stderr and "Traceback" not in found.stderr


@pytest.mark.slow
def test_a_command_that_is_terminated_leaves_no_scratch_file(start, tmp_path):
    code = (
        "import os, signal, sys; from simcse.cli.main import main; "
        "from simcse.inference import streaming; "
        "streaming.npy.write_array_header_1_0 = lambda *_: os.kill(os.getpid(), signal.SIGTERM); "
        "signal.signal(signal.SIGTERM, signal.SIG_DFL); sys.exit(main(sys.argv[1:]))"
    )
    found = start([], code)
    assert (found.returncode, found.stderr) == (143, "error: interrupted\n")
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


@pytest.mark.parametrize("name", ["ENOSPC", "EDQUOT", "EROFS", "EIO", "EFBIG"])
@pytest.mark.parametrize("words_alone", [False, True])
def test_a_disk_that_cannot_be_written_is_one_line(monkeypatch, capsys, name, words_alone):
    number = getattr(errno, name)

    def write(*_):
        if words_alone:  # as safetensors and Arrow say it
            raise RuntimeError(f"I/O error: {os.strerror(number)} (os error {number})")
        raise OSError(number, os.strerror(number), "run/scores.json")

    monkeypatch.setattr(commands, "report", write)
    assert main(["report", "x"]) == 1
    message = capsys.readouterr().err
    assert message.startswith("error: no space left on the disk, or it fails (")
    assert os.strerror(number) in message and message.count("\n") == 1


def test_a_working_folder_that_is_gone_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert main(["report", "x"]) == 2
    assert "error: the working folder is gone" in capsys.readouterr().err
    monkeypatch.chdir(tmp_path)


def test_no_home_folder_is_one_line(arguments, monkeypatch, capsys):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    for name in ("SIMCSE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pathlib.Path.home", no_home)
    assert main(arguments) == 2
    assert "no home folder to keep caches in; set SIMCSE_CACHE" in capsys.readouterr().err


def test_a_run_whose_reader_has_gone_stops_and_resumes(arguments, run, monkeypatch, capsys):
    reader, writer = os.pipe()
    original, calls = loop.backpropagate, []

    def step(*args):
        calls.append(1)
        if len(calls) == 6:
            os.close(reader)
        return original(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backpropagate", step)
        patch.setattr(sys, "stdout", io.TextIOWrapper(io.FileIO(writer, "w"), write_through=True))
        assert main(arguments) == 141
        assert sys.stdout is None  # or Python would complain when it flushes it at its end
    assert capsys.readouterr().err == ""
    assert newest_checkpoint(run) is not None and not (run / "scores.json").exists()
    assert main(arguments) == 0
    assert "resuming from" in capsys.readouterr().out


def test_closed_streams_are_no_mistake(monkeypatch):
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    assert main(["train", "nosuch"]) == 2
    assert main(["search", "x", "--corpus", "nosuch.txt", "--model", "nosuch"]) == 2


# Ctrl-C while the command line is being imported, and again while the process ends.
_INTERRUPTED = """
import atexit, os, signal, sys
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
class Finder:
    def find_spec(name, *_):
        if name == "simcse.cli.main":
            interrupt()
sys.meta_path.insert(0, Finder)
if len(sys.argv) > 1:
    atexit.register(interrupt)
from simcse_launcher import main
sys.exit(main(["train", "--schema"]))
"""


@pytest.mark.parametrize("more", [[], ["again"]])
def test_ctrl_c_while_importing_and_while_exiting_is_one_line(more):
    command = [sys.executable, "-c", _INTERRUPTED, *more]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert answer.stderr == "error: interrupted\n"
    assert answer.stdout == ""
    # The second one ends it as the system does, which a shell calls 130 too.
    assert answer.returncode == (-signal.SIGINT if more else 130)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_DOWNLOAD_TIMEOUT", "soon"),
        pytest.param("TORCH_LOGS", "nonsense", marks=pytest.mark.slow),
    ],
)
def test_a_library_s_own_setting_that_it_cannot_take_is_one_line(tmp_path, name, value):
    (tmp_path / "a.txt").write_text("a cat\n")
    answer = subprocess.run(
        [sys.executable, "-m", "simcse", "encode", "a.txt", "-o", "a.npy", "--model", "mini-bert"],
        cwd=tmp_path,
        env={**os.environ, name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 2
    assert answer.stderr.startswith(f"error: environment: {name}='{value}': ")
    assert answer.stderr.count("\n") == 1


def test_a_defect_stays_one_whatever_is_set(arguments, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise KeyError("keys 1 of steps")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("simcse.training.several.train", broken)
    with pytest.raises(KeyError):
        main(arguments)
