"use strict";

const [msg, btn, broadcast, disconnect, state, notice, messages, wire] =
  ["msg", "btn", "broadcast", "disconnect", "status", "notice", "messages", "wire"].map((id) => document.getElementById(id));

const letters = new Intl.Segmenter(); // splits a text into what people see as one character
const socket = io();
let waiting = 0; // the number of messages that are sent once the socket is connected
// Matches a text that is more than blank. The last two are symbols without ink.
const visible = /[^\s\p{Control}\p{Format}\p{Default_Ignorable_Code_Point}\u2800\u{1D159}]/u;

// Sends the typed text as "chat" or as "broadcast".
function say(event) {
  msg.focus();
  if (!visible.test(msg.value)) return;
  if (!socket.connected) waiting++;
  tell(event === "broadcast" ? "Sent to everyone but you." : "");
  socket.emit(event, { data: msg.value });
  msg.value = "";
}

btn.addEventListener("click", () => say("chat")); // Enter in the input clicks it, too
broadcast.addEventListener("click", () => say("broadcast"));
// The input keeps the focus while a button is pressed: else a phone hides its keyboard.
msg.form.addEventListener("mousedown", (ev) => ev.target === msg || ev.preventDefault());
// The browser cuts a text that is too long for the input. Say so.
msg.addEventListener("beforeinput", (ev) => {
  const kept = msg.value.length - (msg.selectionEnd - msg.selectionStart);
  if (kept + ev.data?.length > msg.maxLength) tell(`Cut: a message may have at most ${msg.maxLength} characters.`, "error");
});
addEventListener("beforeunload", (ev) => waiting > 0 && ev.preventDefault()); // the browser asks before it leaves

// A message comes in as "grpchat", whoever sent it.
socket.on("grpchat", (text) => {
  const lines = text.split("\n");
  const rest = lines.splice(100); // a browser cannot lay out millions of lines
  if (rest.length > 0) lines.push(`… Lines not shown: ${rest.length}.`);
  add(messages, lines.join("\n"), 1000);
});
socket.on("error", (words) => tell(words, "error"));
socket.on("connect", () => {
  if (waiting > 0) write(notice, "");
  waiting = 0;
  show("connected", `connected as ${socket.id}`);
});
socket.on("connect_error", () => show("reconnecting", "cannot reach the server, trying again …"));
// All other reasons mean that the page or the server ended the connection on purpose.
socket.on("disconnect", (reason) => show(reason === "transport close" ? "reconnecting" : "disconnected"));
disconnect.addEventListener("click", () => {
  if (state.dataset.is === "disconnected") {
    show("reconnecting", "connecting …");
    socket.connect();
  } else {
    socket.disconnect();
    show("disconnected");
  }
  tell("");
});

function show(is, words = is) {
  state.dataset.is = is;
  write(state, words);
  write(disconnect, is === "disconnected" ? "Connect" : "Disconnect");
  if (waiting > 0 && notice.className !== "error") tell("");
}

// While messages wait, the notice says so in place of other news.
function tell(words, kind = "news") {
  if (waiting > 0 && kind === "news") {
    const next = state.dataset.is === "disconnected" ? "Press Connect to send them." : "They are sent when the page reconnects.";
    words = `Messages waiting to be sent: ${waiting}. ${next}`;
  }
  notice.className = kind;
  write(notice, words);
}

// A screen reader speaks each text that is assigned, also the same text again.
function write(element, words) {
  if (element.textContent !== words) element.textContent = words;
}

// Lists the last hundred messages that crossed the wire. A long one is cut.
const trace = (arrow) => (event, data) => {
  const line = `${arrow} ${JSON.stringify({ event, data })}`;
  const cut = line.length > 300 && letters.segment(line).containing(300).index; // where a whole character begins
  add(wire, cut ? line.slice(0, cut) + "…" : line, 100);
};
socket.onAny(trace("↓")).onAnyOutgoing(trace("↑"));

function add(list, text, most) {
  const item = document.createElement("li");
  // As text, never as HTML: a user's markup would run in everybody's page.
  item.textContent = text;
  item.dir = "auto"; // right to left, if the text is
  list.append(item);
  // While the user reads further up, nothing is removed: in Safari, that would move the text.
  for (let n = list.children.length; n > (list.reading ? 10 * most : most); n--) list.firstElementChild.remove();
  list.showEnd();
}

// Keeps each list scrolled to its end, unless the user has scrolled up or selects text in it.
for (const list of [messages, wire]) {
  const box = list.parentElement;
  let atEnd = true;
  let [top, end] = [0, 0]; // the scroll position and its maximum, as last seen
  let busyUntil = 0; // a wheel or a key moves the box some frames later: wait for it
  let frame;
  function follow() {
    frame = null;
    const moved = box.scrollTop - top;
    const cameBack = moved > 0 && box.scrollTop > end - 40; // the list may have grown since
    end = box.scrollHeight - box.clientHeight;
    if (cameBack || end - box.scrollTop < 1) atEnd = true;
    else if (moved < 0) atEnd = false; // by however little
    const selects = getSelection().type === "Range" && box.contains(getSelection().anchorNode);
    const busy = performance.now() < busyUntil;
    list.reading = !atEnd || selects || busy;
    if (!list.reading) box.scrollTop = box.scrollHeight;
    if (busy) list.showEnd();
    top = box.scrollTop;
  }
  list.showEnd = () => { frame ??= requestAnimationFrame(follow); }; // once a frame: it needs the layout of the list
  const wait = () => { busyUntil = performance.now() + 200; };
  for (const kind of ["wheel", "keydown", "pointerdown", "touchmove"]) box.addEventListener(kind, wait, { passive: true });
  box.addEventListener("keydown", (ev) => ev.key === "End" && box.scrollTo(0, box.scrollHeight)); // a smooth scroll would come too late
  box.addEventListener("scroll", follow);
  new ResizeObserver(follow).observe(box);
}

// Within three.html, the link would open the same page.
document.querySelector("footer a").hidden = window !== top;
show("reconnecting", "connecting …"); // at the end: if this script fails, the page says what it needs
