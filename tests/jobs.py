"""Work for `edgemp.isolate.Worker` in tests: it answers, fails, crashes, hangs, hoards or chatters."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from edgemp.compiler.cache import default_root
from edgemp.isolate import serve


class Jobs:
    def double(self, value: int) -> int:
        return 2 * value

    def refuse(self) -> None:
        raise ValueError("not this one")

    def crash(self) -> None:
        print("last words", file=sys.stderr, flush=True)
        os.abort()

    def leave(self, code: int) -> None:
        os._exit(code)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def hoard(self, megabytes: int) -> int:
        return len([bytearray(1 << 20) for _ in range(megabytes) if time.sleep(0.002) is None])

    def hoard_in_a_child(self, megabytes: int) -> int:
        code = f"import time; kept = bytearray(b'x') * ({megabytes} << 20); time.sleep(60)"
        return subprocess.run([sys.executable, "-c", code], check=False).returncode

    def chatter(self) -> str:
        print("an engine's banner")
        os.write(1, b"from native code\n")
        return "quiet"

    def spin(self) -> int:
        """Starts a thread that never rests, as engines' thread pools do; returns the process id."""
        threading.Thread(target=lambda: [None for _ in iter(int, 1)], daemon=True).start()
        return os.getpid()

    def default_cache(self) -> str:
        return str(default_root())

    def start_helper(self) -> int:
        return subprocess.Popen(["sleep", "300"]).pid


if __name__ == "__main__":
    serve(Jobs())
