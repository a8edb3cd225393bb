"""The server: OpenAI's Realtime protocol and chat completions over HTTP and WebSocket (the extra `server`).

A server has one event loop, which no call of the engine may hold up. One thread judges the sound of all listeners; what
takes long runs on the threads of `ServerContext.calls` and of the engine.

access.py         Access: API keys and client secrets
admission.py      Admission: the number of sessions that the server holds
app.py            the ASGI application: routes, and the watch over connections
chat/             chat completions with sound in and out
client_secrets.py ClientSecrets: the routes of short-lived keys
cluster/          several replicas of a server, apart from what runs them
context.py        ServerContext: the parts that connections share, and what one begins with
draining.py       the end of a server's connections
errors.py         ApiError: a refused request
g711.py           G.711: mu-law and A-law to samples and back
http_answers.py   refusals over HTTP
metrics.py        ServerMetrics: figures for Prometheus
options.py        ServerOptions: address, keys, origins and limits
origins.py        Origins: web pages that may use the server, and its names
page_route.py     PageFiles: the page in a browser, whose plain modules are in the folder page
process.py        the process: socket, signals, the end at SIGTERM
ray/              replicas of the server on Ray Serve (the extra `ray`)
realtime/         the Realtime protocol: a conversation over a WebSocket
realtime_route.py RealtimeRoute: who is let in to the Realtime protocol
signer.py         Signer: signed tokens that carry their content
transcriber.py    Transcriber: the words of a user's turn, from a service
turn_detector.py  TurnDetector: begin and end of a user's turns
vad/              voice activity: the probability of speech
"""
