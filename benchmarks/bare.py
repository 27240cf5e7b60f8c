"""The ceiling: the least that a Flask route under the same gunicorn can do."""

from flask import Flask

app = Flask("bare", static_folder=None)


@app.post("/")
def answer() -> dict[str, dict[str, str]]:
    return {"mappings": {}}
