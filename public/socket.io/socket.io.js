// The page's io(): events over a WebSocket, each a text message of the form
// {"event": "<name>", "data": <any JSON>}. The calls are those of Socket.IO, the
// wire is not: a real Socket.IO client cannot talk to this server.
"use strict";

class Socket {
  id; // the server's name for it; undefined while not connected
  connected = false;

  #url;
  #ws = null; // the connection, open or on its way; never more than one
  #retry = null; // the timer of the next attempt, when there is no #ws
  #failures = 0; // since the last success
  #unsent = [];
  #handlers = new Map(); // by event, or one of these:
  static #incoming = Symbol("any event that comes in");
  static #outgoing = Symbol("any event that goes out");

  constructor(url) {
    this.#url = new URL(url, location.href);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");

    // Chromium keeps the socket of a page that was left, though the page does
    // not run: the server would talk to nobody. It may come back from history.
    let comeBack = false;
    addEventListener("pagehide", () => {
      comeBack = this.#ws !== null || this.#retry !== null;
      this.#leave("transport close");
    });
    addEventListener("pageshow", () => comeBack && this.connect());
    // When the network goes, a socket alone would take minutes to notice.
    addEventListener("offline", () => this.#ws && this.#lose());
    this.connect();
  }

  on(event, handler) {
    this.#handlers.set(event, [...this.#handlersOf(event), handler]);
    return this;
  }

  off(event, handler) {
    this.#handlers.set(event, this.#handlersOf(event).filter((other) => other !== handler));
    return this;
  }

  // These handlers see all that crosses the wire, as (event, data).
  onAny(handler) { return this.on(Socket.#incoming, handler); }
  onAnyOutgoing(handler) { return this.on(Socket.#outgoing, handler); }

  // While not connected, what is emitted is kept.
  emit(event, data) {
    this.#unsent.push({ event, data, text: JSON.stringify({ event, data }) });
    this.#flush();
    return this;
  }

  connect() {
    if (this.#ws) return this;
    this.#stopRetrying();
    this.#ws = new WebSocket(this.#url);
    this.#ws.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    this.#ws.onclose = ({ code }) => code === 1000 ? this.#leave("io server disconnect") : this.#lose();
    return this;
  }

  disconnect() {
    this.#leave("io client disconnect");
    return this;
  }

  #receive({ event, data }) {
    if (event === "connect") {
      this.id = data.id;
      this.connected = true;
      this.#failures = 0;
    }
    this.#run(Socket.#incoming, event, data);
    this.#flush(); // before a connect handler emits more
    // "disconnect" is for #drop to tell, and a handler may just have left.
    if (this.connected && event !== "disconnect") this.#run(event, data);
  }

  #flush() {
    // A socket that is closing would drop what it is given, without a word.
    while (this.connected && this.#ws.readyState === WebSocket.OPEN && this.#unsent.length > 0) {
      const { event, data, text } = this.#unsent.shift();
      this.#ws.send(text);
      this.#run(Socket.#outgoing, event, data);
    }
  }

  // The connection is over, and was not meant to be.
  #lose() {
    // After 1, 2, 4, then 5 seconds, each cut by up to half, so that not all
    // pages come back to a restarted server at once.
    const seconds = Math.min(2 ** this.#failures++, 5) * (1 - Math.random() / 2);
    this.#stopRetrying();
    this.#retry = setTimeout(() => this.connect(), seconds * 1000);
    this.#drop("transport close");
  }

  // The connection is over, and nobody dials until connect() is called.
  #leave(reason) {
    this.#stopRetrying();
    this.#drop(reason);
  }

  #stopRetrying() {
    clearTimeout(this.#retry);
    this.#retry = null;
  }

  #drop(reason) {
    const ws = this.#ws;
    const wasConnected = this.connected;
    this.#ws = null;
    this.id = undefined;
    this.connected = false;
    if (ws) {
      ws.onmessage = ws.onclose = null;
      ws.close(1000);
    }
    if (wasConnected) this.#run("disconnect", reason);
  }

  #handlersOf(event) {
    return this.#handlers.get(event) ?? [];
  }

  #run(event, ...args) {
    for (const handler of this.#handlersOf(event)) {
      try {
        handler(...args);
      } catch (error) {
        reportError(error); // to the console; the next handler still runs
      }
    }
  }
}

function io(url = "/") {
  return new Socket(url);
}
