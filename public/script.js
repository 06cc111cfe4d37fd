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

socket.on("connect", () => {
  show("connected", `connected as ${socket.id}`);
  notice.textContent = "";
});
socket.on("disconnect", (reason) => {
  if (reason === "transport close") show("reconnecting", "reconnecting …");
  else show("disconnected", "disconnected"); // one of the two ends meant it
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

function add(list, text) {
  const item = document.createElement("li");
  // As text, never as HTML: what one says would run in everybody's page.
  item.textContent = text;
  list.append(item);
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
