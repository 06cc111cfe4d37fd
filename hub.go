// The machine behind the tutorial's io and socket. One decision shapes it: senders wait for the
// slowest reader, up to a limit. A client that is slower than the limit is dropped.
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/net/websocket"
)

// Part 1: the tutorial's words.

// A Hub is the tutorial's io: the group of all sockets. Any goroutine may call Emit.
type Hub struct {
	connection func(*Socket) // the handler of "connection"; set before serving, then only read

	mu       sync.Mutex         // guards what follows; never held during network I/O or in a handler
	changed  *sync.Cond         // on mu; signals each change that somebody may wait for
	sockets  map[string]*Socket // by ID, from join to finishClosing
	full     map[*Socket]bool   // sockets beyond maxQueue; Emit waits until each begins a new batch
	stopping *closeError        // why all sockets end; set by Close
}

// NewHub returns a hub without sockets.
func NewHub() *Hub {
	h := &Hub{connection: func(*Socket) {}, sockets: map[string]*Socket{}, full: map[*Socket]bool{}}
	h.changed = sync.NewCond(&h.mu)
	return h
}

// On sets the handler of "connection", the hub's only event. It runs once for each new socket,
// before that socket's own handlers. Call On before serving.
func (h *Hub) On(event string, handle func(*Socket)) {
	if event != "connection" {
		panic("a hub has no event " + event)
	}
	h.connection = handle
}

// Emit sends an event to every socket, in one order for all. It waits for clients that read slowly;
// a stuck client is dropped within fullWait. It fails if data cannot be encoded as JSON.
func (h *Hub) Emit(event string, data any) error { return h.emit(event, data, nil) }

func (h *Hub) emit(event string, data any, except *Socket) error {
	frame, err := eventFrame(event, data)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.full) > 0 {
		h.changed.Wait() // releases mu while it waits
	}
	for _, s := range h.sockets {
		if s != except {
			s.pushLocked(frame) // to all under one lock: in one order for all
		}
		if s.queued > maxQueue && s.closing.Load() == nil {
			h.full[s] = true // the next line fails a batch that is older than fullWait
			s.conn.SetWriteDeadline(s.batchBegan.Add(fullWait))
		}
	}
	return nil
}

// Close ends every socket with close code 1001, after what is queued for it. It returns when all
// have ended: within closeWait of the last join, if no handler hangs. No handler may call it.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopping = newCloseError(1001, "server shutting down")
	for _, s := range h.sockets {
		s.startClosingLocked(h.stopping)
	}
	for len(h.sockets) > 0 {
		h.changed.Wait()
	}
}

// A Socket is the server's end of one client's connection. Any goroutine may call its methods,
// except On. Its life is serve, in part 2.
type Socket struct {
	ID       string // unguessable and unique; the client has the same
	hub      *Hub
	handlers map[string][]Handler       // by event; only the reader uses them
	conn     net.Conn                   // the reader reads it, the writer writes it
	input    *bufio.Reader              // what is read from conn; only the reader uses it
	ws       *websocket.Conn            // x/net's view of conn; only the reader uses it
	closing  atomic.Pointer[closeError] // why the socket ends; set once, under hub.mu

	// Guarded by hub.mu.
	queue      [][]byte  // frames that are not written yet; sockets share their bytes
	queued     int       // the bytes in queue, with frameCost for each frame
	batchBegan time.Time // when the writer began its batch: the batch's time counts from then
}

// A Handler gets an event's data as JSON, or nil if the client sent none. If it returns an error,
// the client, if still there, gets its text as an "error" event, and later handlers do not run.
type Handler func(data json.RawMessage) error

// On adds a handler for an event, or for "disconnect", which comes once and has the reason as its
// data. A socket's handlers run one at a time, in the order in which the client sent the events.
// Call On only in a handler of "connection" or of this socket.
func (s *Socket) On(event string, handle Handler) {
	s.handlers[event] = append(s.handlers[event], handle)
}

// Emit sends an event to this client. It waits while more than half of maxQueue is queued for the
// client. It fails if data cannot be encoded as JSON.
func (s *Socket) Emit(event string, data any) error {
	frame, err := eventFrame(event, data)
	if err == nil {
		s.push(frame)
	}
	return err
}

// Broadcast sends an event to every socket but this one. In all else it is like Hub.Emit.
func (s *Socket) Broadcast(event string, data any) error { return s.hub.emit(event, data, s) }

// Disconnect ends the socket with close code 1000, after what is queued for it. It does not wait.
func (s *Socket) Disconnect() { s.startClosing(newCloseError(1000, "server disconnect")) }

// ServeHTTP accepts a WebSocket handshake. It returns when the socket has ended.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// x/net expects one Upgrade token, and reads only the first Connection line.
	r.Header.Set("Upgrade", findToken(r.Header["Upgrade"], "websocket"))
	r.Header.Set("Connection", findToken(r.Header["Connection"], "upgrade"))
	s := &Socket{ID: rand.Text(), hub: h, handlers: map[string][]Handler{}}
	s.On("connection", func(json.RawMessage) error { h.connection(s); return nil }) // serve runs it
	websocket.Server{Handshake: checkOrigin, Handler: s.serve}.ServeHTTP(hijacker{w, s}, r)
}

// findToken returns token if a header's list has it, in any letter case, or else "". Several
// lines make one list (RFC 9110, section 5.3).
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
	config.Protocol = nil // choose no subprotocol; x/net would accept a single one
	page, err := websocket.Origin(config, r)
	if err == nil && (page == nil || strings.EqualFold(page.Host, r.Host)) {
		return nil
	}
	log.Printf("refused a page: origin %.99q is not the host %.99q", r.Header.Get("Origin"), r.Host)
	return websocket.ErrBadWebSocketOrigin
}

// route runs the handlers of a message's event. The client gets its error.
func (s *Socket) route(text []byte) error {
	var message struct {
		Event string          `json:"event"`
		Data  json.RawMessage `json:"data"`
	}
	err := json.Unmarshal(text, &message)
	switch event := message.Event; {
	case s.closing.Load() != nil:
		return nil // the client sent this before it got our close frame
	case err != nil || event == "":
		return errors.New(`a message must be a JSON object with an "event"`)
	case event == "connection", event == "connect", event == "disconnect", event == "error":
		return fmt.Errorf("event %q is reserved for the server", event)
	case s.handlers[event] == nil:
		return fmt.Errorf("the server has no handler for event %.40q", event)
	}
	return s.run(message.Event, message.Data)
}

// run runs an event's handlers. If one panics, run logs the panic and ends this socket alone.
func (s *Socket) run(event string, data json.RawMessage) error {
	defer func() {
		if bug := recover(); bug != nil {
			log.Printf("a handler of socket %s panicked: %v\n%s", s.ID, bug, debug.Stack())
			s.startClosing(newCloseError(1011, "a handler panicked"))
		}
	}()
	for _, handle := range s.handlers[event] {
		if err := handle(data); err != nil {
			return fmt.Errorf("event %q: %w", event, err)
		}
	}
	return nil
}

// Part 2: the life of a socket. You can stop here: part 1 is enough to use a hub. The rest
// protects it when clients are slow, hostile or gone.

const (
	maxMessageSize = 64 << 10  // bytes; a longer message closes its connection with 1009
	maxQueue       = 2 << 20   // bytes that wait for one client; beyond it, Hub.Emit waits
	maxIdleQueue   = 2048      // frames; an empty queue keeps space for so many: 48 KB
	frameCost      = 64        // bytes that each queued frame counts for, beside its own
	maxBatch       = 256 << 10 // bytes; a batch of this size gets no further frame
	sendBuffer     = 128 << 10 // bytes that the kernel buffers; its default can be megabytes

	writeWait  = 20 * time.Second       // for a batch, or the client is dropped; covers lost Wi-Fi
	fullWait   = 900 * time.Millisecond // in place of writeWait, when the queue is beyond maxQueue
	pingPeriod = 25 * time.Second       // of silence: a ping; after 25 s more, the client is dropped
	closeWait  = 3 * time.Second        // to write the handshake's answer; also for a whole closing
)

// serve is a socket's life. x/net calls it after the handshake, in a goroutine of the connection:
// the socket's reader. When serve returns, x/net closes the connection.
func (s *Socket) serve(ws *websocket.Conn) {
	s.ws = ws
	s.hub.join(s)
	s.run("connection", nil)         // the application adds its handlers
	s.startClosing(s.readMessages()) // until the client closes, breaks a rule, or is lost
	reason, _ := json.Marshal(s.closing.Load().reason)
	s.run("disconnect", reason)
	s.finishClosing()
}

// join adds s to the hub and queues "connect" under one lock: after "connect", s misses no event.
func (h *Hub) join(s *Socket) {
	connect, _ := eventFrame("connect", map[string]string{"id": s.ID})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sockets[s.ID] = s
	s.pushLocked(connect)
	if h.stopping != nil {
		s.startClosingLocked(h.stopping)
	}
}

// push queues a frame for this client alone. It waits while over half of maxQueue is taken: unread
// answers to a client's own messages cannot alone make Hub.Emit wait.
func (s *Socket) push(frame []byte) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for s.queued > maxQueue/2 && s.closing.Load() == nil {
		s.hub.changed.Wait()
	}
	s.pushLocked(frame)
}

// pushLocked queues a frame. The caller of a method named …Locked holds hub.mu.
func (s *Socket) pushLocked(frame []byte) {
	if s.closing.Load() != nil {
		return
	}
	s.queue = append(s.queue, frame)
	s.queued += len(frame) + frameCost
	if len(s.queue) == 1 { // otherwise the writer runs: it removes frames only once written
		go s.write()
	}
}

// write is the socket's writer. It writes the queue in batches, and ends when the queue is empty.
func (s *Socket) write() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for len(s.queue) > 0 {
		batch, n := batches.Get().(*bytes.Buffer), 0
		for ; n < len(s.queue) && batch.Len() < maxBatch; n++ {
			batch.Write(s.queue[n])
		}
		s.batchBegan = time.Now()
		s.conn.SetWriteDeadline(s.batchBegan.Add(writeWait))
		delete(s.hub.full, s)
		s.hub.changed.Broadcast()
		s.hub.mu.Unlock() // nobody holds the lock during network I/O
		_, err := s.conn.Write(batch.Bytes())
		s.hub.mu.Lock()
		s.queue = slices.Delete(s.queue, 0, n)
		s.queued -= batch.Len() + n*frameCost
		batch.Reset()
		batches.Put(batch)
		if err != nil { // the client is too slow, or gone
			s.startClosingLocked(errLost)
			s.conn.Close()
			s.queue = nil
		}
	}
	if cap(s.queue) > maxIdleQueue {
		s.queue = nil
	}
	s.hub.changed.Broadcast()
}

var batches = sync.Pool{New: func() any { return new(bytes.Buffer) }} // memory for the next batch

// startClosing starts the closing handshake (RFC 6455, section 7.1.2), if none has started: it
// queues the close frame. A reader that still reads goes on until the client's close frame. After
// closeWait, the connection is closed in any case.
func (s *Socket) startClosing(why *closeError) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.startClosingLocked(why)
}

func (s *Socket) startClosingLocked(why *closeError) {
	if s.closing.Load() != nil {
		return
	}
	if why.frame != nil {
		s.pushLocked(why.frame)
	}
	s.closing.Store(why)
	s.conn.SetDeadline(time.Now().Add(closeWait))        // in place of shorter limits
	time.AfterFunc(closeWait, func() { s.conn.Close() }) // even if longer limits are set meanwhile
	delete(s.hub.full, s)
	s.hub.changed.Broadcast()
}

// finishClosing waits until all is written and the client closes TCP, or closeWait is over. It
// discards input: closing TCP with unread input resets it, and the client may lose the last frames.
func (s *Socket) finishClosing() {
	go io.Copy(io.Discard, s.conn) // a client may read only after it has written; ends with conn
	s.hub.mu.Lock()
	for len(s.queue) > 0 {
		s.hub.changed.Wait()
	}
	s.hub.mu.Unlock()
	if tcp, ok := s.conn.(interface{ CloseWrite() error }); ok {
		tcp.CloseWrite()
	}
	io.Copy(io.Discard, s.conn) // until the client closes TCP
	s.hub.mu.Lock()
	delete(s.hub.sockets, s.ID)
	s.hub.changed.Broadcast()
	s.hub.mu.Unlock()
}

// A hijacker gives x/net the connection, and stores it in the socket: x/net does not show it.
type hijacker struct {
	http.ResponseWriter
	socket *Socket
}

func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buffers, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetWriteBuffer(sendBuffer)
	}
	conn.SetWriteDeadline(time.Now().Add(closeWait))
	h.socket.conn, h.socket.input = conn, buffers.Reader
	// x/net writes only 101 or an error. A small buffer is enough, and saves 4 KB for each socket.
	return conn, bufio.NewReadWriter(buffers.Reader, bufio.NewWriterSize(conn, 256)), nil
}

// Part 3: the wire.

// A closeError ends a socket.
type closeError struct {
	reason string // for the "disconnect" handlers
	frame  []byte // the close frame for the client; nil if the connection is lost
}

var errLost = &closeError{reason: "connection lost"}

// newCloseError returns a closeError with a code of RFC 6455, section 7.4.
func newCloseError(code uint16, reason string) *closeError {
	payload := append(binary.BigEndian.AppendUint16(nil, code), reason...)
	return &closeError{reason, newFrame(websocket.CloseFrame, payload)}
}

// readMessages joins frames to messages (RFC 6455, section 5.4), routes them, and says why it ends.
func (s *Socket) readMessages() *closeError {
	var text []byte
	for unfinished := false; ; {
		fin, opcode, payload, why := s.nextFrame(maxMessageSize - len(text))
		switch {
		case why != nil:
			return why
		case opcode == websocket.PingFrame:
			s.push(newFrame(websocket.PongFrame, payload))
		case opcode == websocket.PongFrame: // it only shows that the client is there
		case opcode == websocket.CloseFrame:
			return echoClose(payload)
		case unfinished != (opcode == websocket.ContinuationFrame):
			return newCloseError(1002, "unexpected continuation frame, or the last message has not ended")
		case opcode == websocket.BinaryFrame:
			return newCloseError(1003, "messages must be text, not binary")
		default:
			text, unfinished = append(text, payload...), !fin
			if fin && !utf8.Valid(text) {
				return newCloseError(1007, "text must be UTF-8")
			}
			if fin {
				if err := s.route(text); err != nil {
					s.Emit("error", err.Error())
				}
				text = nil
			}
		}
	}
}

// echoClose answers a valid close frame with its own code or none (RFC 6455, section 5.5.1).
func echoClose(payload []byte) *closeError {
	code := payload[:min(2, len(payload))]
	switch n := binary.BigEndian.Uint16(append(slices.Clone(code), 0, 0)); { // code may be short
	case len(code) == 0:
	case len(code) == 1, n < 1000, n > 1003 && n < 1007, n > 1014 && n < 3000, n > 4999: // section 7.4
		return newCloseError(1002, "invalid close code")
	case !utf8.Valid(payload[2:]):
		return newCloseError(1007, "a close reason must be UTF-8")
	}
	return &closeError{"client disconnect", newFrame(websocket.CloseFrame, code)}
}

// nextFrame reads a frame, and checks what x/net does not (RFC 6455, section 5.2). It also pings.
func (s *Socket) nextFrame(limit int) (fin bool, opcode byte, payload []byte, why *closeError) {
	// Peek waits for the first byte; x/net reads it. After a ping, the client gets another pingPeriod.
	s.conn.SetReadDeadline(time.Now().Add(pingPeriod))
	if _, err := s.input.Peek(1); errors.Is(err, os.ErrDeadlineExceeded) {
		s.hub.mu.Lock() // push would wait while much is queued
		s.pushLocked(newFrame(websocket.PingFrame, nil))
		s.hub.mu.Unlock()
	}
	s.conn.SetReadDeadline(time.Now().Add(pingPeriod)) // for the whole frame, or the pong
	frame, err := s.ws.NewFrameReader()
	if err != nil {
		return false, 0, nil, errLost
	}
	var header [14]byte
	n, _ := frame.HeaderReader().Read(header[:])
	fin, opcode, length := header[0]&0x80 != 0, header[0]&0x0f, frame.Len()-n // Len counts the header
	control := opcode >= websocket.CloseFrame
	switch {
	case header[1]&0x80 == 0:
		why = newCloseError(1002, "a client must mask its frames")
	case header[0]&0x70 != 0, opcode > websocket.BinaryFrame && !control, opcode > websocket.PongFrame:
		why = newCloseError(1002, "a reserved bit or opcode is set")
	case control && (!fin || length > 125):
		why = newCloseError(1002, "a control frame must be whole, with at most 125 bytes")
	case !control && length > limit:
		why = newCloseError(1009, fmt.Sprintf("a message may have at most %d bytes", maxMessageSize))
	default:
		// ReadAll takes memory only for what arrives. On 32-bit machines, x/net may cut the length.
		payload, _ = io.ReadAll(io.LimitReader(frame, int64(length)))
		if len(payload) < length {
			why = errLost
		}
	}
	return fin, opcode, payload, why
}

// eventFrame encodes an event as a frame, once for all sockets.
func eventFrame(event string, data any) ([]byte, error) {
	text, err := json.Marshal(struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
	}{event, data})
	return newFrame(websocket.TextFrame, text), err
}

// newFrame encodes a frame as servers send it: whole, and without a mask.
func newFrame(opcode byte, payload []byte) []byte {
	frame := append(make([]byte, 0, 10+len(payload)), 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		frame = append(frame, byte(n))
	case n < 1<<16:
		frame = binary.BigEndian.AppendUint16(append(frame, 126), uint16(n))
	default:
		frame = binary.BigEndian.AppendUint64(append(frame, 127), uint64(n))
	}
	return append(frame, payload...)
}
