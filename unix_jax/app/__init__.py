"""The web page: reports of uploaded X-rays, and X-rays generated from text.

    choices.py    what visitors may ask, checked
    bundled.py    the model and the example X-rays of the repository
    images.py   X-rays, generated images and messages as self-contained HTML
    actions.py    what buttons do: generators over the pipeline, without the page's library
    page.py       the page itself (Gradio)
    style.py      its looks
    guard.py      the few routes that are answered, the size of requests, headers
    server.py     serving it

No output is written to disk: images are embedded in the page. An upload is kept as a file for some
minutes, in a directory that is removed with the server.
"""
