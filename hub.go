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
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/net/websocket"
)

const (
	maxMessage = 64 << 10               // bytes of a client's message: a long letter, yet little to hold for everybody at once
	maxQueue   = 2 << 20                // bytes that may wait for a client; then senders wait too. A second of very busy talk
	maxOwn     = maxQueue / 4           // bytes that may wait before its own answers do, so that nobody waits for those
	frameCost  = 64                     // bytes that a waiting frame counts for beside its own
	maxKept    = 512                    // frames that an empty queue keeps space for: 12 KB, enough for most bursts
	maxBatch   = 256 << 10              // bytes that the writer hands over at once, and the client has to take in time:
	patience   = 900 * time.Millisecond // the time once senders wait: they may have to twice, and that should take 2 s at most
	stalled    = 20 * time.Second       // the time while nobody waits: a train in a tunnel
	sendBuffer = 128 << 10              // bytes the kernel may hold for a client; by itself it would hide megabytes
	heartbeat  = 25 * time.Second       // silence before a ping; as much again, and the client is gone. Some proxies cut after 30 s
	closeWait  = 3 * time.Second        // to take the answer to a handshake, or what is queued and close. To stop, the whole program has 5 s
)

// A Hub is the tutorial's io: the group of all sockets. As an http.Handler it
// takes WebSocket handshakes.
type Hub struct {
	connection func(*Socket) // set before serving, only read after

	mu      sync.Mutex         // guards what follows, and in each Socket what says so; never held while reading or writing
	changed sync.Cond          // on mu: a full queue has space, a socket has begun to end, its writer has ended, it has gone
	sockets map[string]*Socket // by ID, from the handshake's answer until the connection is closed
	slow    map[*Socket]bool   // whose queue the last events made longer than maxQueue
	closed  bool
}

// NewHub returns a hub without sockets.
func NewHub() *Hub {
	h := &Hub{connection: func(*Socket) {}, sockets: map[string]*Socket{}, slow: map[*Socket]bool{}}
	h.changed.L = &h.mu
	return h
}

// On sets the handler of "connection", the hub's one event: it runs for each
// new socket, before the socket's other handlers. Call On before serving.
func (h *Hub) On(event string, handle func(*Socket)) {
	if event != "connection" {
		panic("a hub has no event " + event)
	}
	h.connection = handle
}

// Emit sends an event to every socket; all see all events in one order. It
// waits for clients that are slow to take theirs, within limits: who is slower
// is dropped. It fails if data has no JSON form. Call it from any goroutine.
func (h *Hub) Emit(event string, data any) error { return h.emit(nil, event, data) }

func (h *Hub) emit(except *Socket, event string, data any) error {
	f, err := message(event, data)
	if err != nil {
		return err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for s := range h.slow { // before the first push: waiting lets go of the lock
		for s.size > maxQueue && s.ending.Load() == nil {
			s.conn.SetWriteDeadline(s.began.Add(patience))
			h.changed.Wait()
		}
		delete(h.slow, s)
	}
	for _, s := range h.sockets {
		if s != except {
			s.push(f) // to all under one lock: in one order for all
		}
		if s.size > maxQueue {
			h.slow[s] = true
		}
	}
	return nil
}

// Close ends every socket with close code 1001 after what is queued for it. It
// returns when all are gone: after closeWait at most, unless a handler hangs. Do
// not call it in a handler.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for _, s := range h.sockets {
		s.end(&closeError{1001, "server shutting down"})
		defer time.AfterFunc(closeWait, func() { s.conn.Close() }).Stop()
	}
	for len(h.sockets) > 0 {
		h.changed.Wait()
	}
}

// A Socket is the server's end of one client's connection.
//
//	client a ── frames ──▶ a's reader: receive, route ──▶ handler
//	                                                         │ io.Emit
//	             one lock: the same bytes to all, at once    ▼
//	                  ┌───────────────┬──────────────────────┐
//	               a.queue         b.queue                c.queue
//	                  │ a's writer    │ b's writer           │ c's writer
//	                  ▼               ▼                      ▼
//	              client a        client b               client c
//
// It ends in one way, whoever begins: end queues the close frame, the reader
// leaves, the writer empties the queue, and then the reader closes.
type Socket struct {
	ID string // unguessable and unique; the client knows itself by the same

	hub      *Hub
	conn     net.Conn                   // read by the reader, written by the writer; any may set its deadlines
	in       *bufio.Reader              // the reader's, on conn through hijacker.Read
	ws       *websocket.Conn            // the reader's, on in; takes frames apart
	handlers map[string][]Handler       // the reader's
	ending   atomic.Pointer[closeError] // set once, under hub.mu: nothing is queued or handled any more

	// Guarded by hub.mu.
	queue   net.Buffers // frames that wait for the writer, shared with other sockets
	spare   net.Buffers // the array of the queue before, to be used again when the writer is done with it
	size    int         // what they count for
	writing bool        // a writer runs
	began   time.Time   // when the writer took its batch
}

// A Handler takes an event's data, nil if the client left it out. The client
// gets the words of its error as an "error" event.
type Handler func(data json.RawMessage) error

// On adds a handler of an event, or of "disconnect", which comes once with the
// reason. The handlers of a socket run one at a time, in the order the client
// sent. Call On in a handler of the connection or the socket, nowhere else.
func (s *Socket) On(event string, handle Handler) {
	s.handlers[event] = append(s.handlers[event], handle)
}

// Emit sends an event to this client alone, and waits for it alone. It fails
// like Hub.Emit.
func (s *Socket) Emit(event string, data any) error {
	f, err := message(event, data)
	if err == nil {
		s.send(f)
	}
	return err
}

// Broadcast sends an event to every socket but this one, like Hub.Emit.
func (s *Socket) Broadcast(event string, data any) error { return s.hub.emit(s, event, data) }

// Disconnect ends the socket with close code 1000 after what is queued for it.
// It does not wait. Call it from any goroutine.
func (s *Socket) Disconnect() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	s.end(&closeError{1000, "server disconnect"})
}

// ServeHTTP takes a handshake, and returns when its socket is gone.
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s := &Socket{ID: rand.Text(), hub: h, handlers: map[string][]Handler{}}
	websocket.Server{Handshake: sameSite, Handler: s.serve}.ServeHTTP(hijacker{w, s}, r)
}

// sameSite refuses the pages of other sites, with 403. Browsers let any page
// dial any server, and leave that to the server (RFC 6455, section 10.2).
func sameSite(c *websocket.Config, r *http.Request) error {
	c.Protocol = nil // by itself x/net would agree to any subprotocol, and refuse two
	page, err := websocket.Origin(c, r)
	if page != nil && !strings.EqualFold(page.Host, r.Host) {
		return errors.New("a page of another site")
	}
	return err
}

// serve is the socket's reader, from the handshake to the end. A handler's
// panic passes through it on its way to net/http, which logs it.
func (s *Socket) serve(ws *websocket.Conn) {
	why := &closeError{1011, "a handler panicked"}
	defer s.close()
	defer func() { s.leave(why) }()
	s.ws = ws
	s.hub.connection(s)
	why = s.read()
}

// add makes a socket one of the group, which begins with the answer to its
// handshake: one system call takes that and connect.
func (h *Hub) add(s *Socket, answer []byte) {
	connect, _ := message("connect", map[string]string{"id": s.ID})
	h.mu.Lock()
	defer h.mu.Unlock()
	h.sockets[s.ID] = s
	s.push(answer)
	s.push(connect)
	if h.closed {
		s.end(&closeError{1001, "server shutting down"})
	}
}

// A closeError ends a connection, for a reason and with a close code of RFC
// 6455, section 7.4. Code 1005 stands for no code, 1006 for no close frame.
type closeError struct {
	code   uint16
	reason string
}

func (e *closeError) Error() string { return e.reason }

// read handles the client's messages until the connection has to end. Only here
// is decided what an error means: a closeError is the end, and so is an error of
// the network, of which hijacker.Read makes one; others are answered.
func (s *Socket) read() (why *closeError) {
	for s.ending.Load() == nil {
		text, err := s.receive()
		if err == nil {
			err = s.route(text)
		}
		if errors.As(err, &why) {
			return why
		}
		if err != nil {
			s.Emit("error", err.Error())
		}
	}
	return s.ending.Load()
}

// route takes a message apart and runs its event's handler.
func (s *Socket) route(text []byte) error {
	var message struct {
		EVENT, DATA json.RawMessage // encoding/json takes any letter case: these get the wrong ones
		Event       string          `json:"event"`
		Data        json.RawMessage `json:"data"`
	}
	err := json.Unmarshal(text, &message)
	event := message.Event
	handlers := s.handlers[event]
	switch {
	case err != nil || event == "":
		return errors.New(`a message should be a JSON object with an "event"`)
	case event == "connect", event == "disconnect", event == "error":
		return fmt.Errorf("event %q is for the server to send", event)
	case handlers == nil:
		return fmt.Errorf("event %.40q is not known here", event)
	}
	for _, handle := range handlers {
		if err := handle(message.Data); err != nil {
			return fmt.Errorf("event %q: %w", event, err)
		}
	}
	return nil
}

// receive puts frames together to the next message (RFC 6455, section 5.4).
// One that is too long is answered as soon as that is known, then skipped.
func (s *Socket) receive() ([]byte, error) {
	var (
		text    []byte
		kind    byte // the first frame's opcode, 0 between messages
		tooLong bool
	)
	for {
		f, err := s.nextFrame()
		if err != nil {
			return nil, err
		}
		if f.opcode >= websocket.CloseFrame { // may come between fragments
			if err := s.control(f); err != nil {
				return nil, err
			}
			continue
		}
		if (f.opcode == websocket.ContinuationFrame) != (kind != 0) {
			return nil, &closeError{1002, "fragments of no message, or of two"}
		}
		if kind == 0 {
			kind = f.opcode
		}
		if !tooLong && f.length > int64(maxMessage-len(text)) {
			tooLong, text = true, nil
			s.Emit("error", fmt.Sprintf("a message may have %d bytes at most", maxMessage))
		}
		if tooLong {
			_, err = io.Copy(io.Discard, f.payload)
		} else {
			text = append(text, make([]byte, f.length)...)
			_, err = io.ReadFull(f.payload, text[len(text)-int(f.length):])
		}
		if err != nil {
			return nil, err
		}
		switch {
		case !f.fin:
		case tooLong:
			kind, tooLong = 0, false
		case kind == websocket.BinaryFrame:
			return nil, errors.New("a message should be text, not binary")
		case !utf8.Valid(text):
			return nil, &closeError{1007, "text that is not UTF-8"}
		default:
			return text, nil
		}
	}
}

// control answers a ping or a close (RFC 6455, section 5.5).
func (s *Socket) control(f frame) error {
	payload := make([]byte, f.length)
	if _, err := io.ReadFull(f.payload, payload); err != nil {
		return err
	}
	var code uint16
	switch {
	case f.opcode == websocket.PingFrame:
		s.send(encode(websocket.PongFrame, payload))
		return nil
	case f.opcode == websocket.PongFrame: // to have heard it is enough
		return nil
	case len(payload) == 0:
		return &closeError{1005, "client disconnect"}
	case len(payload) > 1: // else the code stays 0, and is refused
		code = binary.BigEndian.Uint16(payload)
	}
	switch { // section 7.4; what passes the first case has a code
	case code < 1000, code > 1003 && code < 1007, code > 1014 && code < 3000, code > 4999:
		return &closeError{1002, "a close code that may not be sent"}
	case !utf8.Valid(payload[2:]):
		return &closeError{1007, "a close reason that is not UTF-8"}
	}
	return &closeError{code, "client disconnect"}
}

// A frame is the unit of the wire (RFC 6455, section 5.2).
type frame struct {
	fin     bool // the last of its message
	opcode  byte
	length  int64
	payload io.Reader
}

// nextFrame reads a frame's header, and refuses what x/net/websocket would let
// pass. The payload of the frame before must have been read.
func (s *Socket) nextFrame() (f frame, err error) {
	head, err := s.in.Peek(2)
	if err != nil {
		return f, err
	}
	f.fin, f.opcode, f.length = head[0]&0x80 != 0, head[0]&0x0f, int64(head[1]&0x7f)
	control := f.opcode >= websocket.CloseFrame
	switch {
	case head[1]&0x80 == 0:
		return f, &closeError{1002, "a frame without a mask"}
	case control && (!f.fin || f.length > 125):
		return f, &closeError{1002, "a control frame in fragments, or too long"}
	case head[0]&0x70 != 0, f.opcode > websocket.BinaryFrame && !control, f.opcode > websocket.PongFrame:
		return f, &closeError{1002, "a reserved bit or opcode"}
	}
	if f.length > 125 { // it follows, in 2 bytes or in 8
		n := 4
		if f.length == 127 {
			n = 10
		}
		if head, err = s.in.Peek(n); err != nil {
			return f, err
		}
		f.length = 0
		for _, b := range head[2:] {
			f.length = f.length<<8 | int64(b)
		}
		if f.length < 0 {
			return f, &closeError{1002, "a length with its top bit set"}
		}
	}
	f.payload, err = s.ws.NewFrameReader()
	return f, err
}

// message encodes an event, once for all who get it.
func message(event string, data any) ([]byte, error) {
	text, err := json.Marshal(struct {
		Event string `json:"event"`
		Data  any    `json:"data"`
	}{event, data})
	if err != nil {
		return nil, fmt.Errorf("encoding event %q: %w", event, err)
	}
	return encode(websocket.TextFrame, text), nil
}

// encode makes a frame as servers send it: whole, and without a mask.
func encode(opcode byte, payload []byte) []byte {
	f := append(make([]byte, 0, 10+len(payload)), 0x80|opcode)
	switch n := len(payload); {
	case n < 126:
		f = append(f, byte(n))
	case n < 1<<16:
		f = binary.BigEndian.AppendUint16(append(f, 126), uint16(n))
	default:
		f = binary.BigEndian.AppendUint64(append(f, 127), uint64(n))
	}
	return append(f, payload...)
}

// send queues a frame for this client alone, when there is space. As nobody else
// waits for that, the client is given all the time there is.
func (s *Socket) send(f []byte) {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	for s.size > maxOwn && s.ending.Load() == nil {
		s.hub.changed.Wait()
	}
	s.push(f)
}

// push queues a frame, and starts a writer if there is none. It needs hub.mu.
func (s *Socket) push(f []byte) {
	if s.ending.Load() != nil {
		return
	}
	s.queue = append(s.queue, f)
	s.size += len(f) + frameCost
	if !s.writing {
		s.writing = true
		go s.write()
	}
}

// write is the socket's writer: it hands what waits to one system call, still a
// frame for each message, and ends when nothing waits.
func (s *Socket) write() {
	s.hub.mu.Lock()
	defer s.hub.mu.Unlock()
	var taken net.Buffers
	for len(taken)+len(s.queue) > 0 {
		if len(taken) == 0 {
			taken, s.queue, s.spare = s.queue, s.spare, s.queue[:0]
		}
		if s.size > maxOwn { // somebody may wait: for space, or to limit this batch's time
			s.hub.changed.Broadcast() // they run when the lock is free
		}
		n, size := 0, 0
		for ; n < len(taken) && size < maxBatch; n++ {
			size += len(taken[n]) + frameCost
		}
		batch := taken[:n]
		wait := stalled
		if s.began.IsZero() { // the first batch answers the handshake
			wait = closeWait
		}
		taken, s.size, s.began = taken[n:], s.size-size, time.Now()
		s.conn.SetWriteDeadline(s.began.Add(wait))
		s.hub.mu.Unlock()
		_, err := batch.WriteTo(s.conn)
		s.hub.mu.Lock()
		if err != nil {
			s.end(&closeError{1006, "too slow, or gone"})
			taken, s.queue = nil, nil
			s.conn.Close()
		}
	}
	s.writing = false
	if cap(s.queue)+cap(s.spare) > maxKept {
		s.queue, s.spare = nil, nil
	}
	if s.ending.Load() != nil {
		s.hub.changed.Broadcast()
	}
}

// end begins the end, for the first reason given: it queues the close frame, and
// wakes the reader, which leaves. It needs hub.mu.
func (s *Socket) end(why *closeError) {
	if s.ending.Load() != nil {
		return
	}
	switch why.code {
	case 1006:
	case 1005:
		s.push(encode(websocket.CloseFrame, nil))
	default:
		s.push(encode(websocket.CloseFrame, binary.BigEndian.AppendUint16(nil, why.code)))
	}
	s.ending.Store(why)
	s.conn.SetReadDeadline(time.Now())
	s.hub.changed.Broadcast()
}

// leave tells the application that the socket ends.
func (s *Socket) leave(why *closeError) {
	s.hub.mu.Lock()
	s.end(why)
	s.hub.mu.Unlock()
	reason, _ := json.Marshal(s.ending.Load().reason)
	for _, disconnect := range s.handlers["disconnect"] {
		disconnect(reason) // nobody is left to tell its error to
	}
}

// close returns when the connection can be closed: the client has taken what
// was queued, and closed its side.
func (s *Socket) close() {
	s.conn.SetReadDeadline(time.Time{})
	var drain sync.WaitGroup
	drain.Go(func() { // a client may write before it reads; and with input unread, TCP would throw away what is on its way
		io.Copy(io.Discard, s.conn)
	})
	s.hub.mu.Lock()
	for s.writing {
		s.hub.changed.Wait()
	}
	s.hub.mu.Unlock()
	if c, ok := s.conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite()
	}
	s.conn.SetReadDeadline(time.Now().Add(closeWait))
	drain.Wait()
	s.hub.mu.Lock()
	delete(s.hub.sockets, s.ID)
	delete(s.hub.slow, s)
	s.hub.changed.Broadcast()
	s.hub.mu.Unlock()
}

// A hijacker lets x/net/websocket have the connection, but keeps both ends of
// it: x/net reads and answers through it, and the writer writes past x/net.
type hijacker struct {
	http.ResponseWriter
	*Socket
}

// Hijack is called by x/net before it looks at the handshake.
func (h hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(h.ResponseWriter).Hijack()
	if err != nil {
		return nil, nil, err
	}
	if c, ok := conn.(*net.TCPConn); ok {
		c.SetWriteBuffer(sendBuffer)
	}
	conn.SetWriteDeadline(time.Now().Add(closeWait))
	early, _ := rw.Peek(rw.Reader.Buffered()) // what came right behind the handshake
	rw.Reader.Reset(io.MultiReader(bytes.NewReader(bytes.Clone(early)), h))
	h.conn, h.in = conn, rw.Reader
	return conn, bufio.NewReadWriter(rw.Reader, bufio.NewWriterSize(h, 256)), nil // big enough for a 101
}

// Write is called by x/net with its answer to the handshake: a 101 fits into the
// buffer, and so comes whole; a refusal may come in parts.
func (h hijacker) Write(answer []byte) (int, error) {
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 101")) { // refused
		return h.conn.Write(answer)
	}
	h.hub.add(h.Socket, bytes.Clone(answer))
	return len(answer), nil
}

// Read waits for the client. When it has been silent for a while it is pinged,
// and when it still is after as long again, it is gone.
func (h hijacker) Read(p []byte) (int, error) {
	for range 2 {
		h.conn.SetReadDeadline(time.Now().Add(heartbeat)) // first: an end from now on sets its own
		if why := h.ending.Load(); why != nil {
			return 0, why
		}
		n, err := h.conn.Read(p)
		if err == nil {
			return n, nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, &closeError{1006, "transport close"}
		}
		h.send(encode(websocket.PingFrame, nil))
	}
	return 0, &closeError{1006, "ping timeout"}
}
