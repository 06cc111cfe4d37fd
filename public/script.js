"use strict";

const [msg, btn, broadcast, disconnect, state, notice, messages, wire] =
  ["msg", "btn", "broadcast", "disconnect", "status", "notice", "messages", "wire"]
    .map((id) => document.getElementById(id));

const socket = io();

// What is typed goes out as "chat" or as "broadcast".
function say(event) {
  if (msg.value.trim() === "") return;
  notice.textContent = socket.connected ? "" : "It is kept until you are connected.";
  socket.emit(event, { data: msg.value });
  msg.value = "";
}

// The buttons are a form's, whose Enter presses the first.
btn.addEventListener("click", (ev) => {
  ev.preventDefault();
  say("chat");
});
broadcast.addEventListener("click", () => say("broadcast"));

// What comes in is "grpchat", whoever said it and however.
socket.on("grpchat", (text) => add(messages, text));
socket.on("error", (words) => { notice.textContent = words; });

socket.on("connect", () => show("connected", `connected as ${socket.id}`));
socket.on("disconnect", (reason) => {
  if (reason === "transport close") show("reconnecting", "reconnecting …");
  else show("disconnected", "disconnected");
});
disconnect.addEventListener("click", () => {
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
}

// The last hundred messages as they cross the wire.
function trace(arrow) {
  return (event, data) => {
    add(wire, `${arrow} ${JSON.stringify({ event, data })}`);
    if (wire.children.length > 100) wire.firstElementChild.remove();
  };
}
socket.onAny(trace("↓")).onAnyOutgoing(trace("↑"));
wire.closest("details").addEventListener("toggle", () => wire.lastElementChild?.scrollIntoView());

// As text, never as HTML: or else what one says would run in everybody's page.
// The list follows, unless the reader has scrolled up.
function add(list, text) {
  const box = list.parentElement;
  const atEnd = box.scrollHeight - box.scrollTop - box.clientHeight < 40;
  const item = document.createElement("li");
  item.textContent = text;
  list.append(item);
  if (atEnd) box.scrollTop = box.scrollHeight;
}
