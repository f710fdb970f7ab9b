"""One port: the control WebSocket, the client API, health; and the same application on a private unix socket."""
