"""`retailtag serve`: a fitted model behind HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING

from retailtag.cli.app import app
from retailtag.cli.verb import Call, ModelArgument, command

if TYPE_CHECKING:
    from retailtag.tagger.serving.answers import ModelFacts


@command(app, "serve", catalogue=False)
def serve(
    call: Call,
    model: ModelArgument,
) -> None:
    """Serve a fitted model over HTTP: /predict, /docs, /metrics, /healthz and /readyz."""
    from retailtag import api
    from retailtag.compute import n_workers
    from retailtag.tagger.serving import check_installed

    check_installed()
    from retailtag.tagger.serving.server import Reading, bind, monitor_of, read_api_key
    from retailtag.tagger.serving.server import serve as serve_model

    output, settings = call.output, call.settings.serve
    key = read_api_key(settings.api_key_file)

    def announce(url: str, facts: ModelFacts) -> None:
        output.print(f"{facts.name}, version {facts.version}: {url}/docs (Ctrl-C stops it)")
        output.result({"url": url, **facts.model_dump()})

    with bind(settings.host, settings.port) as listening:
        tagger = api.load(model, settings=call.settings, progress=output.progress)
        # Of the thresholds that the model was fitted with: its reference knows no others
        monitor = monitor_of(model, tagger)
        if call.settings.predict.operating_point:
            tagger = tagger.at(call.settings.predict.operating_point)
        reading = Reading(n_workers(call.settings.compute), call.settings.reading.max_pixels)
        serve_model(
            tagger, settings, reading, listening, api_key=key, monitor=monitor, announce=announce
        )
