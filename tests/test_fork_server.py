"""A process forked from the fork server is the requested one, and dies with its client."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from common.processes import descendants
from tests.conftest import HANGING_SECONDS, ROOT
from tests.test_processes import wait_until

FORK = str(ROOT / "common" / "forked_python.py")


@pytest.fixture
def server(tmp_path):
    """A fork server that has imported `decimal` and knows its temporary folder, and the environment to reach it."""
    socket = str(tmp_path / "fork")
    (tmp_path / "temporary.py").write_text("import tempfile\ntempfile.gettempdir()\n")
    command = [sys.executable, "-m", "common.fork_server", socket, "decimal", "temporary"]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    wait_until(lambda: os.path.exists(socket), process)
    yield process, os.environ | {"JUSTRL_FORK_SERVER": socket, "JUSTRL_PYTHON": sys.executable}
    process.kill()
    process.wait()


def run(environment, *arguments, **options):
    """Run a client to its end."""
    command = [sys.executable, "-S", "-E", FORK, *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=HANGING_SECONDS, **options)


def test_arguments_environment_folder_output_and_status(server, tmp_path):
    code = "import os, sys; print(sys.argv, os.environ['MARK'], os.getcwd(), 'decimal' in sys.modules); sys.exit(7)"
    done = run(server[1] | {"MARK": "here"}, "-B", "-c", code, "one", cwd=tmp_path)
    assert (done.stdout, done.returncode) == (f"['-c', 'one'] here {tmp_path} True\n", 7)


def test_temporary_files_go_where_the_client_wants_them(server, tmp_path):
    (tmp_path / "mine").mkdir()
    code = "import tempfile; print(tempfile.gettempdir())"
    assert run(server[1] | {"TMPDIR": str(tmp_path / "mine")}, "-c", code).stdout == f"{tmp_path}/mine\n"


def test_scripts_modules_and_tracebacks(server, tmp_path):
    script = tmp_path / "script.py"
    script.write_text("import sys\nprint(__name__, sys.argv[1])\nraise ValueError('no')\n")
    done = run(server[1], str(script), "x")
    assert done.stdout == "__main__ x\n"
    assert "ValueError: no" in done.stderr
    assert done.returncode == 1
    assert run(server[1], "-m", "json.tool", "--help").returncode == 0


def test_a_closed_output_is_no_error_at_the_end(server):
    """Ray closes a worker's; an error at the end would pass for the cause of a failed run."""
    done = run(server[1], "-c", "import sys; sys.stdout.close(); sys.exit(3)")
    assert (done.returncode, done.stderr) == (3, "")
    assert run(server[1], "-c", "print('flushed', end='')").stdout == "flushed"


def test_open_files_are_passed_on(server):
    reader, writer = os.pipe()
    for number in (writer, 700):
        os.dup2(writer, number)
        assert run(server[1], "-c", f"import os; os.write({number}, b'through')", pass_fds=[number]).returncode == 0
        assert os.read(reader, 100) == b"through"


def test_signals_are_passed_on_and_a_killed_client_takes_its_process_along(server):
    for number in (signal.SIGTERM, signal.SIGKILL):
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
        client = subprocess.Popen([sys.executable, FORK, "-c", code], env=server[1], stdout=subprocess.PIPE, text=True)
        pid = int(client.stdout.readline())
        assert psutil.Process(pid).ppid() == server[0].pid
        client.send_signal(number)
        client.wait(timeout=HANGING_SECONDS)
        wait_until(lambda pid=pid: not psutil.pid_exists(pid))


def test_multiprocessing_spawns_forks(server, tmp_path):
    script = tmp_path / "spawn.py"
    script.write_text(
        "import multiprocessing, os, sys\n"
        "def work(queue):\n    queue.put(('decimal' in sys.modules, os.getppid()))\n"
        "if __name__ == '__main__':\n"
        "    context = multiprocessing.get_context('spawn')\n    queue = context.Queue()\n"
        "    process = context.Process(target=work, args=(queue,))\n    process.start()\n"
        "    print(*queue.get())\n    process.join()\n    sys.exit(process.exitcode)\n"
    )
    done = run(server[1], str(script))
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"True {server[0].pid}\n"


def test_without_a_server_it_is_an_ordinary_python(tmp_path):
    environment = os.environ | {"JUSTRL_FORK_SERVER": str(tmp_path / "nowhere"), "JUSTRL_PYTHON": sys.executable}
    assert run(environment, "-c", "print('ordinary')").stdout == "ordinary\n"


def test_when_the_server_dies_its_processes_die(server):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    client = subprocess.Popen([sys.executable, FORK, "-c", code], env=server[1], stdout=subprocess.PIPE, text=True)
    pid = int(client.stdout.readline())
    server[0].kill()
    assert client.wait(timeout=HANGING_SECONDS) == 1
    wait_until(lambda: not psutil.pid_exists(pid))


def test_a_dead_server_needs_no_client_to_end_its_processes(server):
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    client = subprocess.Popen([sys.executable, FORK, "-c", code], env=server[1], stdout=subprocess.PIPE, text=True)
    pid = int(client.stdout.readline())
    client.send_signal(signal.SIGSTOP)
    server[0].kill()
    wait_until(lambda: not psutil.pid_exists(pid))
    client.kill()
    client.wait()


def test_a_fork_counts_as_a_descendant_of_its_clients_parent(server):
    """A run ends what it started by this list, and the fork's parent is the server."""
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    client = subprocess.Popen([sys.executable, FORK, "-c", code], env=server[1], stdout=subprocess.PIPE, text=True)
    pid = int(client.stdout.readline())
    assert {client.pid, pid} <= {process.pid for process in descendants(psutil.Process())}
    client.kill()
    client.wait()
