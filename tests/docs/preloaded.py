"""`kshot` and `python` for a shell, forked from one process that has imported kshot, which takes seconds.

python preloaded.py SOCKET      the process; `make_commands` writes the two programs that talk to it
"""

import contextlib
import json
import os
import runpy
import signal
import socket
import sys
import traceback
from pathlib import Path

_CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    call = {{"words": ["{name}", *sys.argv[1:]], "folder": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(server, [json.dumps(call).encode() + b"\\n"], [0, 1, 2])
    answers = server.makefile()
    process = int(answers.readline())
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, lambda number, frame: os.kill(process, number))
    sys.exit(int(answers.readline() or 137))
"""


def make_commands(folder: Path, address: Path) -> None:
    """Write the programs `kshot` and `python` into a folder for PATH."""
    for name in ("kshot", "python"):
        client = folder / name
        client.write_text(_CLIENT.format(python=sys.executable, address=str(address), name=name))
        client.chmod(0o755)


def serve(address: str) -> None:
    """Run each command that is sent in a process of its own; ends with its parent's signal."""
    import sentence_transformers  # noqa: F401

    import kshot.cli  # noqa: F401
    import kshot_command  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(address)
        server.listen(16)
        while True:
            connection, _ = server.accept()
            if os.fork() == 0:
                server.close()
                _answer(connection)
            connection.close()


def _answer(connection: socket.socket) -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    data, handles, _, _ = socket.recv_fds(connection, 1 << 20, 3)
    while not data.endswith(b"\n"):
        data += connection.recv(1 << 20)
    call = json.loads(data)
    child = os.fork()
    if child == 0:
        connection.close()
        os._exit(_run(call, handles))
    for handle in handles:
        os.close(handle)
    with contextlib.suppress(BrokenPipeError):
        connection.sendall(f"{child}\n".encode())
        connection.sendall(f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256}\n".encode())
    os._exit(0)


def _run(call: dict, handles: list[int]) -> int:
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
    os.chdir(call["folder"])
    os.environ.clear()
    os.environ.update(call["environment"])
    sys.argv = call["words"]
    code = 0
    try:
        if sys.argv[0] == "python":
            del sys.argv[0]
            sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            import kshot_command

            kshot_command.main()
    except SystemExit as stopped:
        code = stopped.code if isinstance(stopped.code, int) else int(stopped.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
