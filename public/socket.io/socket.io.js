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
  #timer; // ends an attempt that takes too long, or begins the next one
  #failures = 0; // since the last success
  #unsent = []; // the messages that wait for a connection, as JSON
  #handlers = new Map(); // by event name, or by one of these:
  static #incoming = Symbol("any event that comes in");
  static #outgoing = Symbol("any event that goes out");
  static #active = new Set(); // all sockets but those that have left: those can be freed
  static #pageLeft = false; // from pagehide until pageshow

  static {
    // The browser freezes a page that is left, to show it again on Back. Chromium
    // would keep its WebSockets open. So close them, and connect again on Back.
    addEventListener("pagehide", () => {
      Socket.#pageLeft = true;
      for (const socket of Socket.#active) if (socket.#close()) socket.#run("disconnect", "transport close");
    });
    addEventListener("pageshow", () => {
      if (!Socket.#pageLeft) return; // the page has just been loaded
      Socket.#pageLeft = false;
      for (const socket of Socket.#active) socket.connect();
    });
    // A WebSocket alone takes minutes to notice that the network is gone. The loop is
    // over a copy: a handler may disconnect and connect, and so come into the set anew.
    addEventListener("offline", () => [...Socket.#active].forEach((socket) => socket.#ws && socket.#lose()));
  }

  constructor(url) {
    // In a srcdoc or blob: frame, the origin is the page's, and the address is not.
    const base = globalThis.origin === "null" ? location.href : globalThis.origin;
    // Without a scheme or a leading slash, url is a host, as in Socket.IO.
    this.#url = new URL(/^(\w+:\/)?\//.test(url) ? url : `//${url}`, base);
    this.#url.protocol = this.#url.protocol.replace("http", "ws");
    this.connect();
  }

  on(event, handler) {
    this.#handlers.set(event, [...this.#handlersOf(event), handler]);
    return this;
  }

  // off() takes away all handlers, off(event) those of the event, off(event, handler) one.
  off(event, handler) {
    const handlers = this.#handlersOf(event);
    if (event === undefined) this.#handlers.clear();
    else if (handler === undefined) this.#handlers.delete(event);
    else this.#handlers.set(event, handlers.filter((_, n) => n !== handlers.indexOf(handler)));
    return this;
  }

  // These handlers get every message that crosses the wire, as (event, data).
  onAny(handler) { return this.on(Socket.#incoming, handler); }
  onAnyOutgoing(handler) { return this.on(Socket.#outgoing, handler); }

  // While the socket is not connected, emit keeps the event and sends it later.
  emit(event, data, ...more) {
    if (more.length > 0 || ["function", "symbol"].includes(typeof data)) {
      throw new TypeError("emit takes one value, and no symbol; acknowledgements are not supported: emit further values as one array or object");
    }
    this.#unsent.push(JSON.stringify({ event, data }));
    this.#flush();
    return this;
  }

  connect() {
    if (this.#ws) return this;
    clearTimeout(this.#timer);
    if (!Socket.#pageLeft) this.#dial(); // else pageshow calls connect again
    Socket.#active.add(this); // not before #dial, which throws if the URL is not one for a WebSocket
    return this;
  }

  disconnect() { return this.#leave("io client disconnect"); }

  #dial() {
    const url = new URL(this.#url);
    // After failed WebSockets, Firefox delays the next one to the same host, port and
    // path by up to a minute. Our server takes a WebSocket on any path.
    if (url.pathname === "/") url.pathname = Math.random();
    const ws = new WebSocket(url);
    this.#ws = ws;
    this.#timer = setTimeout(() => this.#lose(), 10_000); // stopped by "connect"
    ws.onmessage = ({ data }) => this.#receive(JSON.parse(data));
    ws.onclose = ({ code, reason }) => {
      if (code > 1001 && reason !== "") this.#run("error", reason);
      if (this.#ws !== ws) return; // an error handler has called disconnect()
      if (code === 1000 && this.connected) this.#leave("io server disconnect");
      else this.#lose();
    };
  }

  #receive({ event, data }) {
    if (event === "connect") {
      this.id = data.id;
      this.connected = true;
      clearTimeout(this.#timer);
      this.#failures = 0;
    }
    this.#run(Socket.#incoming, event, data);
    this.#flush(); // before a connect handler emits more
    // Only this script may report these two. And a handler may have disconnected.
    if (this.connected && !["disconnect", "connect_error"].includes(event)) this.#run(event, data);
  }

  #flush() {
    // A WebSocket that is closing discards silently what it is told to send. 1 is
    // WebSocket.OPEN, a name that is missing where something has wrapped WebSocket.
    while (this.connected && this.#ws.readyState === 1 && this.#unsent.length > 0) {
      const text = this.#unsent.shift();
      this.#ws.send(text);
      const { event, data } = JSON.parse(text); // the caller may have changed its data since
      this.#run(Socket.#outgoing, event, data);
    }
  }

  // The connection was lost, or could not be made: try again.
  #lose() {
    const wasConnected = this.#close();
    // After 1, 2, 4, then 5 seconds, each shortened by up to half so that not all pages come at once.
    const seconds = Math.min(2 ** this.#failures++, 5) * (1 - Math.random() / 2);
    this.#timer = setTimeout(() => this.connect(), seconds * 1000);
    if (wasConnected) this.#run("disconnect", "transport close");
    else this.#run("connect_error", new Error("the server cannot be reached"));
  }

  // The connection was ended on purpose: only connect() makes a new one.
  #leave(reason) {
    Socket.#active.delete(this);
    this.#failures = 0;
    if (this.#close()) this.#run("disconnect", reason);
    return this;
  }

  // Closes the connection, if there is one, and says whether it had been made.
  #close() {
    const wasConnected = this.connected;
    clearTimeout(this.#timer);
    if (this.#ws) {
      this.#ws.onmessage = this.#ws.onclose = null;
      this.#ws.close(1000);
    }
    this.#ws = null;
    this.id = undefined;
    this.connected = false;
    return wasConnected;
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
