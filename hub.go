// This file is the machine behind the tutorial's io and socket.
//
// An event travels in a message: a JSON object, {"event": …, "data": …}. (Socket.IO's own wire
// format is another.) The WebSocket protocol, RFC 6455, sends a message as one or more frames.
// golang.org/x/net/websocket, x/net for short, does the handshake, reads the headers of frames, and
// takes off their masks. It does not join frames, check the protocol's rules, ping, or close as the
// protocol asks. This file does.
//
//	client → frames → reader → route → handler → Hub.Emit → each socket's queue → writer → client
//
// The reader is a goroutine of each socket: it reads the client's frames and runs the handlers.
// What goes to the client waits in the socket's queue, as encoded frames. The writer is a second
// goroutine: it sends the queue in batches, and ends when the queue is empty. A batch is many
// frames in one system call, because the call costs more than the frames.
//
// One decision shapes the file: senders wait for slow clients, but not for long. While too much
// is queued for a client, Hub.Emit waits. A client that then takes longer than hurryWait for a
// batch is dropped.
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
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/net/websocket"
)

const (
	maxMessageSize = 64 << 10  // bytes; a client that sends a longer message gets close code 1009
	maxQueue       = 2 << 20   // bytes; while more are queued for a client, its senders wait
	frameCost      = 64        // bytes; added to the size of each queued frame, so that tiny frames count
	maxIdleQueue   = 2048      // frames; when an empty queue has room for more, its memory is freed
	maxBatch       = 256 << 10 // bytes; a batch of this size gets no further frame
	sendBuffer     = 128 << 10 // bytes; the kernel's buffer for a client, which could grow to megabytes

	handshakeWait = 3 * time.Second        // the limit for sending the handshake's answer
	pingPeriod    = 25 * time.Second       // a client silent for so long is pinged; in 25 s more it is dropped
	batchWait     = 20 * time.Second       // the limit for a batch while no sender waits: Wi-Fi may come back
	hurryWait     = 900 * time.Millisecond // the limit for a batch while a sender waits for it
	closeWait     = 3 * time.Second        // the limit for the closing handshake, and for what is queued
)

// Part 1: the tutorial's words. A learner may stop after this part.

// A Hub is the tutorial's io: the group of all sockets. Any goroutine may call Emit.
type Hub struct {
	onConnection func(*Socket) // the handler of "connection"; set before serving, then only read

	mu         sync.Mutex         // guards the fields below
	sockets    map[string]*Socket // by ID; a socket is in it from join to leave
	socketLeft *sync.Cond         // on mu; wakes Close when a socket has left

	ending atomic.Pointer[ending] // why all sockets end; nil until Close sets it
}

// NewHub returns a hub without sockets.
func NewHub() *Hub {
	h := &Hub{onConnection: func(*Socket) {}, sockets: map[string]*Socket{}}
	h.socketLeft = sync.NewCond(&h.mu)
	return h
}

// On sets the handler of "connection", a hub's only event; On panics for another. The handler runs
// once for each new socket, before that socket's own handlers. Call On before serving.
func (h *Hub) On(event string, handle func(*Socket)) {
	if event != "connection" {
		panic("a hub has no event " + event)
	}
	h.onConnection = handle
}

// Emit sends an event to every socket: all sockets get all events in one order. It may wait for
// clients that read slowly. It fails if the event is reserved or data cannot be encoded as JSON.
func (h *Hub) Emit(event string, data any) error { return h.emit(event, data, nil) }

// emit sends an event to every socket but one, which may be nil.
func (h *Hub) emit(event string, data any, except *Socket) error {
	encoded, err := encodeEvent(event, data)
	if err != nil {
		return err
	}
	// When push waits for a slow client, all other Emits wait here.
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.ending.Load() != nil {
		return nil // the hub closes
	}
	for _, s := range h.sockets {
		if s != except {
			s.push(encoded) // to all under one lock: in one order for all
		}
	}
	return nil
}

// Close ends every socket with close code 1001, after what is queued for it. It returns when all
// have ended. First it may wait for an Emit, about hurryWait; then all sockets have closeWait together.
// No handler may call it: Close would wait for the handler's own socket.
func (h *Hub) Close() {
	why := newEnding(1001, "server shutting down")
	h.ending.Store(why) // before Lock, so that the Emits that wait for mu give up
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sockets {
		s.startClosing(why)
	}
	for len(h.sockets) > 0 {
		h.socketLeft.Wait() // releases mu while it waits
	}
}

// A Socket is the server's end of a client's connection. Any goroutine may call its methods but On.
type Socket struct {
	ID       string // unguessable and unique; the client has the same
	hub      *Hub
	handlers map[string][]Handler // by event; only the reader uses them

	conn  net.Conn        // the TCP connection; the reader reads it, the writer writes it
	input *bufio.Reader   // reads conn; only the reader uses it
	ws    *websocket.Conn // x/net, which takes frames from input; only the reader uses it

	// mu guards the fields below; the caller of a method named …Locked holds it. A goroutine that needs
	// hub.mu, too, locks hub.mu first. If another locked s.mu first, each could wait for the other for ever.
	mu sync.Mutex
	// Part 3: the end.
	ending     *ending     // why the socket ends; nil until it does
	closeTimer *time.Timer // closes conn when closeWait is over; set together with ending
	// Part 4: the queue and the writer.
	queue       [][]byte   // encoded frames that wait for the writer; many queues share one event's bytes
	queuedBytes int        // the size of queue, with frameCost for each frame
	writing     bool       // the writer runs
	batchBegan  time.Time  // when the writer began its last batch
	progress    *sync.Cond // on mu; wakes push and finishClosing, to check again what they wait for
}

// A Handler gets an event's data as JSON, or nil if the client sent none. If it returns an error,
// the event's later handlers do not run, and the client gets the text as an "error" event.
type Handler func(data json.RawMessage) error

// On adds a handler for an event, or for "disconnect", which comes once, with the reason as its
// data. A socket's handlers run one at a time, in the order in which the client sent the events.
// Call On only in a handler of "connection" or of this socket.
func (s *Socket) On(event string, handle Handler) {
	s.handlers[event] = append(s.handlers[event], handle)
}

// Emit sends an event to this client. It may wait, if the client reads slowly. It fails like Hub.Emit.
func (s *Socket) Emit(event string, data any) error {
	encoded, err := encodeEvent(event, data)
	if err == nil {
		s.push(encoded)
	}
	return err
}

// Broadcast sends an event to every socket but this one. Otherwise it works like Hub.Emit.
func (s *Socket) Broadcast(event string, data any) error { return s.hub.emit(event, data, s) }

// Disconnect ends the socket with close code 1000, after what is queued for it. It does not wait.
func (s *Socket) Disconnect() { s.startClosing(newEnding(1000, "server disconnect")) }

// route runs the handlers of a message's event. It returns the error that the client has to get.
func (s *Socket) route(text []byte) error {
	var message struct {
		Event string          `json:"event"`
		Data  json.RawMessage `json:"data"`
	}
	if s.isClosing() {
		return nil // the client sent this before it got our close frame
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

// Neither clients nor handlers may send these. Handlers may send "error".
var reservedEvents = []string{"connect", "connection", "disconnect"}

// run runs an event's handlers. If one panics, run logs the panic and ends this socket alone.
func (s *Socket) run(event string, data json.RawMessage) error {
	defer func() {
		if bug := recover(); bug != nil {
			log.Printf("a handler of socket %s panicked: %v\n%s", s.ID, bug, debug.Stack())
			s.startClosing(newEnding(1011, "a handler panicked"))
		}
	}()
	for _, handle := range s.handlers[event] {
		if err := handle(data); err != nil {
			return fmt.Errorf("event %q: %w", event, err)
		}
	}
	return nil
}

// Part 2: the handshake. An HTTP request becomes a socket.

// ServeHTTP accepts a WebSocket handshake. It returns when the socket has ended.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, buffers, err := http.NewResponseController(w).Hijack() // net/http leaves the connection to us
	if err != nil {
		http.Error(w, "this connection cannot become a WebSocket", http.StatusInternalServerError)
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetWriteBuffer(sendBuffer)
	}
	conn.SetWriteDeadline(time.Now().Add(handshakeWait))
	s := &Socket{ID: rand.Text(), hub: h, handlers: map[string][]Handler{}, conn: conn, input: buffers.Reader}
	s.progress = sync.NewCond(&s.mu)

	// Clients may send several tokens, on several lines. x/net expects one Upgrade token, and looks
	// at the first Connection line alone. So it gets just what it looks for.
	r.Header.Set("Upgrade", findToken(r.Header["Upgrade"], "websocket"))
	r.Header.Set("Connection", findToken(r.Header["Connection"], "upgrade"))
	// x/net writes only the handshake's answer; our writer sends all frames. So a small buffer is enough
	// for x/net, and saves 4 KB for each socket.
	buffers.Writer = bufio.NewWriterSize(conn, 256)
	server := websocket.Server{Handshake: checkOrigin, Handler: s.serve}
	server.ServeHTTP(hijacked{w, conn, buffers}, r) // x/net hijacks, too: it gets what we have taken
}

// hijacked hands a connection on to x/net. x/net takes it over by calling Hijack, and shows it to
// nobody. We need it, too, for deadlines and batches: so Hub.ServeHTTP takes it over first.
type hijacked struct {
	http.ResponseWriter
	conn    net.Conn
	buffers *bufio.ReadWriter
}

func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.conn, h.buffers, nil }

// findToken returns token if a header's list has it, as in "Connection: keep-alive, Upgrade", or
// else "". Letter case does not count. Several lines make one list (RFC 9110, section 5.3).
func findToken(lines []string, token string) string {
	for part := range strings.SplitSeq(strings.Join(lines, ","), ",") {
		if strings.EqualFold(strings.TrimSpace(part), token) {
			return token
		}
	}
	return ""
}

// checkOrigin refuses pages of other sites; x/net answers its error with 403. A browser lets any
// page dial any server, and leaves this check to the server (RFC 6455, section 10.2).
func checkOrigin(config *websocket.Config, r *http.Request) error {
	// A client may propose subprotocols, names of message formats. We have none, and ignore them. x/net
	// calls this function before it answers. If we left the list, it would accept a single proposal,
	// and refuse a client with two.
	config.Protocol = nil
	origin, err := websocket.Origin(config, r)
	if err == nil && (origin == nil || strings.EqualFold(origin.Host, r.Host)) {
		return nil // origin is nil if the client is no browser
	}
	log.Printf("refused a page: %.99q is not an origin of the host %.99q, such as %.99q",
		r.Header.Get("Origin"), r.Host, "http://"+r.Host)
	return websocket.ErrBadWebSocketOrigin
}

// Part 3: the life of a socket.

// An ending is why a socket ends.
type ending struct {
	reason     string // in words, for the "disconnect" handlers
	closeFrame []byte // tells the client; nil if there is no client to tell
}

var connectionLost = &ending{reason: "connection lost"}

// newEnding returns an ending whose close frame has a code of RFC 6455, section 7.4, and the reason.
func newEnding(code uint16, reason string) *ending {
	payload := binary.BigEndian.AppendUint16(nil, code) // the code's two bytes, then the reason
	payload = append(payload, reason...)
	return &ending{reason, encodeFrame(websocket.CloseFrame, payload)}
}

// serve is a socket's life. x/net calls it after the handshake, in a goroutine for each connection:
// this is the reader. When serve returns, x/net closes the connection.
func (s *Socket) serve(ws *websocket.Conn) {
	s.ws = ws
	s.hub.join(s)
	defer s.hub.leave(s)
	// The hub's handler runs as a handler of the socket. So run recovers its panics, too.
	s.On("connection", func(json.RawMessage) error { s.hub.onConnection(s); return nil })
	s.run("connection", nil)
	why := s.readMessages()   // until the client closes, breaks a rule, or is lost
	why = s.startClosing(why) // if the socket ends already, as after Disconnect, that ending counts
	reason, _ := json.Marshal(why.reason)
	s.run("disconnect", reason)
	s.finishClosing()
}

// join adds s to the hub. It queues "connect" under the hub's lock: so "connect" comes first, and s
// misses no event after it. (encodeEvent would refuse "connect".)
func (h *Hub) join(s *Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	connect := fmt.Appendf(nil, `{"event":"connect","data":{"id":%q}}`, s.ID)
	s.push(encodeFrame(websocket.TextFrame, connect))
	h.sockets[s.ID] = s
	if why := h.ending.Load(); why != nil {
		s.startClosing(why)
	}
}

func (h *Hub) leave(s *Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sockets, s.ID)
	h.socketLeft.Broadcast()
}

// startClosing starts the closing handshake (RFC 6455, section 7.1.2): each side sends a close frame,
// then TCP closes. startClosing queues ours. The reader reads on until the client's comes. All of it
// has closeWait. startClosing returns the ending that counts: the first.
func (s *Socket) startClosing(why *ending) *ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ending != nil {
		return s.ending
	}
	if why.closeFrame != nil {
		s.appendLocked(why.closeFrame)
	}
	s.ending = why                  // from here on nothing is queued: so the close frame is the last
	s.conn.SetDeadline(time.Time{}) // none: it may be too short; closeTimer is the limit now
	s.closeTimer = time.AfterFunc(closeWait, func() { s.conn.Close() })
	s.progress.Broadcast() // nobody needs to wait in push any more
	return why
}

func (s *Socket) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ending != nil
}

// finishClosing waits until all is written and the client has closed TCP. When closeTimer closes the
// connection, reading ends and each Write fails: so both waits end.
func (s *Socket) finishClosing() {
	// We read on for two reasons. A client may read nothing until all its own frames are sent: if we
	// read none, both would wait. And TCP, closed with input unread, may drop what we have sent.
	clientClosed := make(chan struct{})
	go func() {
		io.Copy(io.Discard, s.conn)
		close(clientClosed)
	}()
	s.mu.Lock()
	for s.writing {
		s.progress.Wait()
	}
	s.mu.Unlock()
	if tcp, ok := s.conn.(*net.TCPConn); ok {
		tcp.CloseWrite() // ends only our direction; the client sees it, and ends the other
	}
	<-clientClosed
	s.closeTimer.Stop()
}

// Part 4: the queue and the writer. A message goes out.

// push queues an encoded frame for the client. While more than maxQueue is queued, it waits: the
// writer makes room with each batch that it begins.
func (s *Socket) push(encoded []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.queuedBytes > maxQueue && s.ending == nil {
		s.hurryLocked() // each time: the writer may have begun a new batch, which has batchWait
		s.progress.Wait()
	}
	s.appendLocked(encoded)
}

// hurryLocked gives the batch that is being written only hurryWait from its beginning, in place of
// batchWait. When that time is over, even a Write that is running fails, and the client is dropped. Of
// fifty stuck clients, the first costs Emit hurryWait; the batches of the others are as old by then.
func (s *Socket) hurryLocked() {
	s.conn.SetWriteDeadline(s.batchBegan.Add(hurryWait))
}

// appendLocked queues a frame, and starts the writer if it does not run.
func (s *Socket) appendLocked(encoded []byte) {
	if s.ending != nil {
		return
	}
	s.queue = append(s.queue, encoded)
	s.queuedBytes += len(encoded) + frameCost
	if !s.writing {
		s.writing = true
		go s.write()
	}
}

// write is the writer.
func (s *Socket) write() {
	runtime.Gosched() // lets others run first: they may queue more frames for the first batch
	batch := batchBuffers.Get().(*bytes.Buffer)
	for s.nextBatch(batch) {
		if _, err := s.conn.Write(batch.Bytes()); err != nil {
			// The client is too slow, or gone. Now the reader fails, too, and ends the socket. This
			// loop goes on, and each Write fails at once: so the queue is soon empty, and nobody who
			// waits for room in it, or for the writer to end, waits for ever.
			s.conn.Close()
		}
	}
	batchBuffers.Put(batch)
}

// nextBatch moves frames from the queue into batch. If it returns false, the writer has to end.
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
	if count == 0 && cap(s.queue) > maxIdleQueue {
		s.queue = nil // frees the memory of a long queue
	}
	s.writing = count > 0
	s.batchBegan = time.Now()
	s.conn.SetWriteDeadline(s.batchBegan.Add(batchWait))
	s.progress.Broadcast()
	return s.writing
}

var batchBuffers = sync.Pool{New: func() any { return new(bytes.Buffer) }} // memory for the next batches

// Part 5: the wire. A frame (RFC 6455, section 5.2) has a header and a payload:
//
//	byte 0   0x80 FIN: the frame ends its message; 0x70 reserved bits; 0x0f the opcode
//	byte 1   0x80 the frame has a mask, as every frame from a client must; 0x7f the payload's
//	         length: 0 to 125 is the length itself, 126 means the next 2 bytes, 127 the next 8
//	then     those 2 or 8 bytes; the mask's 4 bytes, XORed over the payload; the payload
//
// The opcode is 0 continuation, 1 text, 2 binary, 8 close, 9 ping or 10 pong; all others are
// reserved. Frames from 8 on are control frames. They may come between the frames of a message.

// A frame is what readFrame returns.
type frame struct {
	fin     bool
	opcode  byte
	payload []byte // without the mask
}

// readMessages is the reader's loop. It joins frames to messages (RFC 6455, section 5.4) and
// routes them. It returns why it ends.
func (s *Socket) readMessages() *ending {
	var text []byte     // the frames of one message, as far as they have come
	unfinished := false // more frames of that message have to come
	for {
		s.pingIfSilent()
		f, why := s.readFrame(maxMessageSize - len(text))
		if why != nil {
			return why
		}
		switch f.opcode {
		case websocket.PingFrame:
			s.push(encodeFrame(websocket.PongFrame, f.payload))
			continue
		case websocket.PongFrame:
			continue // it only shows that the client is there
		case websocket.CloseFrame:
			return clientEnding(f.payload)
		case websocket.ContinuationFrame:
			if !unfinished {
				return newEnding(1002, "a continuation frame came, but no message is unfinished")
			}
		default: // text or binary
			if unfinished {
				return newEnding(1002, "a new message began before the last one was finished")
			}
			if f.opcode == websocket.BinaryFrame {
				return newEnding(1003, "messages must be text, not binary")
			}
		}
		text = append(text, f.payload...)
		unfinished = !f.fin
		if unfinished {
			continue
		}
		if !utf8.Valid(text) {
			return newEnding(1007, "text must be UTF-8")
		}
		if err := s.route(text); err != nil {
			s.Emit("error", err.Error())
		}
		text = nil
	}
}

// pingIfSilent waits until a frame begins. If none has begun after pingPeriod, it pings the client: so
// proxies keep a quiet connection open. readFrame waits for pingPeriod again, then it fails.
func (s *Socket) pingIfSilent() {
	s.conn.SetReadDeadline(time.Now().Add(pingPeriod))
	_, err := s.input.Peek(1)                   // leaves the byte to x/net
	if errors.Is(err, os.ErrDeadlineExceeded) { // all other errors come again in readFrame
		s.push(encodeFrame(websocket.PingFrame, nil))
	}
	s.conn.SetReadDeadline(time.Now().Add(pingPeriod))
}

// readFrame reads a frame, and checks what x/net does not. The frame of a message may have limit bytes.
func (s *Socket) readFrame(limit int) (frame, *ending) {
	frameReader, err := s.ws.NewFrameReader() // x/net reads the header, and takes off the mask
	if err != nil {
		return frame{}, connectionLost
	}
	header, _ := io.ReadAll(frameReader.HeaderReader())
	fin := (header[0] & 0x80) != 0
	reserved := header[0] & 0x70
	opcode := header[0] & 0x0f
	masked := (header[1] & 0x80) != 0
	length := frameReader.Len() - len(header) // Len counts the header, too
	isControl := opcode >= websocket.CloseFrame

	switch {
	case !masked:
		return frame{}, newEnding(1002, "a client must mask its frames")
	case reserved != 0:
		return frame{}, newEnding(1002, "a reserved bit is set")
	case opcode > websocket.BinaryFrame && !isControl, opcode > websocket.PongFrame: // 3 to 7, 11 to 15
		return frame{}, newEnding(1002, "the opcode is reserved")
	case isControl && !fin:
		return frame{}, newEnding(1002, "a control frame must not be fragmented")
	case isControl && length > 125:
		return frame{}, newEnding(1002, "a control frame may have at most 125 bytes")
	case !isControl && length > limit:
		return frame{}, newEnding(1009, fmt.Sprintf("a message may have at most %d bytes", maxMessageSize))
	}
	// ReadAll allocates as bytes arrive, so a length that is only announced takes no memory. Fewer bytes
	// come if the connection ends or is too slow. More than length come on a 32-bit machine, where
	// Len may be wrong for a huge frame: LimitReader ends that.
	payload, _ := io.ReadAll(io.LimitReader(frameReader, maxMessageSize))
	if len(payload) != length {
		return frame{}, connectionLost
	}
	return frame{fin, opcode, payload}, nil
}

// clientEnding returns the ending for a client's close frame. The answer has the client's own code,
// or none if the client gave none (RFC 6455, section 5.5.1).
func clientEnding(payload []byte) *ending {
	if len(payload) == 0 {
		return &ending{"client disconnect", encodeFrame(websocket.CloseFrame, nil)}
	}
	if len(payload) == 1 {
		return newEnding(1002, "a close code has two bytes")
	}
	code := binary.BigEndian.Uint16(payload)
	if !isValidCode(code) {
		return newEnding(1002, fmt.Sprintf("close code %d must not be sent", code))
	}
	if !utf8.Valid(payload[2:]) {
		return newEnding(1007, "a close reason must be UTF-8")
	}
	return &ending{"client disconnect", encodeFrame(websocket.CloseFrame, payload[:2])}
}

// isValidCode reports whether a close frame may have this code (RFC 6455, section 7.4). 1006, for
// example, is only for use inside a program: it means that no close frame came.
func isValidCode(code uint16) bool {
	return code >= 1000 && code <= 1003 || code >= 1007 && code <= 1014 || code >= 3000 && code <= 4999
}

// encodeEvent encodes an event as a frame, once for all sockets.
func encodeEvent(event string, data any) ([]byte, error) {
	if slices.Contains(reservedEvents, event) {
		return nil, fmt.Errorf("event %q is reserved: only the hub sends it", event)
	}
	message := struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
	}{event, data}
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // or it would write < as \u003c
	if err := encoder.Encode(message); err != nil {
		return nil, err
	}
	return encodeFrame(websocket.TextFrame, bytes.TrimSpace(text.Bytes())), nil // Encode adds a newline
}

// encodeFrame encodes a frame as servers send it: whole, and without a mask.
func encodeFrame(opcode byte, payload []byte) []byte {
	encoded := make([]byte, 0, 10+len(payload)) // empty, with room for the longest header
	encoded = append(encoded, 0x80|opcode)
	length := len(payload)
	switch {
	case length <= 125:
		encoded = append(encoded, byte(length))
	case length <= 0xffff:
		encoded = append(encoded, 126)
		encoded = binary.BigEndian.AppendUint16(encoded, uint16(length))
	default:
		encoded = append(encoded, 127)
		encoded = binary.BigEndian.AppendUint64(encoded, uint64(length))
	}
	return append(encoded, payload...)
}
