// This file is the machine behind the tutorial's io and socket.
//
// An event travels in a message: a JSON object, {"event": …, "data": …}. (Socket.IO's own wire
// format is another.) The WebSocket protocol, RFC 6455, sends a message as one or more frames.
// golang.org/x/net/websocket does the handshake, reads the headers of frames, and takes off their
// masks. It does not join frames, check the protocol's rules, ping, or close properly. We do.
//
//	client → frames → reader → route → handler → Hub.Emit → each socket's queue → writer → client
//
// The reader is a goroutine of each socket: it reads the client's frames and runs the handlers.
// What goes to the client waits in the socket's queue, as encoded frames. The writer is a second
// goroutine: it sends the queue in batches, and ends when the queue is empty. A batch is many
// frames in one system call, because the call costs more than the frames.
//
// One decision shapes the file: senders wait for slow clients, but not for long. While too much
// is queued for a client, Hub.Emit waits. A client that then takes longer than fullWait for a
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
	"time"
	"unicode/utf8"

	"golang.org/x/net/websocket"
)

const (
	maxMessageSize = 64 << 10     // bytes; a client that sends a longer message gets close code 1009
	maxQueue       = 2 << 20      // bytes; while more wait for a client, Hub.Emit waits
	maxAnswers     = maxQueue / 2 // bytes; while more wait for a client, what is sent to it alone waits
	maxBatch       = 256 << 10    // bytes; a batch of this size gets no further frame
	frameCost      = 64           // bytes; added to the size of each queued frame, so that tiny frames count
	maxIdleQueue   = 2048         // frames; an empty queue keeps room for no more than this: 24 bytes each
	sendBuffer     = 128 << 10    // bytes that the kernel buffers for a client; by itself it may take megabytes

	handshakeWait = 3 * time.Second        // the limit for a client to take the handshake's answer
	pingPeriod    = 25 * time.Second       // a client that is silent for so long is pinged, and dropped after as long again
	batchWait     = 20 * time.Second       // the limit for a batch while nobody waits for it; lost Wi-Fi may come back
	fullWait      = 900 * time.Millisecond // the limit for a batch that a sender waits for
	closeWait     = 3 * time.Second        // the limit for the closing handshake and what is queued before it
)

// Part 1: the tutorial's words. A learner may stop after this part.

// A Hub is the tutorial's io: the group of all sockets. Any goroutine may call Emit and Close.
type Hub struct {
	connection func(*Socket) // the handler of "connection"; set before serving, then only read

	mu       sync.Mutex         // guards the fields below
	sockets  map[string]*Socket // by ID; a socket is in it from join to leave
	left     *sync.Cond         // on mu; wakes Close each time a socket has left
	stopping *ending            // why all sockets end; set by Close
}

// NewHub returns a hub without sockets.
func NewHub() *Hub {
	h := &Hub{connection: func(*Socket) {}, sockets: map[string]*Socket{}}
	h.left = sync.NewCond(&h.mu)
	return h
}

// On sets the handler of "connection", a hub's only event; On panics for another. The handler runs
// once for each new socket, before that socket's own handlers. Call On before serving.
func (h *Hub) On(event string, handle func(*Socket)) {
	if event != "connection" {
		panic("a hub has no event " + event)
	}
	h.connection = handle
}

// Emit sends an event to every socket, in one order for all. It waits for clients that read
// slowly, up to fullWait. It fails if the event is reserved or data cannot be encoded as JSON.
func (h *Hub) Emit(event string, data any) error { return h.emit(event, data, nil) }

// emit sends an event to every socket but one, which may be nil.
func (h *Hub) emit(event string, data any, except *Socket) error {
	encoded, err := encodeEvent(event, data)
	if err != nil {
		return err
	}
	// The lock is held until the event is in every queue: so all sockets get one order of events.
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, s := range h.sockets {
		if s != except {
			s.push(encoded, maxQueue)
		}
	}
	return nil
}

// Close ends every socket with close code 1001, after what is queued for it. It returns when all
// have ended: some closeWait later at most, if no handler hangs. No handler may call Close, because
// Close waits for the handlers.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.stopping = endWith(1001, "server shutting down")
	for _, s := range h.sockets {
		s.startClosing(h.stopping)
	}
	for len(h.sockets) > 0 {
		h.left.Wait() // releases mu while it waits
	}
}

// A Socket is the server's end of a client's connection. Any goroutine may call its methods but On.
type Socket struct {
	ID       string // unguessable and unique; the client has the same
	hub      *Hub
	handlers map[string][]Handler // by event; only the reader uses them

	conn  net.Conn        // the TCP connection; the reader reads it, the writer writes it
	input *bufio.Reader   // what has been read from conn; only the reader uses it
	ws    *websocket.Conn // takes frames from input; only the reader uses it

	mu         sync.Mutex  // guards the fields below; never lock hub.mu while you hold it
	changed    *sync.Cond  // on mu; wakes what waits for a batch to begin, or for the writer to end
	queue      [][]byte    // encoded frames that wait for the writer; many queues hold the same bytes
	queued     int         // the bytes in queue, with frameCost for each frame
	writing    bool        // the writer runs
	batchBegan time.Time   // when the writer began its last batch
	why        *ending     // why the socket ends; nil until it does
	closeTimer *time.Timer // closes conn when closeWait is over; set together with why
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

// Emit sends an event to this client. It waits while more than maxAnswers is queued for the client,
// up to fullWait. It fails like Hub.Emit.
func (s *Socket) Emit(event string, data any) error {
	encoded, err := encodeEvent(event, data)
	if err == nil {
		s.push(encoded, maxAnswers)
	}
	return err
}

// Broadcast sends an event to every socket but this one. Otherwise it works like Hub.Emit.
func (s *Socket) Broadcast(event string, data any) error { return s.hub.emit(event, data, s) }

// Disconnect ends the socket with close code 1000, after what is queued for it. It does not wait.
func (s *Socket) Disconnect() { s.startClosing(endWith(1000, "server disconnect")) }

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

// reservedEvents are the hub's own: neither clients nor handlers may send them.
var reservedEvents = []string{"connect", "connection", "disconnect"}

// run runs an event's handlers. If one panics, run logs the panic and ends this socket alone.
func (s *Socket) run(event string, data json.RawMessage) error {
	defer func() {
		if bug := recover(); bug != nil {
			log.Printf("a handler of socket %s panicked: %v\n%s", s.ID, bug, debug.Stack())
			s.startClosing(endWith(1011, "a handler panicked"))
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

// ServeHTTP accepts a WebSocket handshake. It returns when the socket has ended. Hijack takes the
// TCP connection over from net/http.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	conn, buffers, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot become a WebSocket", http.StatusInternalServerError)
		return
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		tcp.SetWriteBuffer(sendBuffer)
	}
	conn.SetWriteDeadline(time.Now().Add(handshakeWait))
	s := &Socket{ID: rand.Text(), hub: h, handlers: map[string][]Handler{}, conn: conn, input: buffers.Reader}
	s.changed = sync.NewCond(&s.mu)

	// x/net expects one Upgrade token, and looks at the first Connection line alone.
	r.Header.Set("Upgrade", findToken(r.Header["Upgrade"], "websocket"))
	r.Header.Set("Connection", findToken(r.Header["Connection"], "upgrade"))
	// x/net writes nothing but its answer. A small buffer is enough for it, and saves 4 KB a socket.
	buffers.Writer = bufio.NewWriterSize(conn, 256)
	server := websocket.Server{Handshake: checkOrigin, Handler: s.serve}
	server.ServeHTTP(hijacked{w, conn, buffers}, r)
}

// hijacked gives x/net a connection that has been taken over already. x/net calls Hijack itself,
// and has no method that returns the connection to us.
type hijacked struct {
	http.ResponseWriter
	conn    net.Conn
	buffers *bufio.ReadWriter
}

func (h hijacked) Hijack() (net.Conn, *bufio.ReadWriter, error) { return h.conn, h.buffers, nil }

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
	origin, err := websocket.Origin(config, r)
	if err == nil && (origin == nil || strings.EqualFold(origin.Host, r.Host)) {
		return nil // origin is nil if the client is no browser
	}
	log.Printf("refused a page: %.99q is not an origin of the host %.99q, such as %.99q",
		r.Header.Get("Origin"), r.Host, "http://"+r.Host)
	return websocket.ErrBadWebSocketOrigin
}

// Part 3: the life of a socket.

// serve is a socket's life. x/net calls it after the handshake, in the connection's goroutine:
// that is the socket's reader. When serve returns, x/net closes the connection.
func (s *Socket) serve(ws *websocket.Conn) {
	s.ws = ws
	s.hub.join(s)
	// The hub's handler runs as one of the socket's, so that run recovers its panics, too.
	s.On("connection", func(json.RawMessage) error { s.hub.connection(s); return nil })
	s.run("connection", nil)
	why := s.readMessages()   // until the client closes, breaks a rule, or is lost
	why = s.startClosing(why) // the first ending counts
	reason, _ := json.Marshal(why.reason)
	s.run("disconnect", reason)
	s.finishClosing()
	s.hub.leave(s)
}

// join adds s to the hub. It queues "connect" under the hub's lock, so that "connect" comes first
// and s misses no event after it.
func (h *Hub) join(s *Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	connect := fmt.Appendf(nil, `{"event":"connect","data":{"id":%q}}`, s.ID)
	s.push(encodeFrame(websocket.TextFrame, connect), maxQueue)
	h.sockets[s.ID] = s
	if h.stopping != nil {
		s.startClosing(h.stopping)
	}
}

func (h *Hub) leave(s *Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.sockets, s.ID)
	h.left.Broadcast()
}

// An ending says why a socket ends.
type ending struct {
	reason     string // in words, for the "disconnect" handlers
	closeFrame []byte // tells the client; nil if the client is lost
}

var connectionLost = &ending{reason: "connection lost"}

// endWith returns an ending with a close code of RFC 6455, section 7.4. The client gets the
// reason, too.
func endWith(code uint16, reason string) *ending {
	payload := binary.BigEndian.AppendUint16(nil, code)
	payload = append(payload, reason...)
	return &ending{reason, encodeFrame(websocket.CloseFrame, payload)}
}

// startClosing starts the closing handshake (RFC 6455, section 7.1.2): it queues the close frame.
// The reader reads on until the client's close frame comes. After closeWait, the connection is
// closed in any case. A socket ends once: startClosing returns the ending that came first.
func (s *Socket) startClosing(why *ending) *ending {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why != nil {
		return s.why
	}
	if why.closeFrame != nil {
		s.appendLocked(why.closeFrame)
	}
	s.why = why // from here on nothing is queued: the close frame is the last
	s.closeTimer = time.AfterFunc(closeWait, func() { s.conn.Close() })
	return why
}

// isClosing reports whether the socket ends.
func (s *Socket) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.why != nil
}

// finishClosing waits until the queue is written and the client has closed TCP: closeWait at most.
func (s *Socket) finishClosing() {
	// Read on, or a client that still writes would never come to read what we send. And closing
	// TCP with unread input would reset the connection: the client could lose the last frames.
	clientClosed := make(chan struct{})
	go func() {
		io.Copy(io.Discard, s.conn)
		close(clientClosed)
	}()
	s.mu.Lock()
	for s.writing {
		s.changed.Wait()
	}
	s.mu.Unlock()
	if tcp, ok := s.conn.(*net.TCPConn); ok {
		tcp.CloseWrite() // the client sees the end, and closes its side
	}
	<-clientClosed
	s.closeTimer.Stop()
}

// Part 4: the queue and the writer. A message goes out.

// push queues an encoded frame for the client. While more than limit bytes are queued, it waits,
// and the batch that it waits for has only fullWait from its beginning.
func (s *Socket) push(encoded []byte, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.queued > limit && s.why == nil {
		// A deadline also ends a Write that runs already. Each batch sets a new one as it begins,
		// and wakes us: so this line shortens it again.
		s.conn.SetWriteDeadline(s.batchBegan.Add(fullWait))
		s.changed.Wait() // releases mu while it waits
	}
	s.appendLocked(encoded)
}

// appendLocked queues an encoded frame, and starts the writer if it does not run. After the close
// frame it queues nothing. The caller holds s.mu.
func (s *Socket) appendLocked(encoded []byte) {
	if s.why != nil {
		return
	}
	s.queue = append(s.queue, encoded)
	s.queued += len(encoded) + frameCost
	if !s.writing {
		s.writing = true
		go s.write()
	}
}

// write is the socket's writer. It sends the queue in batches, until the queue is empty.
func (s *Socket) write() {
	// Let senders queue more first: larger batches need fewer system calls.
	runtime.Gosched()
	batch := batches.Get().(*bytes.Buffer)
	for s.nextBatch(batch) {
		if _, err := s.conn.Write(batch.Bytes()); err != nil {
			s.conn.Close() // The reader fails now, and ends the socket. Further writes fail, too.
		}
	}
	batches.Put(batch)
}

// nextBatch moves frames from the queue into batch. If it reports false, the writer has to end.
func (s *Socket) nextBatch(batch *bytes.Buffer) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	batch.Reset()
	frames := 0
	for frames < len(s.queue) && batch.Len() < maxBatch {
		batch.Write(s.queue[frames])
		frames++
	}
	s.queue = slices.Delete(s.queue, 0, frames)
	s.queued -= batch.Len() + frames*frameCost
	if frames == 0 && cap(s.queue) > maxIdleQueue {
		s.queue = nil
	}
	s.writing = frames > 0
	s.batchBegan = time.Now()
	s.conn.SetWriteDeadline(s.batchBegan.Add(batchWait))
	s.changed.Broadcast()
	return s.writing
}

var batches = sync.Pool{New: func() any { return new(bytes.Buffer) }} // memory for the next batches

// Part 5: the wire. A frame (RFC 6455, section 5.2) is a header and a payload:
//
//	1 bit     FIN: the frame ends its message
//	3 bits    reserved: 0
//	4 bits    the opcode: 0 continuation, 1 text, 2 binary, 8 close, 9 ping, 10 pong
//	1 bit     the frame has a mask; a client's frames must, the server's must not
//	7 bits    the payload's length up to 125; or 126 or 127: the next 2 or 8 bytes have it
//	4 bytes   the mask, if there is one
//
// Opcodes from 8 on are control frames. They may come between the frames of a message.

// A frame is one frame from the client.
type frame struct {
	fin     bool
	opcode  byte
	payload []byte // without the mask
}

// readMessages is the reader's loop. It joins frames to messages (RFC 6455, section 5.4) and
// routes them. It returns why it ends.
func (s *Socket) readMessages() *ending {
	var text []byte     // what has come of a message
	unfinished := false // more of that message has to come
	for {
		s.waitForFrame()
		f, why := s.readFrame(maxMessageSize - len(text))
		if why != nil {
			return why
		}
		switch f.opcode {
		case websocket.PingFrame:
			s.push(encodeFrame(websocket.PongFrame, f.payload), maxAnswers)
			continue
		case websocket.PongFrame:
			continue // the client is there: that is all it says
		case websocket.CloseFrame:
			return answerClose(f.payload)
		case websocket.ContinuationFrame:
			if !unfinished {
				return endWith(1002, "a continuation frame must follow the first frame of a message")
			}
		default: // text or binary
			if unfinished {
				return endWith(1002, "the next frame of an unfinished message must be a continuation frame")
			}
			if f.opcode == websocket.BinaryFrame {
				return endWith(1003, "messages must be text, not binary")
			}
		}
		text = append(text, f.payload...)
		unfinished = !f.fin
		if unfinished {
			continue
		}
		if !utf8.Valid(text) {
			return endWith(1007, "text must be UTF-8")
		}
		if err := s.route(text); err != nil {
			s.Emit("error", err.Error())
		}
		text = nil
	}
}

// waitForFrame waits for the first byte of a frame. It pings a client that is silent for
// pingPeriod, so that proxies keep the connection, and a client that has vanished is noticed.
func (s *Socket) waitForFrame() {
	s.conn.SetReadDeadline(time.Now().Add(pingPeriod))
	_, err := s.input.Peek(1) // leaves the byte to x/net
	if errors.Is(err, os.ErrDeadlineExceeded) {
		s.push(encodeFrame(websocket.PingFrame, nil), maxQueue)
	}
	s.conn.SetReadDeadline(time.Now().Add(pingPeriod)) // for the whole frame, or the pong
}

// readFrame reads a frame, and checks what x/net does not. A longer payload than limit ends the
// socket before it is read.
func (s *Socket) readFrame(limit int) (frame, *ending) {
	reader, err := s.ws.NewFrameReader() // x/net reads the header; reader takes off the mask
	if err != nil {
		return frame{}, connectionLost
	}
	header, _ := io.ReadAll(reader.HeaderReader())
	fin := header[0]&0x80 != 0
	reserved := header[0] & 0x70
	opcode := header[0] & 0x0f
	masked := header[1]&0x80 != 0
	length := reader.Len() - len(header) // Len counts the header
	isControl := opcode >= websocket.CloseFrame

	switch {
	case !masked:
		return frame{}, endWith(1002, "a client must mask its frames")
	case reserved != 0:
		return frame{}, endWith(1002, "a reserved bit is set")
	case opcode > websocket.BinaryFrame && !isControl, opcode > websocket.PongFrame:
		return frame{}, endWith(1002, "the opcode is reserved")
	case isControl && !fin:
		return frame{}, endWith(1002, "a control frame must not be fragmented")
	case isControl && length > 125:
		return frame{}, endWith(1002, "a control frame may have at most 125 bytes")
	case !isControl && length > limit:
		return frame{}, endWith(1009, fmt.Sprintf("a message may have at most %d bytes", maxMessageSize))
	}
	// ReadAll allocates as bytes arrive. On a 32-bit machine x/net may truncate the length: so the
	// reader itself is limited, too.
	payload, _ := io.ReadAll(io.LimitReader(reader, int64(length)))
	if len(payload) < length {
		return frame{}, connectionLost
	}
	return frame{fin, opcode, payload}, nil
}

// answerClose returns the ending for a client's close frame. The answer has the client's own code,
// or none if the client gave none (RFC 6455, section 5.5.1).
func answerClose(payload []byte) *ending {
	if len(payload) == 0 {
		return &ending{"client disconnect", encodeFrame(websocket.CloseFrame, nil)}
	}
	if len(payload) == 1 {
		return endWith(1002, "a close code has two bytes")
	}
	code := binary.BigEndian.Uint16(payload)
	if !mayBeSent(code) {
		return endWith(1002, fmt.Sprintf("close code %d must not be sent", code))
	}
	if !utf8.Valid(payload[2:]) {
		return endWith(1007, "a close reason must be UTF-8")
	}
	return &ending{"client disconnect", encodeFrame(websocket.CloseFrame, payload[:2])}
}

// mayBeSent reports whether a close frame may have this code (RFC 6455, section 7.4).
func mayBeSent(code uint16) bool {
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
	encoder.SetEscapeHTML(false) // or each < would take six bytes; the page shows text as text
	if err := encoder.Encode(message); err != nil {
		return nil, err
	}
	return encodeFrame(websocket.TextFrame, bytes.TrimSpace(text.Bytes())), nil
}

// encodeFrame encodes a frame as servers send it: whole, and without a mask.
func encodeFrame(opcode byte, payload []byte) []byte {
	encoded := make([]byte, 0, 10+len(payload))
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
