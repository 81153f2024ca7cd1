"""A real S3 server on loopback, in a process of its own."""

from __future__ import annotations

import contextlib
import re
import subprocess
import sys
from collections.abc import Iterator

SERVER = """
import time
from moto.moto_server.threaded_moto_server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print("port", server.get_host_and_port()[1], flush=True)
time.sleep(3600)
"""


@contextlib.contextmanager
def s3_server() -> Iterator[dict[str, str]]:
    """The environment that leads to it."""
    process = subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    try:
        port = next(found[1] for line in process.stdout if (found := re.search(r"^port (\d+)", line)))
        yield {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "hush-hush",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        process.kill()
        process.wait()


def make_bucket(name: str) -> str:
    """The URL of a new bucket, on the server that the environment leads to."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    safe = re.sub(r"[^a-z]+", "-", name.lower())[:40].strip("-")
    s3fs.S3FileSystem().mkdir(safe)
    return f"s3://{safe}"
