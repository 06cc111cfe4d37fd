"use strict";

const [msg, btn, broadcast, disconnect, state, notice, messages, wire] =
  ["msg", "btn", "broadcast", "disconnect", "status", "notice", "messages", "wire"]
    .map((id) => document.getElementById(id));

const socket = io();
const waiting = []; // texts that are sent once the socket is connected

// Sends the typed text as "chat" or as "broadcast".
function say(event) {
  if (msg.value.trim() === "") return;
  if (!socket.connected) waiting.push(msg.value);
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

// A message comes in as "grpchat", whoever sent it.
socket.on("grpchat", (text) => add(messages, text, 1000));
socket.on("error", (words) => tell(words, "error"));

socket.on("connect", () => {
  show("connected", `connected as ${socket.id}`);
  if (waiting.length > 0) tell("");
  waiting.length = 0;
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
  if (waiting.length === 0 || notice.className === "error") return;
  const when = state.dataset.is === "disconnected" ? "press Connect to send" : "will be sent when you reconnect";
  tell(`Not connected; ${when}: ${waiting.map((text) => short(text, 60)).join(" / ")}`);
}

function short(text, most) {
  return text.length > most ? text.slice(0, most) + "…" : text;
}

// The last hundred messages that crossed the wire.
function trace(arrow) {
  return (event, data) => add(wire, short(`${arrow} ${JSON.stringify({ event, data })}`, 300), 100);
}
socket.onAny(trace("↓")).onAnyOutgoing(trace("↑"));

function add(list, text, most) {
  const item = document.createElement("li");
  // As text, never as HTML: a user's markup would run in everybody's page.
  item.textContent = text;
  list.append(item);
  if (list.children.length > most) list.firstElementChild.remove();
  list.showEnd();
}

// A list shows its end, also when its box becomes smaller, unless the reader
// has scrolled up.
for (const list of [messages, wire]) {
  const box = list.parentElement;
  let height = 0;
  let atEnd = true;
  list.showEnd = () => { if (atEnd) box.scrollTop = box.scrollHeight; };
  box.addEventListener("scroll", () => {
    if (box.clientHeight === height) atEnd = box.scrollHeight - box.scrollTop - height < 40;
  });
  new ResizeObserver(() => {
    height = box.clientHeight;
    list.showEnd();
  }).observe(box);
}

// Within three.html, the link would open the same page.
document.querySelector("footer a").hidden = window !== top;
