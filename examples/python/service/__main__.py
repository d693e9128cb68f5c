"""Serves the application, or checks that it works."""

import os
import signal
import sys
from importlib.metadata import version

from flask import Flask, jsonify
from waitress import serve

app = Flask("service")


@app.get("/")
def weather():
    return jsonify(place="nowhere", sky="clear")


if "--check" in sys.argv:
    answer = app.test_client().get("/")
    print("python service:", answer.json["sky"], "with flask", version("flask"))
else:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    serve(app, host="0.0.0.0", port=int(os.environ.get("PORT", "8000")))
