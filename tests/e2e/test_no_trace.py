"""Nothing leaves a run beside its folder: no file elsewhere, no name looked up, no connection.

Each command runs in a process of its own with an empty HOME and without CI=true, under which some
libraries keep quiet. A shim before libc notes every name that is looked up and every connection.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what, const char *name) {
  FILE *log = fopen(getenv("NETWORK_LOG"), "a");
  if (log) { fprintf(log, "%s %s\n", what, name ? name : ""); fclose(log); }
}
int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
  note("getaddrinfo", node);
  return EAI_FAIL;
}
struct hostent *gethostbyname(const char *name) {
  note("gethostbyname", name);
  return NULL;
}
int connect(int fd, const struct sockaddr *address, socklen_t length) {
  if (address->sa_family != AF_UNIX) note("connect", "");
  int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  return real(fd, address, length);
}
"""
SMALL = [
    "--set", "federation.num_devices=2", "--set", "optimizer.batch_size=4",
    "--set", "task.validation_examples=8", "--set", "task.max_tokens=16",
]  # fmt: skip
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory):
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    assert compiler, "a C compiler is needed to watch the network calls: apt-get install gcc"
    folder = tmp_path_factory.mktemp("shim")
    (folder / "shim.c").write_text(SHIM)
    library = folder / "shim.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-o", library, folder / "shim.c", "-ldl"], check=True
    )
    return library


@pytest.fixture
def traces(shim, tmp_path):
    """traces(*argv) -> (paths made outside the working folder, lines of the network log)."""

    def run(*argv):
        for name in ("home", "tmp", "work"):
            (tmp_path / name).mkdir()
        kept = {k: v for k, v in os.environ.items() if k not in ("CI", "MPLCONFIGDIR")}
        kept = {k: v for k, v in kept.items() if not k.startswith(("XDG_", "ORT_", "HF_"))}
        log = tmp_path / "network.log"
        done = subprocess.run(
            [*map(str, argv)],
            cwd=tmp_path / "work",
            env={
                **kept,
                "HOME": str(tmp_path / "home"),
                "TMPDIR": str(tmp_path / "tmp"),
                "LD_PRELOAD": str(shim),
                "NETWORK_LOG": str(log),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        outside = [p for name in ("home", "tmp") for p in (tmp_path / name).rglob("*")]
        return outside, log.read_text().splitlines() if log.exists() else []

    return run


COMMANDS = {
    "doctor": [BIN / "pairzero-device", "doctor"],
    "selftest": [BIN / "pairzero-device", "selftest", "--devices", "2"],
    "measure": [BIN / "pairzero-radio", "measure", "--devices", "2", "--snr-db", "10"],
    "run": [BIN / "pairzero", "run", "snips", "--rounds", "2", *SMALL, "--out", "run"],
    "library": [sys.executable, "-c", "import edge_runtime.forward, server.run.experiment"],
    "exporter": [
        sys.executable, "-c",
        "from server.export.dependencies import load; load('optimum.exporters.onnx')",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_writes_nothing_outside_its_folder_and_asks_no_network(traces, tmp_path, name):
    outside, network = traces(*COMMANDS[name])
    if name == "exporter":  # the hub client's own cache, which export is there to fill
        outside = [path for path in outside if ".cache" not in path.parts]
    assert outside == []
    assert network == []
    made = sorted(path.name for path in (tmp_path / "work").iterdir())
    assert made == (["run"] if name == "run" else [])


@pytest.mark.takes_long
def test_nothing_is_sent_later_either(traces):
    """onnxruntime 1.32 looked its vendor up 9 s after it was loaded."""
    program = "import time; import edge_runtime.forward; time.sleep(11)"
    assert traces(sys.executable, "-c", program) == ([], [])


def test_the_watch_sees_what_it_should(traces, tmp_path):
    """Negative control: a file below HOME, a name and a connection are all noticed."""
    program = (
        "import contextlib, pathlib, socket\n"
        "(pathlib.Path.home() / 'left').write_text('')\n"
        "with contextlib.suppress(OSError): socket.getaddrinfo('example.invalid', 80)\n"
        "with contextlib.suppress(OSError): socket.create_connection(('127.0.0.1', 9))\n"
        "with contextlib.suppress(OSError):\n"
        "    with socket.socket() as s: s.connect(('127.0.0.1', 9))\n"
    )
    outside, network = traces(sys.executable, "-c", program)
    assert [path.name for path in outside] == ["left"]
    assert network == ["getaddrinfo example.invalid", "getaddrinfo 127.0.0.1", "connect "]
