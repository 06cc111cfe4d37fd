"use strict";

const [msg, btn, broadcast, disconnect, state, notice, messages, wire] =
  ["msg", "btn", "broadcast", "disconnect", "status", "notice", "messages", "wire"]
    .map((id) => document.getElementById(id));

const socket = io();
let waiting = 0; // messages that are sent once the socket is connected
const letters = new Intl.Segmenter(); // splits a text into what people see as one character
// Matches a text that is more than blank. The last two are symbols without ink.
const visible = /[^\s\p{Control}\p{Format}\p{Default_Ignorable_Code_Point}\u2800\u{1D159}]/u;

// Sends the typed text as "chat" or as "broadcast".
function say(event) {
  msg.focus();
  if (!visible.test(msg.value)) return;
  if (!socket.connected) waiting++;
  tell(event === "broadcast" ? "Sent to everyone but you." : "");
  tellWaiting();
  socket.emit(event, { data: msg.value });
  msg.value = "";
}

// Enter in the form clicks its first button.
btn.addEventListener("click", (ev) => {
  ev.preventDefault();
  say("chat");
});
broadcast.addEventListener("click", () => say("broadcast"));
// The input keeps the focus while a button is pressed: else a phone hides its keyboard.
msg.form.addEventListener("mousedown", (ev) => ev.target === msg || ev.preventDefault());

// A message comes in as "grpchat", whoever sent it.
socket.on("grpchat", (text) => add(messages, text, 1000));
socket.on("error", (words) => tell(words, "error"));

socket.on("connect", () => {
  show("connected", `connected as ${socket.id}`);
  if (waiting > 0) tell("");
  waiting = 0;
});
socket.on("connect_error", () => show("reconnecting", "cannot reach the server, trying again …"));
socket.on("disconnect", (reason) => {
  if (reason === "transport close") show("reconnecting", "reconnecting …");
  else show("disconnected", "disconnected"); // by the page or by the server, on purpose
});
disconnect.addEventListener("click", () => {
  tell("");
  if (state.dataset.is === "disconnected") {
    show("reconnecting", "connecting …");
    socket.connect();
  } else {
    socket.disconnect();
    show("disconnected", "disconnected");
  }
});

function show(is, words) {
  state.dataset.is = is;
  state.textContent = words;
  disconnect.textContent = is === "disconnected" ? "Connect" : "Disconnect";
  tellWaiting();
}

function tell(words, kind = "news") {
  notice.className = kind;
  notice.textContent = words;
}

function tellWaiting() {
  if (waiting === 0 || notice.className === "error") return;
  const next = state.dataset.is === "disconnected" ? "Press Connect to send them." : "They are sent when the page reconnects.";
  tell(`Messages waiting to be sent: ${waiting}. ${next}`);
}

// Lists the last hundred messages that crossed the wire. A long one is cut.
const trace = (arrow) => (event, data) => {
  const line = `${arrow} ${JSON.stringify({ event, data })}`;
  const cut = letters.segment(line).containing(300)?.index; // where a character begins
  add(wire, cut ? line.slice(0, cut) + "…" : line, 100);
};
socket.onAny(trace("↓")).onAnyOutgoing(trace("↑"));

function add(list, text, most) {
  const item = document.createElement("li");
  // As text, never as HTML: a user's markup would run in everybody's page.
  item.textContent = text;
  item.dir = "auto"; // right to left, if the text is
  list.append(item);
  if (list.children.length > most) list.firstElementChild.remove();
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
    const moved = box.scrollTop - top;
    const cameBack = moved > 0 && box.scrollTop > end - 40; // the list may have grown since
    end = box.scrollHeight - box.clientHeight;
    if (cameBack || end - box.scrollTop < 1) atEnd = true;
    else if (moved < 0) atEnd = false; // by however little
    const selects = getSelection().type === "Range" && box.contains(getSelection().anchorNode);
    if (performance.now() < busyUntil) list.showEnd();
    else if (atEnd && !selects) box.scrollTop = box.scrollHeight;
    top = box.scrollTop;
    // While the user reads, the browser keeps the text in place as old messages are removed.
    box.style.overflowAnchor = atEnd && !selects ? "none" : "auto";
  }
  function wait(ev) {
    busyUntil = performance.now() + 200;
    if (ev.key === "End") box.scrollTop = box.scrollHeight; // a smooth scroll would come too late
  }
  // At most once a frame, because it needs the layout of the whole list.
  list.showEnd = () => { cancelAnimationFrame(frame); frame = requestAnimationFrame(follow); };
  for (const kind of ["wheel", "keydown", "pointerdown", "touchmove"]) box.addEventListener(kind, wait, { passive: true });
  box.addEventListener("scroll", follow);
  new ResizeObserver(follow).observe(box);
}

// Within three.html, the link would open the same page.
document.querySelector("footer a").hidden = window !== top;
