// This file is the machine behind the tutorial's io and socket. An event travels in a message: a JSON object,
// {"event": …, "data": …}. The WebSocket protocol, RFC 6455, sends a message as one or more frames.
//
//	client → frames → reader → handler → Emit → each socket's queue → writer → frames → client
//
// Each socket has two goroutines. The reader reads the client's frames and runs the handlers. The writer sends what is
// in the socket's queue. Without the queue, a client that stopped reading would stop every Emit, and so everybody.
//
// One decision shapes the file: senders wait for slow clients, but not for long. A hub that never waits loses
// messages, or keeps them without limit. A hub that waits without limit stands still with its first stuck client.
//
//	Part 1: the tutorial's words
//	Part 2: the handshake, and the life of a socket
//	Part 3: a message goes out
//	Part 4: the end of a socket
//	Part 5: a message comes in
//
// golang.org/x/net/websocket, x/net for short, answers the handshake. After that it only reads frames: it does not
// join them to messages, check the protocol's rules, ping, or close as the protocol asks.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io" // Go's package for input and output; in main.go, io is the hub
	"log"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"golang.org/x/net/websocket"
)

// Part 1: the tutorial's words. A learner may stop after this part.

// A Hub is the tutorial's io: the group of all sockets. Any goroutine may call Emit and Close.
type Hub struct {
	onConnection func(*Socket) // the handler of "connection"; set before serving, then only read
	// One Emit or Broadcast runs at a time, also while it waits. It adds to all queues first, and then waits for the full
	// ones. Without this lock, each of a thousand senders could add one more message to a full queue.
	emitting sync.Mutex
	// mu guards the fields below. Nobody keeps it locked while he waits: so others can join and leave at any time.
	mu         sync.Mutex
	sockets    map[string]*Socket // by ID; a socket is in it from join to leave
	ending     *ending            // why all sockets end (part 4); nil until Close sets it
	socketLeft *sync.Cond         // uses mu; Close waits for it, and leave wakes Close
}

// NewHub returns a hub without sockets.
func NewHub() *Hub {
	h := &Hub{onConnection: func(*Socket) {}, sockets: map[string]*Socket{}}
	h.socketLeft = sync.NewCond(&h.mu)
	return h
}

// On sets the handler of "connection", a hub's only event; On panics for another. The handler runs once for each
// new socket, before that socket's own handlers. A second On replaces it. Call On before serving.
func (h *Hub) On(event string, handle func(*Socket)) {
	if event != "connection" {
		panic("a hub has no event " + event)
	}
	h.onConnection = handle
}

// Emit sends an event to every socket. All sockets get all events in one order. Emit may wait for clients that
// read slowly. It fails if the event is reserved, or if data cannot be encoded as JSON.
func (h *Hub) Emit(event string, data any) error { return h.emit(event, data, nil) }

// emit sends an event to every socket but one; to all, if except is nil.
func (h *Hub) emit(event string, data any, except *Socket) error {
	encoded, err := encodeEvent(event, data)
	if err != nil {
		return err
	}
	h.emitting.Lock()
	defer h.emitting.Unlock()
	var full []*Socket
	h.mu.Lock() // while it goes through the map; unlocked before it waits, so that others can join and leave
	for _, s := range h.sockets {
		if s != except && s.enqueue(encoded) > maxQueue {
			full = append(full, s)
		}
	}
	h.mu.Unlock()
	for _, s := range full {
		s.mu.Lock()
		s.waitForRoomLocked() // so that the next Emit finds room in every queue
		s.mu.Unlock()
	}
	return nil
}

// A Socket is the server's end of a client's connection. Any goroutine may call Emit, Broadcast, Disconnect.
type Socket struct {
	ID       string // unguessable and unique; the client has the same; must not be changed
	hub      *Hub
	handlers map[string][]Handler // by event; only the reader uses them
	conn     net.Conn             // the TCP connection; the reader reads it, the writer writes it
	// mu guards the fields below. Lock order: hub.mu first, then mu, as in emit, join and Close. Nobody locks hub.mu
	// while he holds mu: else he could wait for emit, which holds hub.mu, while emit waits for his mu.
	mu          sync.Mutex
	queue       [][]byte       // encoded frames; an event's bytes exist once, and are in many queues
	queuedBytes int            // the size of queue, with frameCost for each frame
	room        *sync.Cond     // uses mu; senders wait for it while queue is full
	writing     bool           // the writer runs
	writerDone  sync.WaitGroup // finishClosing waits here until no writer runs
	ending      *ending        // why the socket ends (part 4); nil until it does, then never changed
}

// A Handler gets an event's data as JSON, or nil if the client sent none. The client gets its error as an "error" event.
type Handler func(data json.RawMessage) error

// On adds a handler for an event of the client, or for "disconnect", which comes once, with the reason as its
// data. ("connect", "connection" and "error" never come.) A socket's handlers run one at a time, in the order in
// which the client sent the events. Call On only in a handler of "connection" or of this socket.
func (s *Socket) On(event string, handle Handler) {
	s.handlers[event] = append(s.handlers[event], handle)
}

// Emit sends an event to this client. It may wait, if the client reads slowly. It fails like Hub.Emit.
func (s *Socket) Emit(event string, data any) error {
	encoded, err := encodeEvent(event, data)
	if err == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.waitForRoomLocked() // first: here nothing else is held, and each sender looks again before it adds
		s.enqueueLocked(encoded)
	}
	return err
}

// Broadcast sends an event to every socket but this one. Otherwise it works like Hub.Emit.
func (s *Socket) Broadcast(event string, data any) error { return s.hub.emit(event, data, s) }

// Disconnect ends the socket with close code 1000, after what is queued for it. It does not wait.
func (s *Socket) Disconnect() { s.startClosing(newEnding(1000, "server disconnect")) }

// Part 2: the handshake, and the life of a socket.
const handshakeWait = 3 * time.Second // the limit for sending the handshake's answer

// ServeHTTP accepts a WebSocket handshake. It returns when the socket has ended.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// From here on the TCP connection is ours, as after Node's "upgrade" event.
	conn, buffers, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot become a WebSocket", http.StatusInternalServerError)
		return
	}
	conn.SetWriteDeadline(time.Now().Add(handshakeWait))
	s := &Socket{ID: rand.Text(), hub: h, handlers: map[string][]Handler{}, conn: conn}
	s.room = sync.NewCond(&s.mu)
	// x/net gets a copy of the request with the headers that it expects. A client may send several tokens, as in
	// "Upgrade: h2c, websocket"; x/net expects one. It would accept a subprotocol, of which we have none.
	request := r.Clone(r.Context())
	request.Header.Set("Upgrade", findToken(r.Header["Upgrade"], "websocket"))
	request.Header.Set("Connection", findToken(r.Header["Connection"], "upgrade"))
	request.Header.Del("Sec-Websocket-Protocol")
	buffers.Writer = bufio.NewWriterSize(conn, 256) // to save memory: x/net would keep 4 KB for its short answer
	// Now x/net checks the handshake, answers it, and calls s.serve.
	websocket.Server{Handshake: checkOrigin, Handler: s.serve}.ServeHTTP(hijacked{w, conn, buffers}, request)
}

// hijacked is a ResponseWriter for x/net, which asks it for a method Hijack, and hides the connection that it gets. We
// need that connection, to write batches and for CloseWrite. So we take it first, and this Hijack returns the same.
type hijacked struct {
	http.ResponseWriter
	conn    net.Conn
	buffers *bufio.ReadWriter
}

func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.conn, h.buffers, nil }

// findToken returns token if a header's list has it, or else "". Several lines make one list (RFC 9110, section 5.3).
func findToken(lines []string, token string) string {
	for part := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		if strings.EqualFold(strings.TrimSpace(part), token) {
			return token
		}
	}
	return ""
}

// checkOrigin refuses pages of other sites; x/net answers its error with 403. A browser lets any page dial any
// server, and leaves this check to the server (RFC 6455, section 10.2).
func checkOrigin(config *websocket.Config, r *http.Request) error {
	origin, err := websocket.Origin(config, r)
	if err == nil && (origin == nil || strings.EqualFold(origin.Host, r.Host)) {
		return nil // origin is nil if the client is no browser
	}
	log.Printf("refused a page: %.99q is not an origin of the host %.99q, such as %.99q",
		r.Header.Get("Origin"), r.Host, "http://"+r.Host)
	return websocket.ErrBadWebSocketOrigin
}

// serve is a socket's life. It runs in the goroutine that net/http has for the connection: this is the reader.
// When serve returns, x/net closes the connection.
func (s *Socket) serve(ws *websocket.Conn) {
	ws.Request().Header = nil // to save memory: x/net keeps its request as long as the socket lives
	s.hub.join(s)
	defer s.hub.leave(s)
	s.protect(func() error { s.hub.onConnection(s); return nil })
	why := s.readMessages(ws)                  // until the client closes, breaks a rule, or is lost
	s.startClosing(why)                        // has no effect if the socket ends already, as after Disconnect
	reason, _ := json.Marshal(s.ending.reason) // needs no lock: ending is set, and does not change
	if err := s.run("disconnect", reason); err != nil {
		log.Printf("socket %s: %v", s.ID, err)
	}
	s.finishClosing()
}

// run calls all handlers of an event, also if one fails. It returns their errors, joined.
func (s *Socket) run(event string, data json.RawMessage) (errs error) {
	for _, handle := range s.handlers[event] {
		if err := s.protect(func() error { return handle(data) }); err != nil {
			errs = errors.Join(errs, fmt.Errorf("event %q: %w", event, err))
		}
	}
	return errs
}

// protect calls f. If f panics, protect logs the panic, ends this socket, and returns nil. Without protect, net/http
// would cut the connection without a close frame.
func (s *Socket) protect(f func() error) error {
	defer func() {
		if bug := recover(); bug != nil {
			log.Printf("a handler of socket %s panicked: %v\n%s", s.ID, bug, debug.Stack())
			s.startClosing(newEnding(1011, "a handler panicked"))
		}
	}()
	return f()
}

// join adds s to the hub. It holds hub.mu from before "connect" is queued until s is in the map: so "connect"
// comes first, and a client that has got it misses no event.
func (h *Hub) join(s *Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	connect := fmt.Appendf(nil, `{"event":"connect","data":{"id":%q}}`, s.ID) // encodeEvent would refuse "connect"
	s.enqueue(encodeFrame(websocket.TextFrame, connect))
	h.sockets[s.ID] = s
	if h.ending != nil { // Close was called before s came
		s.startClosing(h.ending)
	}
}

func (h *Hub) leave(s *Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sockets, s.ID)
	h.socketLeft.Broadcast()
}

// Part 3: a message goes out. It travels in a frame (RFC 6455, section 5.2): a header and a payload.
//
//	byte 0   0x80 FIN: the frame ends its message; 0x70 reserved bits; 0x0f the opcode
//	byte 1   0x80 the frame has a mask, as every frame from a client must; 0x7f the payload's
//	         length: 0 to 125 is the length itself, 126 means the next 2 bytes, 127 the next 8
//	then     those 2 or 8 bytes; the mask's 4 bytes, XORed over the payload; the payload
//
// The opcode is 0 continuation, 1 text, 2 binary, 8 close, 9 ping or 10 pong; all others are reserved. Frames from
// 8 on are control frames. They may come between the frames of a message. A client chooses a random mask for each
// frame: else a hostile page could send bytes that a proxy takes for an HTTP request.

// encodeFrame encodes a frame as servers send it: whole, and without a mask.
func encodeFrame(opcode byte, payload []byte) []byte {
	encoded := append(make([]byte, 0, 10+len(payload)), 0x80|opcode) // with room for the longest header
	length := len(payload)
	switch {
	case length <= 125:
		encoded = append(encoded, byte(length))
	case length <= 0xffff:
		encoded = binary.BigEndian.AppendUint16(append(encoded, 126), uint16(length))
	default:
		encoded = binary.BigEndian.AppendUint64(append(encoded, 127), uint64(length))
	}
	return append(encoded, payload...)
}

// encodeEvent encodes an event as a frame: once for each event, not once for each socket.
func encodeEvent(event string, data any) ([]byte, error) {
	if slices.Contains(reservedEvents, event) {
		return nil, fmt.Errorf("event %q is reserved", event)
	}
	message := struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
	}{event, data}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // or < becomes \u003c, six bytes; JSON.parse gives the same text
	if err := encoder.Encode(message); err != nil {
		return nil, err
	}
	return encodeFrame(websocket.TextFrame, bytes.TrimSpace(text.Bytes())), nil // Encode adds a newline
}

var reservedEvents = []string{"connect", "connection", "disconnect"} // not "error": handlers may send it

// A frame then goes through the socket's queue:
//
//	enqueue → queue → nextBatch → batch → send → the kernel's buffer → client
//
// When a client stops reading, this fills from the right. First the kernel's buffer is full: send waits, for
// batchWait at most. Then the queue is full: Emit waits, and send for hurryWait at most. Then the client is dropped.
// Both count from the batch's beginning. Each socket has its own writer: so fifty stuck clients cost 1.2 s once.
const (
	maxQueue     = 2 << 20                 // bytes; while more are queued for a client, its senders wait
	frameCost    = 64                      // bytes; counted for each frame, because an empty frame takes memory, too
	maxBatch     = 80 << 10                // bytes; a batch of this size gets no further frame
	maxIdleQueue = 2048                    // frames; an empty queue with room for more gives its memory back
	batchWait    = 20 * time.Second        // the limit for a batch while nobody waits: Wi-Fi may come back
	hurryWait    = 1200 * time.Millisecond // the limit for a batch while the queue is full; a far line may stall for 1 s
	tryWait      = 100 * time.Millisecond  // the limit for one Write; see send
	answerPause  = 100 * time.Millisecond  // see answer
)

// enqueue adds a frame to the queue, and starts the writer if it does not run. So a queue that is not empty has a
// writer. enqueue does not wait. It returns the size of the queue.
func (s *Socket) enqueue(encoded []byte) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enqueueLocked(encoded)
}

// A method named …Locked is for a caller that has locked mu.
func (s *Socket) enqueueLocked(encoded []byte) int {
	if s.ending != nil {
		return 0 // the close frame was the last, and nobody needs to wait
	}
	s.queue = append(s.queue, encoded)
	s.queuedBytes += len(encoded) + frameCost
	if !s.writing {
		s.writing = true
		s.writerDone.Add(1)
		go s.write()
	}
	return s.queuedBytes
}

// waitForRoomLocked waits while the queue is full. Two can wake it: the writer, when it has taken a batch from the
// queue, and the end of the socket. One of them comes soon, because a batch has only hurryWait now.
func (s *Socket) waitForRoomLocked() {
	for s.queuedBytes > maxQueue && s.ending == nil {
		s.room.Wait() // unlocks mu while it waits
	}
}

// answer queues what this client alone has asked for: a pong or an "error". A client may ask for many and read none. If
// they filled its queue, all senders would wait for it. So while the queue is more than half full, the reader takes only
// ten such messages a second: in the 20 s until send drops the client, less than 400 KB, where 1 MB has room.
func (s *Socket) answer(encoded []byte) {
	if s.enqueue(encoded) > maxQueue/2 {
		time.Sleep(answerPause)
	}
}

// write is the writer. It sends batches until the queue is empty, and then ends. Most sockets are silent most of
// the time, and a goroutine that waits would take some kilobytes for each of them.
func (s *Socket) write() {
	defer s.writerDone.Done()
	runtime.Gosched() // only for speed: lets other goroutines run first, which may queue more for the first batch
	batch := batchBuffers.Get().(*bytes.Buffer)
	for s.nextBatch(batch) {
		s.send(batch.Bytes())
	}
	batchBuffers.Put(batch)
}

var batchBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }} // shared by all writers; only for speed

// nextBatch moves frames from the queue into batch. It returns false if there are none: then the writer ends.
func (s *Socket) nextBatch(batch *bytes.Buffer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch.Reset()
	count := 0
	for count < len(s.queue) && batch.Len() < maxBatch {
		batch.Write(s.queue[count])
		count++
	}
	s.queue = slices.Delete(s.queue, 0, count)
	s.queuedBytes -= batch.Len() + count*frameCost
	s.room.Broadcast()
	if count == 0 && cap(s.queue) > maxIdleQueue {
		s.queue = nil
	}
	s.writing = count > 0 // under the same lock: so the next frame that is queued starts a new writer
	return s.writing
}

// send writes a batch: many frames in one system call, which costs more than they do. It drops a client that is too
// slow. When the kernel's buffer is full, a Write waits, and the kernel wakes it only when a third of the buffer is
// free, perhaps a megabyte: until then, a slow but healthy client looks stuck. A new Write uses any free room at once.
// So send gives up each Write after tryWait, sees how much it has written (n), and goes on with the rest.
func (s *Socket) send(batch []byte) {
	for waited := tryWait; ; waited += tryWait {
		s.conn.SetWriteDeadline(time.Now().Add(tryWait))
		n, err := s.conn.Write(batch)
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return // all is written, or the client is gone: then the reader ends the socket
		}
		batch = batch[n:]
		s.mu.Lock()
		limit := batchWait
		if s.queuedBytes > maxQueue && s.ending == nil {
			limit = hurryWait // senders wait
		}
		s.mu.Unlock()
		if waited >= limit {
			if tcp, ok := s.conn.(*net.TCPConn); ok {
				tcp.SetLinger(0) // so that Close discards what the kernel still has, and the client learns at once
			}
			s.conn.Close() // each Write fails now, so the queue is soon empty; the reader notices, and ends the socket
			return
		}
	}
}

// Part 4: the end of a socket. Whoever begins it, these steps follow. closeWait after step 1, the connection is closed
// in any case: then reading ends, and each Write fails.
//
//  1. startClosing queues our close frame, as the last frame. Disconnect, Close, protect or serve calls it.
//  2. The reader reads on until the client's close frame comes, or the connection is lost (RFC 6455, section 7.1.2).
//  3. The reader runs the handlers of "disconnect".
//  4. finishClosing waits until the writer has sent all, and until the client has closed TCP.
//  5. serve returns: the socket leaves the hub, and x/net closes the connection.
const closeWait = 3 * time.Second

// An ending is why a socket ends: in words, and as the close frame that tells the client.
type ending struct {
	reason     string // for the "disconnect" handlers
	closeFrame []byte // nil if there is no client to tell
}

var connectionLost = &ending{reason: "connection lost"}

// newEnding returns an ending whose close frame has the reason and a code of RFC 6455, section 7.4.
func newEnding(code uint16, reason string) *ending {
	payload := append(binary.BigEndian.AppendUint16(nil, code), reason...) // the code has two bytes
	return &ending{reason, encodeFrame(websocket.CloseFrame, payload)}
}

// startClosing does step 1. If the socket ends already, the first ending counts.
func (s *Socket) startClosing(why *ending) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending != nil {
		return
	}
	if why.closeFrame != nil {
		s.enqueueLocked(why.closeFrame) // before ending is set: then enqueueLocked takes no more
	}
	s.ending = why
	s.room.Broadcast()                                   // nobody needs to wait for room any more
	time.AfterFunc(closeWait, func() { s.conn.Close() }) // closing twice does no harm
}

// finishClosing does step 4. While the writer sends, it reads and discards: some clients do not read before they have
// sent all. And if we closed TCP with input unread, TCP would send a reset, and the client could lose our last frames.
func (s *Socket) finishClosing() {
	s.conn.SetReadDeadline(time.Time{}) // the one of readMessages may be over; closeWait is the limit now
	var reading sync.WaitGroup
	reading.Go(func() { io.Copy(io.Discard, s.conn) })
	s.writerDone.Wait()
	if conn, ok := s.conn.(interface{ CloseWrite() error }); ok {
		conn.CloseWrite() // ends only our direction; the client sees it, and ends the other. TCP, TLS and Unix have it
	}
	reading.Wait()
}

// Close ends every socket with close code 1001, after what is queued for it, and returns when all have ended: after
// closeWait at most, unless a handler runs longer. Stop the HTTP server first, or sockets go on coming. A handler must
// not call Close: it would wait for its own socket.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ending = newEnding(1001, "server shutting down")
	for _, s := range h.sockets {
		s.startClosing(h.ending)
	}
	for len(h.sockets) > 0 {
		h.socketLeft.Wait() // unlocks mu while it waits
	}
}

// Part 5: a message comes in.
const (
	maxMessageSize = 64 << 10         // bytes; a client that sends a longer message gets close code 1009
	pingPeriod     = 25 * time.Second // a client that sends no whole frame for so long gets a ping; in twice that, it is dropped
)

// readMessages joins frames to messages (RFC 6455, section 5.4), and routes them. It returns why it ends.
func (s *Socket) readMessages(ws *websocket.Conn) *ending {
	var text []byte     // the frames of one message, as far as they have come
	unfinished := false // more frames of that message have to come
	ping := time.AfterFunc(pingPeriod, func() { s.enqueue(encodeFrame(websocket.PingFrame, nil)) })
	defer ping.Stop()
	for {
		ping.Reset(pingPeriod)                                 // as clearTimeout and setTimeout in JavaScript
		s.conn.SetReadDeadline(time.Now().Add(2 * pingPeriod)) // for the whole of the next frame
		f, why := readFrame(ws, unfinished, maxMessageSize-len(text))
		if why != nil {
			return why
		}
		switch f.opcode {
		case websocket.PingFrame:
			s.answer(encodeFrame(websocket.PongFrame, f.payload))
			continue
		case websocket.PongFrame:
			continue // it only shows that the client is there
		case websocket.CloseFrame:
			return clientEnding(f.payload)
		}
		text = append(text, f.payload...)
		unfinished = !f.fin
		if unfinished {
			continue
		}
		if !utf8.Valid(text) { // the whole, because a character may be cut between two frames
			return newEnding(1007, "text must be UTF-8")
		}
		if err := s.route(text); err != nil {
			encoded, _ := encodeEvent("error", fmt.Sprintf("%.300s", err)) // short, even if it quotes a long message
			s.answer(encoded)
		}
		text = nil
	}
}

// A frame is a client's frame, checked, and without its mask.
type frame struct {
	fin     bool
	opcode  byte
	payload []byte
}

// readFrame reads a frame, and checks what x/net does not. limit is how many bytes its message may still have.
func readFrame(ws *websocket.Conn, unfinished bool, limit int) (frame, *ending) {
	frameReader, err := ws.NewFrameReader() // x/net reads the header; reading on takes the mask off
	if err != nil {
		return frame{}, connectionLost
	}
	header, _ := io.ReadAll(frameReader.HeaderReader()) // x/net hides what it has read, but not these bytes: see part 3
	fin := (header[0] & 0x80) != 0
	opcode := header[0] & 0x0f
	length := uint64(header[1] & 0x7f)
	switch length {
	case 126:
		length = uint64(binary.BigEndian.Uint16(header[2:]))
	case 127:
		length = binary.BigEndian.Uint64(header[2:])
	}
	isControl := opcode >= websocket.CloseFrame
	switch {
	case header[1]&0x80 == 0:
		return frame{}, newEnding(1002, "a client must mask its frames")
	case header[0]&0x70 != 0:
		return frame{}, newEnding(1002, "a reserved bit is set")
	case (opcode >= 3 && opcode <= 7) || opcode >= 11:
		return frame{}, newEnding(1002, "the opcode is reserved")
	case isControl && !fin:
		return frame{}, newEnding(1002, "a control frame must not be fragmented")
	case isControl && length > 125:
		return frame{}, newEnding(1002, "a control frame may have at most 125 bytes")
	case opcode == websocket.ContinuationFrame && !unfinished:
		return frame{}, newEnding(1002, "a continuation frame came, but no message is unfinished")
	case unfinished && (opcode == websocket.TextFrame || opcode == websocket.BinaryFrame):
		return frame{}, newEnding(1002, "a new message began before the last one was finished")
	case opcode == websocket.BinaryFrame:
		return frame{}, newEnding(1003, "messages must be text, not binary")
	case !isControl && length > uint64(limit):
		return frame{}, newEnding(1009, fmt.Sprintf("a message may have at most %d bytes", maxMessageSize))
	}
	payload, _ := io.ReadAll(frameReader) // grows as bytes arrive: who announces 64 KiB and sends none takes no memory
	if uint64(len(payload)) < length {    // the connection ended, or was too slow
		return frame{}, connectionLost
	}
	return frame{fin, opcode, payload}, nil
}

// clientEnding returns the ending for a client's close frame. We answer with its code (RFC 6455, section 5.5.1).
func clientEnding(payload []byte) *ending {
	if len(payload) == 1 {
		return newEnding(1002, "a close code has two bytes")
	}
	if len(payload) > 1 {
		code := binary.BigEndian.Uint16(payload)
		if !isValidCode(code) {
			return newEnding(1002, fmt.Sprintf("close code %d must not be sent", code))
		}
		if !utf8.Valid(payload[2:]) {
			return newEnding(1007, "a close reason must be UTF-8")
		}
		payload = payload[:2] // we answer with the code alone, or with nothing if the client gave none
	}
	return &ending{"client disconnect", encodeFrame(websocket.CloseFrame, payload)}
}

// isValidCode reports whether a close frame may have this code (RFC 6455, section 7.4). 1005, 1006 and 1015 never
// travel: 1006 tells a program that no close frame came. 1004, and 1016 to 2999, have no meaning yet.
func isValidCode(code uint16) bool {
	return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
}

// route finds the handlers of a message's event, and runs them. It returns the error for the client.
func (s *Socket) route(text []byte) error {
	var message struct {
		Event string          `json:"event"`
		Data  json.RawMessage `json:"data"`
	}
	s.mu.Lock()
	isClosing := s.ending != nil
	s.mu.Unlock()
	if isClosing {
		return nil // after Disconnect, nothing that the client sends is handled
	}
	if err := json.Unmarshal(text, &message); err != nil || message.Event == "" {
		return errors.New(`a message must be a JSON object with an "event"`)
	}
	if slices.Contains(reservedEvents, message.Event) || message.Event == "error" {
		return fmt.Errorf("event %q is reserved for the server", message.Event)
	}
	if s.handlers[message.Event] == nil {
		return fmt.Errorf("the server has no handler for event %.40q", message.Event)
	}
	return s.run(message.Event, message.Data)
}
