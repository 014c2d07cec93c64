"""An engine that speaks the control protocol and misbehaves as its first argument says."""

import argparse
import os
import signal
import socket
import sys
import time

from agent import control


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("mood")
    for name in ("control", "generation", "blame", "regions", "nice", "tcp", "unix"):
        parser.add_argument(f"--{name}", type=int)
    options = parser.parse_args()
    line = socket.socket(fileno=options.control)
    words = line.makefile("rb")
    print("hello from the engine", file=sys.stderr, flush=True)

    def say(message: control.FromEngine) -> None:
        line.sendall(control.write(message))

    def crash(model: bytes) -> None:
        os.pwrite(options.blame, model.ljust(64, b"\0"), 0)
        os.kill(os.getpid(), signal.SIGSEGV)

    def run_for(model: bytes, ran_s: float) -> None:
        since_ns = time.monotonic_ns() - int(ran_s * 1e9)
        os.pwrite(options.blame, control.BLAME.pack(b"quick", model, since_ns), 0)

    match options.mood:
        case "exits":
            print("Traceback: no such thing", file=sys.stderr)
            sys.exit(3)
        case "garbage":
            line.sendall(b"\xff{nonsense\n")
        case "wrong-types":
            line.sendall(b'{"kind":"ready","models":[{"model":7,"runtime":[],"load_ms":"x",')
            line.sendall(b'"invoke_ms":1}]}\n')
        case "endless":
            while True:
                line.sendall(b"x" * 65536)
        case "deaf":
            say(control.Ready([]))
            time.sleep(60)
        case "silent":
            time.sleep(60)
        case "lingers":
            line.shutdown(socket.SHUT_RDWR)
            time.sleep(60)

    for text in words:
        message = control.read_to_engine(text)
        match message:
            case control.Load(models):
                if options.mood == "crash":
                    crash(models[0].model.encode())
                if options.mood == "stopped":
                    for _ in range(50):
                        say(control.Hung(models[0].model, "stopped after 1 s"))
                if options.mood == "fails":
                    say(control.Failed(models[0].model, "golden_mismatch", "3 of 40 differ"))
                    sys.exit(1)
                say(control.Ready([control.Loaded(m.model, "x 1", 1.0, 1.0) for m in models]))
                if options.mood == "hangs":
                    run_for(models[0].model.encode(), 3600)
                if options.mood == "half-hangs":
                    run_for(models[0].model.encode(), 3.1)
                env = [os.environ.get(n, "-") for n in ("OMP_NUM_THREADS", "FARFLUNG_RUNTIMES")]
                say(control.Note(f"{message.threads} {message.nice} {message.memory_bytes} {env}"))
            case control.Report(True):
                say(control.Scores(tallies=[control.Tally("digits", "sha256:x", pairs=5)]))
            case control.Serve():
                answer(options.tcp)
            case control.Drain():
                if options.mood == "never-drains":
                    time.sleep(60)
                say(control.Scores(final=True))
                return
            case other:
                say(control.Note(f"{other}"))


def answer(fd: int) -> None:
    """Accept one connection on the inherited socket."""
    peer, _ = socket.socket(fileno=os.dup(fd)).accept()
    peer.sendall(b"served")
    peer.close()


if __name__ == "__main__":
    main()
