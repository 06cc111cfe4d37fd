// The page's io(): events over a WebSocket. Each event is a text message of the
// form {"event": "<name>", "data": <any JSON>}. The calls are those of Socket.IO.
// The wire format is not: a real Socket.IO client cannot talk to this server.

// io() connects to the page's own server, io(url) to another one.
function io(url, options) {
  if (options !== undefined || !(url == null || typeof url === "string" || url instanceof URL)) {
    throw new TypeError("io takes one URL, as a string or URL, or nothing; options are not supported");
  }
  return new io.Socket(url ?? "/");
}

// Not a global name: a page's own script may define another Socket.
io.Socket = class Socket {
  id; // assigned by the server; undefined while not connected
  connected = false;

  #url;
  #ws = null; // the connection, open or being opened; never more than one
  #retry = null; // the timer of the next attempt, until there is a #ws
  #failures = 0; // since the last success
  #unsent = [];
  #handlers = new Map(); // by event name, or by one of these:
  static #incoming = Symbol("any event that comes in");
  static #outgoing = Symbol("any event that goes out");

  constructor(url) {
    // In a srcdoc or blob: frame, the origin is the page's, and the address is not.
    const base = window.origin === "null" ? location.href : window.origin;
    // Without a scheme or a leading slash, url is a host, as in Socket.IO.
    this.#url = new URL(/^(\w+:\/)?\//.test(url) ? url : `//${url}`, base);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");

    // A page in the back/forward cache is frozen, but Chromium keeps its WebSocket
    // open. So close it, and connect again if the page comes back.
    let comeBack = false;
    addEventListener("pagehide", () => {
      comeBack = this.#ws !== null || this.#retry !== null;
      this.#leave("transport close");
    });
    addEventListener("pageshow", () => comeBack && this.connect());
    // A WebSocket alone takes minutes to notice that the network is gone.
    addEventListener("offline", () => this.#ws && this.#lose());
    this.connect();
  }

  on(event, handler) {
    this.#handlers.set(event, [...this.#handlersOf(event), handler]);
    return this;
  }

  // off(event, handler) takes away one such handler, off(event) all handlers of
  // the event, off() all handlers of all events.
  off(event, handler) {
    const handlers = this.#handlersOf(event);
    if (event === undefined) this.#handlers.clear();
    else if (handler === undefined) this.#handlers.delete(event);
    else if (handlers.includes(handler)) {
      this.#handlers.set(event, handlers.toSpliced(handlers.indexOf(handler), 1));
    }
    return this;
  }

  // These handlers get every message that crosses the wire, as (event, data).
  onAny(handler) { return this.on(Socket.#incoming, handler); }
  onAnyOutgoing(handler) { return this.on(Socket.#outgoing, handler); }

  // While the socket is not connected, emit keeps the event and sends it later.
  emit(event, data, ...more) {
    if (more.length > 0 || typeof data === "function") {
      throw new TypeError("emit takes one value; acknowledgements are not supported: emit further values as one array or object");
    }
    this.#unsent.push({ event, data, text: JSON.stringify({ event, data }) });
    this.#flush();
    return this;
  }

  connect() {
    if (this.#ws) return this;
    this.#stopRetrying();
    this.#ws = new WebSocket(this.#url);
    const ws = this.#ws;
    ws.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    ws.onclose = ({ code, reason }) => {
      if (code > 1001 && reason !== "") this.#run("error", reason);
      if (this.#ws !== ws) return; // an error handler has called disconnect()
      if (code === 1000) this.#leave("io server disconnect");
      else this.#lose();
    };
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
    // Only this script may report these two. And a handler may have disconnected.
    if (this.connected && !["disconnect", "connect_error"].includes(event)) this.#run(event, data);
  }

  #flush() {
    // A WebSocket that is closing discards silently what it is told to send.
    while (this.connected && this.#ws.readyState === WebSocket.OPEN && this.#unsent.length > 0) {
      const { event, data, text } = this.#unsent.shift();
      this.#ws.send(text);
      this.#run(Socket.#outgoing, event, data);
    }
  }

  // The connection was lost, or could not be made: try again.
  #lose() {
    const made = this.connected;
    // After 1, 2, 4, then 5 seconds, each shortened by up to half, so that a
    // restarted server does not get all its pages back at once.
    const seconds = Math.min(2 ** this.#failures++, 5) * (1 - Math.random() / 2);
    this.#stopRetrying();
    this.#retry = setTimeout(() => this.#connectIfServed(), seconds * 1000);
    this.#drop("transport close");
    if (!made) this.#run("connect_error", new Error("the server cannot be reached"));
  }

  // After failed WebSockets, Firefox delays the next one by up to a minute. It does
  // not delay fetch, so let fetch find out whether the server is there.
  async #connectIfServed() {
    const retry = this.#retry;
    const options = { method: "HEAD", mode: "no-cors", cache: "no-store", signal: AbortSignal.timeout(5000) };
    const served = await fetch(this.#url.href.replace("ws", "http"), options).catch(() => null);
    if (this.#retry !== retry) return; // connect() or disconnect() was called meanwhile
    if (served) this.connect();
    else this.#lose();
  }

  // The connection was ended on purpose: only connect() makes a new one.
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

  #handlersOf(event) { return this.#handlers.get(event) ?? []; }

  #run(event, ...args) {
    for (const handler of this.#handlersOf(event)) {
      try {
        handler(...args);
      } catch (error) {
        reportError(error); // to the console; the next handler still runs
      }
    }
  }
};
