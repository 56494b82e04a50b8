#!/usr/bin/env python3
"""on_host.py SOCKET HOST WORDS...: what ssh is to real hosts. Has the test run a command on one of
its hosts, with this process's standard streams, and ends with its exit code."""

import json
import os
import socket
import sys

with socket.socket(socket.AF_UNIX) as test:
    test.connect(sys.argv[1])
    words = json.dumps({"words": sys.argv[2:], "environment": dict(os.environ)}).encode()
    socket.send_fds(test, [len(words).to_bytes(4, "big")], [0, 1, 2])
    test.sendall(words)
    for stream in (0, 1, 2):
        os.close(stream)
    code = test.recv(1)
os._exit(code[0] if code else 255)
