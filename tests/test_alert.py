"""Alerts: real commands that fail in every way, of which none disturbs the run."""

import argparse
import json
import os
import shlex
import subprocess
import sys
import threading

import psutil
import pytest

from common.processes import ProcessRecord, become_subreaper
from common.progress import WARNING, cause
from recipe import alert
from recipe.alert import add_argument, one_line, use_alert
from tests.alerts import TEXTS, folder_for_alerts, make_alerts, notes, settle
from tests.conftest import ENDING_SECONDS, ROOT
from tests.test_processes import wait_until


@pytest.fixture
def folder(tmp_path, monkeypatch):
    with folder_for_alerts(tmp_path, monkeypatch) as folder:
        yield folder


@pytest.fixture
def log(folder):
    with open(folder / "train.log", "a") as file:
        yield file


SAVE = """
printf %s "$JUSTRL_ALERT_TEXT" >"$JUSTRL_ALERT_FOLDER/text"
printf %s "{\\"text\\": $JUSTRL_ALERT_JSON}" >"$JUSTRL_ALERT_FOLDER/json"
cat >"$JUSTRL_ALERT_FOLDER/stdin"
"""


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_arrives_unchanged_and_is_not_executed(text, folder, log, monkeypatch):
    alerts = make_alerts(SAVE, folder, log)
    alerts.send(text)
    settle(alerts)
    whole = f"run: {text}"
    assert (folder / "text").read_text() == whole
    assert json.loads((folder / "json").read_text()) == {"text": whole}
    assert (folder / "stdin").read_text() == f"{whole}\n"
    assert notes(log) == []
    assert not [path for place in (folder, ROOT) for path in place.glob("executed*")]


def test_a_text_is_one_line_of_limited_length(folder, log):
    alerts = make_alerts(SAVE, folder, log)
    alerts.send("a\nSubject: b\r\nc\0d\u2028e\udcff" + "é" * 100_000)
    settle(alerts)
    sent = (folder / "text").read_text()
    assert sent.startswith("run: a Subject: b cd e?éé")
    assert len(sent.encode()) in (alert.LINE_BYTES - 1, alert.LINE_BYTES)
    assert one_line("") == ""


def test_a_relative_folder_is_sent_as_an_absolute_one(folder, log, monkeypatch):
    monkeypatch.chdir(folder.parent)
    alerts = make_alerts(f'pwd >"{folder}/pwd"; echo "$JUSTRL_ALERT_FOLDER" >"{folder}/folder"', folder, log)
    alerts.folder = folder.relative_to(folder.parent)
    alerts.send("x")
    settle(alerts)
    assert (folder / "folder").read_text() == f"{folder}\n"
    assert (folder / "pwd").read_text() == f"{ROOT}\n"


@pytest.mark.parametrize(
    ("command", "note"),
    [
        ("no-such-command --x", "failed: exit status 127: /bin/sh: "),
        ("echo one; echo two >&2; exit 3", "failed: exit status 3: two"),
        ("exec 0<&- 1>&- 2>&-; exit 4", "failed: exit status 4"),
        ("printf 'ValueError: \\033[31mred\\033[0m\\007\\n'; false", "failed: exit status 1: ValueError: red"),
        ("kill -9 $$", "failed: exit status -9"),
        ("if", "failed: exit status 2: "),
        ("a\0b", "failed: embedded null byte"),
    ],
)
def test_a_failure_is_one_note_that_is_no_cause_of_the_runs_own(command, note, folder, log):
    log.write("verl: 50%|###")  # its bar has no line break
    log.flush()
    alerts = make_alerts(command, folder, log)
    alerts.send("x")
    settle(alerts)
    lines = (folder / "train.log").read_text().splitlines()
    assert lines[0] == "verl: 50%|###"
    assert len(lines) == 2
    assert lines[1].startswith(f"{WARNING}alert: {note}")
    assert cause(folder / "train.log") == "verl: 50%|###"


def test_without_a_command_nothing_starts(folder, log):
    for command in (None, ""):
        alerts = make_alerts(command, folder, log)
        alerts.send("x")
        assert alerts.outstanding == []


def test_a_command_that_waits_does_not_hold_the_run_up(folder, log):
    alerts = make_alerts(f"while [ ! -e {folder}/go ]; do sleep 0.05; done; touch {folder}/done", folder, log)
    alerts.send("x")
    (folder / "go").touch()  # reached only if send returned before the command ended
    settle(alerts)
    assert (folder / "done").exists()
    assert notes(log) == []


HUNG = "trap '' TERM INT HUP; echo started; (trap '' TERM; sleep 9871) & sleep 9872"
HUNG_BEHIND = "(trap '' TERM; setsid sleep 9873 & sleep 9874 & echo started; wait) &"


@pytest.mark.parametrize("command", [HUNG, HUNG_BEHIND])
def test_a_hung_command_is_killed_with_all_its_processes(command, folder, log):
    alerts = make_alerts(command, folder, log)
    alerts.send("x")
    wait_until(lambda: alerts.outstanding[0].output == b"started\n")
    alerts.outstanding[0].deadline = 0.0
    settle(alerts)
    assert notes(log) == ["failed: took too long and was killed: started"]


@pytest.mark.parametrize("command", ["yes", "yes >&2", "cat /dev/zero"])
def test_output_without_end_is_neither_kept_nor_waited_for(command, folder, log, monkeypatch):
    monkeypatch.setattr(alert, "LIMIT_SECONDS", 0.5)
    alerts = make_alerts(command, folder, log)
    alerts.send("x")
    settle(alerts)
    assert [note[:37] for note in notes(log)] == ["failed: took too long and was killed:"]
    assert os.stat(log.name).st_size < 2 * alert.NOTE_CHARACTERS
    assert len(alerts.outstanding[0].output) <= 4 * alert.NOTE_CHARACTERS


def test_megabytes_of_output_do_not_stop_a_command(folder, log):
    alerts = make_alerts(f"yes | head -c 5000000; touch {folder}/done; echo the last; exit 1", folder, log)
    alerts.send("x")
    settle(alerts)
    assert (folder / "done").exists()
    assert notes(log) == ["failed: exit status 1: the last"]


def test_what_a_command_leaves_in_the_background_may_end_as_the_transport_of_mail_does(folder, log):
    alerts = make_alerts(f"(sleep 1; touch {folder}/done) &", folder, log)
    alerts.send("x")
    settle(alerts)
    assert (folder / "done").exists()
    assert notes(log) == []


def test_a_warning_of_a_kind_is_sent_once(folder, log):
    alerts = make_alerts(f"cat >>{folder}/sent", folder, log)
    for text, once in (("a", "entropy"), ("b", "entropy"), ("c", ""), ("d", ""), ("e", None), ("f", None)):
        alerts.send(text, once)
        settle(alerts)
    assert (folder / "sent").read_text().split() == [word for text in "acef" for word in ("run:", text)]


def test_a_flood_is_dropped_with_one_note_and_what_was_dropped_may_be_sent_later(folder, log):
    wait = f"echo $JUSTRL_ALERT_TEXT >>{folder}/started; while [ ! -e {folder}/go ]; do sleep 0.05; done"
    (folder / "started").touch()
    alerts = make_alerts(wait, folder, log)
    for number in range(100):
        alerts.send(f"flood {number}", f"key {number}")
    wait_until(lambda: len((folder / "started").read_text().splitlines()) == alert.OUTSTANDING)
    assert len(alerts.outstanding) == alert.OUTSTANDING
    assert notes(log) == ["dropped, 8 alerts are still being sent: run: flood 8"]
    (folder / "go").touch()
    settle(alerts)
    alerts.send("again", "key 99")
    alerts.send("again", "key 0")
    settle(alerts)
    assert (folder / "started").read_text().splitlines()[alert.OUTSTANDING :] == ["run: again"]


def test_close_waits_then_kills_and_sending_goes_on(folder, log, monkeypatch):
    monkeypatch.setattr(alert, "CLOSE_SECONDS", 0.5)
    alerts = make_alerts(f"[ ! -e {folder}/hang ] || {{ {HUNG}; }}; touch {folder}/done", folder, log)
    (folder / "hang").touch()
    alerts.send("x")
    wait_until(lambda: alerts.outstanding[0].output == b"started\n")
    alerts.close()
    assert not alerts.outstanding[0].is_alive()
    assert not (folder / "done").exists()
    assert notes(log) == ["failed: took too long and was killed: started"]
    (folder / "hang").unlink()
    monkeypatch.setattr(alert, "CLOSE_SECONDS", ENDING_SECONDS)
    alerts.send("y")
    alerts.close()
    assert (folder / "done").exists()


def test_the_end_of_the_runs_processes_ends_alerts_too(folder, log):
    become_subreaper()
    alerts = make_alerts("echo started; sleep 9873", folder, log)
    alerts.send("x")
    wait_until(lambda: alerts.outstanding[0].output == b"started\n")
    ProcessRecord(folder).end_descendants()
    settle(alerts)


def test_no_log_and_no_process_can_be_had_and_the_run_goes_on(folder, log, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(11, "Resource temporarily unavailable")

    with open("/dev/full", "a") as full:
        alerts = make_alerts("exit 1", folder, full)
        alerts.send("x")
        settle(alerts)
        alerts.note("x")
    alerts.send("x")  # into a closed log
    settle(alerts)
    alerts = make_alerts("true", folder, log)
    monkeypatch.setattr(subprocess, "Popen", refuse)
    alerts.send("x")
    settle(alerts)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    alerts.send("x")
    assert notes(log) == [
        "failed: [Errno 11] Resource temporarily unavailable",
        "[Errno 11] Resource temporarily unavailable",
    ]
    alerts.close()


ALONE = """
import sys, time
from pathlib import Path
from omegaconf import OmegaConf
from recipe import alert

alert.LIMIT_SECONDS = alert.DIE_SECONDS = 1.0
config = OmegaConf.create({"justrl": {"alert": sys.argv[2]}, "trainer": {"logger": [], "project_name": "x"}})
with open(sys.argv[1] + "/train.log", "a") as log:
    alert.Alerts(config, Path(sys.argv[1]), log).send("x")
    time.sleep(1000)
"""


def test_a_hung_command_ends_also_where_the_run_was_killed(folder):
    command = f"trap '' TERM; echo $$ >{folder}/pid; exec sleep 9874"
    become_subreaper()
    run = subprocess.Popen([sys.executable, "-c", ALONE, str(folder), command], cwd=ROOT)
    wait_until(lambda: (folder / "pid").exists() and (folder / "pid").read_text().strip(), run)
    hung = psutil.Process(int((folder / "pid").read_text()))
    limiter = hung.parent()
    run.kill()
    run.wait()
    _, alive = psutil.wait_procs([hung, limiter], ENDING_SECONDS)
    assert not alive


def test_the_option_wins_over_the_config(folder, log, monkeypatch):
    monkeypatch.setenv("JUSTRL_ALERT", "")
    alerts = make_alerts(f"touch {folder}/config", folder, log)
    alerts.send("x")
    settle(alerts)
    use_alert(None)
    alerts.send("x")
    settle(alerts)
    parser = argparse.ArgumentParser()
    add_argument(parser)
    use_alert(parser.parse_args(["--alert", f': "${{NONE:-}}"; touch {folder}/option; rm {folder}/config']).alert)
    alerts.send("x")
    settle(alerts)
    assert notes(log) == []
    assert [path.name for path in sorted(folder.iterdir())] == ["option", "train.log"]


@pytest.mark.parametrize("command", ["a'b\"c $(id) `id` ${X} {a,b} = , \\", "-x", ""])
def test_the_script_passes_any_command_on(command):
    script = "\n".join(
        [
            f"set -- --alert {shlex.quote(command)} demo a=b",
            "source scripts/arguments.sh",
            'printf "%s|" "$config" "${overrides[@]}"',
            "printenv JUSTRL_ALERT",
        ]
    )
    done = subprocess.run(["bash", "-euc", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == f"demo|a=b|{command}\n"
