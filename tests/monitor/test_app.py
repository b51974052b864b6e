from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import shutil

import httpx
import pytest

from partwise.experiment.store import RunStore
from partwise.monitor import Follower
from partwise.monitor.app import is_known, page, page_app
from toy_runs import NASTY, full_run

HERE = "http://127.0.0.1:8765"


class Browser:
    """Asks an application in this process."""

    def __init__(self, app):
        self._app = app

    def request(self, method, path, **how):
        async def ask():
            async with httpx.AsyncClient(transport=httpx.ASGITransport(self._app), base_url=HERE) as client:
                return await client.request(method, path, **how)

        return asyncio.run(ask())

    def get(self, path, **how):
        return self.request("GET", path, **how)


@pytest.fixture
def run(tmp_path):
    return full_run(tmp_path / "a", 0.02, 1000)


@pytest.fixture
def client(run):
    return Browser(page_app(Follower(run), names=["Lab7"]))


@pytest.fixture
def no_wait(monkeypatch):
    """Every question is a look at the run."""
    monkeypatch.setattr("partwise.monitor.app._LOOK_SECONDS", 0.0)


def test_the_page_allows_its_own_script_and_looks_and_nothing_else(client):
    answer = client.get("/")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
    for tag, rule in (("style", "style-src"), ("script", "script-src")):
        (inside,) = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode()
        assert rules[rule] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["connect-src"], rules["frame-ancestors"]) == ("'none'", "'self'", "'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"
    assert "access-control-allow-origin" not in answer.headers


def test_the_page_names_no_other_place_and_writes_no_markup():
    html, _ = page()
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)", html) == []
    assert re.findall(r"(?:src|href)=\"(?!data:,|#)", html) == []
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|new Function|style=", html) == []
    assert len(html) < 40_000


def test_the_run(client):
    found = client.get("/run", params={"metric": "auc/p10", "order": "replies", "find": "a"}).json()
    assert found["run"]["name"] == "a"
    assert found["metric"]["key"] == "auc/p10"
    assert [c["name"] for c in found["clients"]] == ["ab"]
    assert found["fault"] == ""


@pytest.mark.parametrize("asked", [{"order": "size"}, {"find": "x" * 201}, {"metric": "x" * 201}])
def test_what_cannot_be_asked(client, asked):
    assert client.get("/run", params=asked).status_code == 422
    assert client.get("/events", params=asked).status_code == 422


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/run", "/events"])
def test_it_only_reads(client, method, path):
    assert client.request(method, path).status_code == 405


@pytest.mark.parametrize("path", ["/docs", "/redoc", "/openapi.json", "/../a/record.sqlite", "/page.js", "/%2e%2e/x"])
def test_there_is_nothing_else(client, path):
    assert client.get(path).status_code == 404


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "lab8", "", "a b", "[x]"]
)
def test_a_name_that_was_made_to_point_here_gets_nothing(client, host):
    for path in ("/", "/run", "/events"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == 421
        assert answer.text.startswith("This page is not known by that name.")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8765", "127.0.0.1", "[::1]:8765", "10.0.0.7:8765", "lab7:80"])
def test_names_it_goes_by(client, host):
    assert client.get("/run", headers={"Host": host}).status_code == 200


def test_hosts_that_are_none():
    assert not any(
        map(is_known, ("", ":80", "localhost:", "localhost:123456", "local host", "[::1", "::1", "a@localhost"))
    )


def test_the_text_of_a_client_stays_text(client):
    text = client.get("/run").text
    assert json.loads(text)["incidents"][0]["reason"].endswith(NASTY)
    assert client.get("/").text.count(NASTY[:3]) == 0  # the page itself holds nothing of the run


def test_a_folder_that_goes_and_comes_back(client, run, tmp_path, no_wait):
    shutil.move(run, tmp_path / "b")
    found = client.get("/run").json()
    assert re.search(r"there must be a run's record\.sqlite, got no folder\. Name a run's folder\.$", found["fault"])
    assert found["run"]["version"] == 12
    shutil.move(tmp_path / "b", run)
    assert client.get("/run").json()["fault"] == ""


def events_of(app, count, *, path="/events", meanwhile=lambda at: None):
    """The first events of a stream. Starlette's client waits for the end of one, so the application is asked itself."""
    found = []

    async def ask():
        gone = asyncio.Event()

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.start":
                assert message["status"] == 200
                assert (b"content-type", b"text/event-stream; charset=utf-8") in message["headers"]
            elif message.get("body") and len(found) < count:
                line = message["body"].decode()
                assert line.startswith("data: ")
                assert line.endswith("\n\n")
                found.append(json.loads(line[6:]))
                meanwhile(len(found))
                if len(found) == count:
                    gone.set()

        scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1"}
        scope |= {"method": "GET", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": ""}
        scope |= {"scheme": "http", "headers": [(b"host", b"127.0.0.1")], "client": ("127.0.0.1", 1), "server": None}
        await asyncio.wait_for(app(scope, receive, send), timeout=100)

    asyncio.run(ask())
    return found


def test_a_stream_tells_what_is_new(run, monkeypatch):
    monkeypatch.setattr("partwise.monitor.app._LOOK_SECONDS", 0.02)
    monkeypatch.setattr("partwise.monitor.app._SLICE_SECONDS", 0.01)

    def meanwhile(at):
        with RunStore(run) as store:
            store.append_metrics([(12 + at, 400.0, 9, 9, "auc", "pooled", 0.875)])

    found = events_of(page_app(Follower(run)), 3, meanwhile=meanwhile)
    versions = [one["run"]["version"] for one in found]
    assert versions[0] == 12
    assert versions == sorted(versions)
    assert versions[-1] == 14
    changes = [one["changes"] for one in found]
    assert len(set(changes)) == 3


def test_a_stream_ends_with_its_server(run, monkeypatch):
    monkeypatch.setattr("partwise.monitor.app._SLICE_SECONDS", 0.01)
    over = []
    app = page_app(Follower(run), is_over=lambda: bool(over))
    assert len(events_of(app, 2, meanwhile=over.append)) == 1  # without being told that the client is gone


def test_nothing_is_handed_to_open_telemetry(run, monkeypatch):
    """Newer releases of FastAPI trace each request, and send it where the environment says."""
    trace = pytest.importorskip("opentelemetry.trace")
    monkeypatch.setenv("FASTAPI_OTEL_AUTO_CONFIGURE", "true")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    asked = []

    class Provider(trace.TracerProvider):
        def get_tracer(self, *args, **kwargs):
            asked.append(args)
            return trace.NoOpTracer()

    monkeypatch.setattr(trace, "_TRACER_PROVIDER", Provider())
    assert Browser(page_app(Follower(run))).get("/run").status_code == 200
    assert asked == []
