"""The API server: OpenAI's protocol for reports and generated images, with dynamic batching.

    limits.py       limits of a server and of its requests
    refusals.py     errors in OpenAI's format
    requests.py     the bodies of requests, checked
    scheduler.py    jobs that wait, and the one thread that runs them in batches
    batches.py      a batch of jobs on the pipeline
    responses.py    results in OpenAI's format
    middleware.py   the API key, the number of requests at a time, their metrics
    application.py  the routes
    metrics.py      metrics in Prometheus' form
    server.py       the server

Nothing is written to disk, and the server has no state except for the requests that it computes.
"""
