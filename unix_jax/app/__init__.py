"""The page: reports of uploaded X-rays, and X-rays from text, in a browser.

    choices.py    what visitors may ask, checked
    bundled.py    the model and the example X-rays of the repository
    pictures.py   X-rays, drawn pictures and messages as HTML that needs no file
    actions.py    what buttons do: generators over the pipeline, without the page's library
    page.py       the page itself (Gradio)
    style.py      its looks
    guard.py      the few routes that are answered, the size of requests, headers
    server.py     serving it

Nothing that visitors get is written to disk: pictures travel inside the page. An upload is a file
for some minutes, in a directory that goes with the server.
"""
