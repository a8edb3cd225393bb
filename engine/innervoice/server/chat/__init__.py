"""Chat completions with sound in and out, as `POST /v1/chat/completions` of OpenAI's API has them.

answers.py   ChatAnswer: one answer, whole or as server-sent events
body.py      ChatBody: the request's JSON
chunks.py    the JSON of completions and of their chunks
formats.py   samples to the file formats that clients ask for
kept.py      KeptAnswers: earlier answers, which later requests name by the id of their sound
request.py   ChatRequest: a body that was checked, as turns and options of the engine
route.py     ChatRoute: the route
"""
