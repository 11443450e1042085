"""The setup's decisions, with a stub in uv's place that notes how it is called, and a server in PyPI's."""

import hashlib
import http.server
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import zipfile

import pytest

from tests.conftest import HANGING_SECONDS, ROOT

# Answers as uv does where the machine has Python 3.11 and 3.12 with headers; FAILS names what it fails at.
UV = """#!/usr/bin/env bash
echo "$*" >>"$CALLS"
case "$*" in
  --version) echo uv 0.13 ;;
  "python find"*3.11* | "python find"*3.12*) echo "$PYTHON" ;;
  "python find"*) exit 2 ;;
  venv*)
    [[ "$FAILS" != *venv* ]] || { echo "  cause: dns error" >&2 && exit 2; }
    rm -rf .venv && mkdir -p .venv/bin && cp "$PYTHON" .venv/bin/python
    ;;
  *"-r more.txt") [[ "$FAILS" != *more* ]] || exit 1 ;;
  *flash_attn*) [[ "$FAILS" != *flash* ]] || { echo "error: no build" && exit 1; } ;;
  *--no-index*) [[ "$FAILS" != *links* ]] || exit 2 ;;
  *--default-index*) [[ "$FAILS" != *index* ]] || { echo "  cause: no network" >&2 && exit 2; } ;;
esac
"""
PYTHON = """#!/usr/bin/env bash
case "$*" in
  *version_info*) echo "$VERSION" ;;
  *Python.h*) [ -z "$NO_HEADERS" ] ;;
  *libnuma*) [ -z "$NO_NUMA" ] ;;
  "-m pip config list") printf '%s\n' ":env:.index-url='https://lab/simple'" "global.index-url='https://lab/old'" \
    "global.find-links='/wheels /more'" "global.extra-index-url='https://lab/extra'" "global.cert='/certificates'" ;;
  *) exit 1 ;;
esac
"""


@pytest.fixture
def set_up(tmp_path):
    """Run the setup in a folder of its own; return what it did and uv's calls."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT / "scripts", checkout / "scripts")
    for name in ("requirements.txt", "requirements-cpu.txt"):
        shutil.copy(ROOT / name, checkout)
    for name, text in (("uv", UV), ("python3", PYTHON)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def run(device="cpu", version="3.11", fails="", **variables):
        calls = tmp_path / "calls"
        calls.write_text("")
        env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "HOME": str(tmp_path), "CALLS": str(calls), "FAILS": fails}
        env |= {"PYTHON": str(tmp_path / "python3"), "VERSION": version, "JUSTRL_DEVICE": device, "CUDA_HOME": "/none"}
        command = [str(checkout / "scripts" / "setup_env.sh")]
        done = subprocess.run(command, env=env | variables, capture_output=True, text=True, timeout=HANGING_SECONDS)
        return done, calls.read_text().splitlines()

    return run


def test_what_is_there_needs_neither_uv_nor_a_network(set_up):
    assert set_up()[0].returncode == 0
    done, calls = set_up()
    assert (done.returncode, done.stdout, calls) == (0, "", [])


def test_the_cpus_torch_comes_from_pips_places_or_pytorchs_index(set_up):
    _, calls = set_up()
    (torch,) = [call for call in calls if "torch==" in call]
    assert "--no-index torch==2.13.0+cpu" in torch
    assert set_up("cuda", version="3.12")[0].returncode == 0
    done, calls = set_up(fails="links")
    assert done.returncode == 0
    torch = [call for call in calls if "torch==" in call][-1]
    assert torch.endswith("--default-index https://download.pytorch.org/whl/cpu torch==2.13.0+cpu")
    assert torch.count("--default-index") == 1, "uv takes one"


def test_uv_looks_where_pip_is_configured_to_look(set_up):
    _, calls = set_up("cuda", version="3.12")
    (packages,) = [call for call in calls if "-r" in call.split()]
    places = [word for word in packages.split() if word.startswith("--") and "=" in word]
    assert sorted(places) == [
        "--default-index=https://lab/simple",
        "--find-links=/more",
        "--find-links=/wheels",
        "--index=https://lab/extra",
    ]


def test_a_uv_inside_the_environment_is_not_used_to_make_it_anew(set_up, tmp_path):
    set_up()
    inside = tmp_path / "checkout" / ".venv" / "bin" / "uv"
    shutil.copy(tmp_path / "uv", inside)
    (tmp_path / "checkout" / "requirements-cpu.txt").write_text("torch==2.13.0+cpu\n")
    _, calls = set_up(PATH=f"{inside.parent}:{tmp_path}:/usr/bin:/bin")
    assert [call for call in calls if call.startswith("venv")]


def test_the_packages_of_the_tests_are_installed_once_and_their_lack_ends_nothing(set_up, tmp_path):
    (tmp_path / "checkout" / "more.txt").write_text("a==1\n")
    more = {"JUSTRL_TEST_PACKAGES": "more.txt"}
    for options in ({"fails": "more"}, {"PATH": "/usr/bin:/bin", "JUSTRL_PYTHON_BIN": str(tmp_path / "python3")}):
        assert set_up()[0].returncode == 0
        done, calls = set_up(**more, **options)
        assert (done.returncode, [call for call in calls if call.startswith("venv")]) == (0, [])
        assert "not installed: more.txt; tests that need it are skipped" in done.stdout
    _, calls = set_up(**more)
    assert calls[-1].endswith("-r more.txt")
    done, calls = set_up(**more)
    assert (done.returncode, done.stdout, calls) == (0, "", [])


def test_a_machine_without_gpus_headers_gets_a_python_that_has_them(set_up):
    _, calls = set_up("cuda", version="3.12", NO_HEADERS="1")
    assert [call for call in calls if call.startswith("venv") and call.endswith("--python 3.12 .venv")], "uv brings it"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"fails": "venv", "version": "3.9"},
            "needs Python 3.11 or 3.12 (cpu); found none, and uv could not download one (dns e",
        ),
        ({"fails": "links index"}, "for this Python is not in the configured indexes of pip, and https://down"),
        ({"JUSTRL_PYTHON_BIN": "python2"}, "JUSTRL_PYTHON_BIN=python2: is no Python 3.11 or 3.12"),
        ({"NO_NUMA": "1"}, "vLLM on a CPU needs libnuma.so.1; install it (apt-get install libnuma1"),
        ({"device": "tpu"}, "JUSTRL_DEVICE=tpu: use cpu or cuda"),
    ],
)
def test_what_ends_the_setup_is_one_line_and_status_2(set_up, options, message):
    done, _ = set_up(**options)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_an_optional_package_is_left_out_unless_asked_for(set_up):
    done, calls = set_up("cuda", version="3.12")
    assert done.returncode == 0
    assert not [call for call in calls if "flash_attn" in call or "flash-attn" in call]


@pytest.mark.parametrize(
    ("wanted", "fails", "message"),
    [
        ("1", "", "flash-attn: not built, there is no CUDA toolkit (nvcc); training uses PyTorch's own"),
        ("/wheels/flash_attn.whl", "flash", "flash-attn: not installed (error: no build); training uses PyTorch's own"),
    ],
)
def test_flash_attn_never_ends_the_setup(set_up, wanted, fails, message):
    for _ in range(2):  # asked for again, tried again
        done, _ = set_up("cuda", version="3.12", fails=fails, JUSTRL_FLASH_ATTN=wanted)
        assert done.returncode == 0
        assert message in done.stdout
        assert done.stderr == ""


def test_a_wheel_of_flash_attn_is_installed_once(set_up):
    set_up("cuda", version="3.12")
    _, calls = set_up("cuda", version="3.12", JUSTRL_FLASH_ATTN="/wheels/flash_attn.whl")
    assert [call for call in calls if call.endswith(" /wheels/flash_attn.whl")]
    assert not [call for call in calls if "-r" in call.split()], "the packages are there"
    _, calls = set_up("cuda", version="3.12", JUSTRL_FLASH_ATTN="/wheels/flash_attn.whl")
    assert not [call for call in calls if "flash_attn" in call]


# ---------------------------------------------------------------- uv itself


@pytest.fixture
def pypi():
    """A server that has one release of uv; the test changes what it says of it."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as wheel:
        wheel.writestr("uv-1.data/scripts/uv", "#!/bin/sh\necho uv 1\n")
    data = archive.getvalue()
    name = f"uv-1-py3-none-manylinux2014_{platform.machine()}.whl"
    file = {"filename": name, "url": f"../../files/{name}", "digests": {"sha256": hashlib.sha256(data).hexdigest()}}
    release = {"info": {"version": "1"}, "urls": [file | {"filename": "uv-1-py3-none-win_amd64.whl"}, file]}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(data if self.path.endswith(".whl") else json.dumps(release).encode())

        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", release, file
    server.shutdown()


def get_uv(folder, address):
    command = [sys.executable, "-I", str(ROOT / "scripts" / "get_uv.py"), str(folder)]
    env = {"JUSTRL_PYPI": address, "PATH": os.environ["PATH"]}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=HANGING_SECONDS)


def test_any_python_fetches_uv(tmp_path, pypi):
    done = get_uv(tmp_path / "new" / "folder", pypi[0])
    assert done.stdout == f"{tmp_path}/new/folder/uv\n", done.stderr
    assert subprocess.check_output([done.stdout.strip()], text=True) == "uv 1\n"


def test_a_damaged_or_missing_uv_is_one_line(tmp_path, pypi):
    pypi[2]["digests"]["sha256"] = "0"
    assert get_uv(tmp_path, pypi[0]).stderr.startswith("get_uv: ValueError: uv-1-py3-none-")
    pypi[1]["urls"].clear()
    assert f"uv 1 has no build for Linux on {platform.machine()}" in get_uv(tmp_path, pypi[0]).stderr
    assert "get_uv: " in get_uv(tmp_path, "http://127.0.0.1:1").stderr
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- the container


def test_the_layer_of_packages_has_the_files_that_it_needs(set_up, tmp_path):
    """Dockerfile.cpu's COPY lines before its setup, and then that RUN line, with the stub in uv's place."""
    lines = (ROOT / "Dockerfile.cpu").read_text().splitlines()
    (command,) = [line.removeprefix("RUN ") for line in lines if line.startswith("RUN ") and "setup_env.sh" in line]
    image = tmp_path / "image"
    for line in lines[: lines.index(f"RUN {command}")]:
        *names, target = line.split()[2:] if line.startswith("COPY ") else [""]
        for name in names:
            (image / target).mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, image / target)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CALLS": str(tmp_path / "calls"), "FAILS": "", "JUSTRL_DEVICE": "cpu"}
    env |= {"PYTHON": str(tmp_path / "python3"), "VERSION": "3.11", "HOME": str(tmp_path)}
    options = {"cwd": image, "env": env, "capture_output": True, "text": True, "timeout": HANGING_SECONDS}
    done = subprocess.run(["bash", "-c", command], **options)
    assert done.returncode == 0, done.stderr
    assert (image / ".venv" / ".justrl-cpu").read_text() == (ROOT / "requirements-cpu.txt").read_text()
