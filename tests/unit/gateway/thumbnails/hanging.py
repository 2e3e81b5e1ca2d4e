"""A worker that says its process number beside its source, and never ends."""

import os
import sys
import threading

from gateway.thumbnails.order import MediaOrder

if __name__ == "__main__":
    order = MediaOrder.model_validate_json(sys.stdin.buffer.readline())
    if order.target is not None:
        order.target.write_text("half")
    order.source.with_name("pid").write_text(str(os.getpid()))
    threading.Event().wait()
