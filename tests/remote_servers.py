"""Servers on the loopback address: an S3-compatible store (moto), and a folder over plain HTTP."""

import threading
from contextlib import contextmanager
from datetime import UTC, datetime

from werkzeug.serving import WSGIRequestHandler, make_server
from werkzeug.wrappers import Request, Response


class Flaky:
    """An application whose `every`-th GET fails, in turn by a status and by half a body."""

    def __init__(self, app):
        self._app = app
        self.every = 0  # 0: none
        self.spared = 0  # GETs that succeed before the first may fail
        self.status = "503 Slow Down"
        self.n_gets = 0
        self.n_failed = 0

    def __call__(self, environ, start_response):
        if environ["REQUEST_METHOD"] != "GET":
            return self._app(environ, start_response)
        self.n_gets += 1
        self.spared -= 1
        if self.spared >= 0 or not self.every or self.n_gets % self.every:
            return self._app(environ, start_response)
        self.n_failed += 1
        if self.n_failed % 2:
            start_response(self.status, [("Content-Length", "0")])
            return [b""]
        body = b"".join(self._app(environ, start_response))
        return [body[: len(body) // 2]]


class _Quiet(WSGIRequestHandler):
    def log(self, *_):
        pass


@contextmanager
def serving(app):
    """Serve an application; yields its URL."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def s3_app():
    """Moto's S3."""
    from moto.server import DomainDispatcherApplication, create_backend_app

    return DomainDispatcherApplication(create_backend_app)


def folder_app(folder):
    """The files of a folder, whole: no ranges, no listings."""

    @Request.application
    def app(request):
        file = folder / request.path.lstrip("/")
        if not file.is_file():
            return Response("nothing here", status=404)
        response = Response(file.read_bytes())
        response.last_modified = datetime.fromtimestamp(file.stat().st_mtime, UTC)
        return response

    return app
