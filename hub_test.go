// These tests stand in the order of hub.go's parts, so one file can be read beside the other. After them
// come the tests of main.go, the hub in forty lines and what breaks it, the README, the fuzz tests, the
// benchmarks, and last the helpers. Example, the first test, shows a whole conversation.
//
// A test uses one of two networks:
//
//	addr := start(t, hub)          TCP on this machine: real time, and the kernel's buffers
//	network := startPipes(t, hub)  pipes in memory, in synctest.Test or inVirtualTime: time jumps on
//	                               when everybody waits, so an hour takes no time. A pipe has no buffer: a
//	                               client that does not read is stuck at once.
//
// A client does what it is told, be it legal or not:
//
//	c := dial(t, addr), network.client(t)  returns a client that has got its "connect"
//	c.say(json), c.frame(head, payload)    sends a message; sends a frame, with its first byte as given
//	c.hears(event, data), c.next()         wants this message next; returns the next message
//	c.closes(code, words)                  reads on to the close frame, checks it, and answers it
//	c.drain(), c.drainSlowly(bytes, every) reads on until the connection ends
//
// One test is run like this; the README's "Break it" gives lines of hub.go to change, and the tests that then fail:
//
//	go test -race -run '^TestAllSeeOneOrder$'
package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/websocket"
)

// Example is a whole conversation, as it crosses the wire.
func Example() {
	hub := newChat()
	server := httptest.NewServer(hub)
	addr := server.Listener.Addr().String()
	a := &client{conn: must(net.Dial("tcp", addr))}
	a.in = bufio.NewReader(a.conn)
	send := func(message string) {
		fmt.Println("a sends", message)
		a.say(message)
	}
	get := func() {
		_, payload := a.read()
		fmt.Println("a gets ", regexp.MustCompile("[A-Z2-7]{26}").ReplaceAllString(payload, "the id"))
	}

	for line := range strings.SplitSeq(strings.TrimSpace(handshake), "\r\n") {
		fmt.Println("a sends", line)
	}
	a.write([]byte(handshake))
	answer := must(http.ReadResponse(a.in, nil))
	fmt.Println("a gets ", answer.Proto, answer.Status)
	fmt.Println("a gets  Sec-WebSocket-Accept:", answer.Header.Get("Sec-WebSocket-Accept"))
	get()
	send(`{"event":"chat","data":{"data":"hello"}}`)
	get()
	b := dial(new(testing.T), addr)
	send(`{"event":"broadcast","data":{"data":"hello, others"}}`)
	fmt.Println("b gets ", b.next())
	send("Hello Server!")
	get()
	fmt.Println("a sends close 1000")
	a.frame(0x88, "\x03\xe8")
	head, payload := a.read()
	fmt.Printf("a gets  close %d, in the bytes %x %02x %x\n", binary.BigEndian.Uint16([]byte(payload)), head, len(payload), payload)

	a.conn.Close()
	b.conn.Close()
	hub.Close()
	server.Close()
	// Output:
	// a sends GET / HTTP/1.1
	// a sends Host: x
	// a sends Upgrade: websocket
	// a sends Connection: Upgrade
	// a sends Sec-WebSocket-Version: 13
	// a sends Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==
	// a gets  HTTP/1.1 101 Switching Protocols
	// a gets  Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=
	// a gets  {"event":"connect","data":{"id":"the id"}}
	// a sends {"event":"chat","data":{"data":"hello"}}
	// a gets  {"event":"grpchat","data":"hello"}
	// a sends {"event":"broadcast","data":{"data":"hello, others"}}
	// b gets  {"event":"grpchat","data":"hello, others"}
	// a sends Hello Server!
	// a gets  {"event":"error","data":"a message must be a JSON object with an \"event\""}
	// a sends close 1000
	// a gets  close 1000, in the bytes 88 02 03e8
}

// Part 1: the tutorial's words.

func TestChatReachesEveryoneAndBroadcastEveryoneElse(t *testing.T) {
	speaksTheChat(t, start(t, newChat()))
}

// speaksTheChat tests a server: with three clients, as in the tutorial.
func speaksTheChat(t *testing.T, addr string) {
	a, b, c := dial(t, addr), dial(t, addr), dial(t, addr)
	if a.id == b.id || len(a.id) < 20 {
		t.Errorf("ids %q and %q", a.id, b.id)
	}
	a.say(`{"event":"broadcast","data":{"data":"to the others"}}`)
	a.say(`{"event":"chat","data":{"data":"to all"}}`)
	for _, other := range []*client{b, c} {
		other.hears("grpchat", `"to the others"`)
	}
	for _, each := range []*client{a, b, c} {
		each.hears("grpchat", `"to all"`)
	}
}

func TestAllSeeOneOrder(t *testing.T) {
	addr := start(t, newChat())
	const each = 300
	var clients [10]*client
	for i := range clients {
		clients[i] = dial(t, addr)
	}
	var heard [len(clients)][]string
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for range len(clients) * each {
				heard[i] = append(heard[i], c.next())
			}
		})
		wg.Go(func() {
			for n := range each {
				c.say(fmt.Sprintf(`{"event":"chat","data":{"data":"%d-%03d"}}`, i, n))
			}
		})
	}
	wg.Wait()
	for i := range clients {
		if !slices.Equal(heard[i], heard[0]) {
			t.Errorf("client %d saw another order than client 0", i)
		}
		others := func(message string) bool { return !strings.Contains(message, fmt.Sprintf(`"%d-`, i)) }
		if said := slices.DeleteFunc(slices.Clone(heard[0]), others); len(said) != each || !slices.IsSorted(said) {
			t.Errorf("client %d was heard so: %v", i, said)
		}
	}
}

func TestAllHandlersRunInOrderThoughOneFails(t *testing.T) {
	hub := NewHub()
	func() {
		defer func() { recover() }()
		hub.On("disconnect", func(*Socket) {})
		t.Error("a hub has no event but connection")
	}()
	hub.On("connection", func(*Socket) { t.Error("the second On replaces this") })
	hub.On("connection", func(socket *Socket) {
		socket.On("n", func(json.RawMessage) error { return errors.New("one") })
		socket.On("n", func(json.RawMessage) error { return socket.Emit("n", "two") })
		socket.On("n", func(data json.RawMessage) error { return fmt.Errorf("three %s", data) })
		socket.On("error", func(json.RawMessage) error { t.Error("a client must not send error"); return nil })
	})
	c := dial(t, start(t, hub))
	c.say(`{"event":"n","data":{"x": 3}}`)
	c.hears("n", `"two"`)
	c.hears("error", `"event \"n\": one\nevent \"n\": three {\"x\": 3}"`)
	c.say(`{"event":"error"}`)
	c.hears("error", `"event \"error\" is reserved for the server"`)
}

func TestEmitFailsForWhatOnlyTheHubMaySendAndForWhatJSONCannotSay(t *testing.T) {
	hub := NewHub()
	hub.On("connection", func(socket *Socket) {
		for _, event := range []string{"connect", "connection", "disconnect"} {
			for _, emit := range []func(string, any) error{hub.Emit, socket.Emit, socket.Broadcast} {
				if err := emit(event, nil); err == nil || !strings.Contains(err.Error(), event) {
					t.Errorf("%s: error %v", event, err)
				}
				if err := emit("n", make(chan int)); err == nil {
					t.Error("a channel was sent")
				}
			}
		}
		socket.Emit("error", "the server may say so")
	})
	addr := start(t, hub)
	dial(t, addr).hears("error", `"the server may say so"`) // and nothing before it
}

// Part 2: the handshake, and the life of a socket.

func TestHandshakeIsTakenOnAnyPathAndOnlyAHandshake(t *testing.T) {
	addr := start(t, newChat())
	const upgrade = "Connection: Upgrade\r\n"
	for _, test := range []struct {
		request string
		status  int
	}{
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\n" + upgrade, 101},
		{"GET /any/path?q HTTP/1.1\r\nUpgrade: WebSocket\r\n" + upgrade, 101},
		{"GET //a/../b/ HTTP/1.1\r\nUpgrade: websocket\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket, h2c\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: h2c,websocket\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: h2c\r\nUpgrade: websocket\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: close\r\nConnection: Upgrade\r\n", 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: keep-alive, UPGRADE\r\n", 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: a\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: a, b\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\n", 400},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nConnection: notupgrade\r\n", 400},
		{"GET / HTTP/1.1\r\nUpgrade: notwebsocket\r\n" + upgrade, 200},
		{"GET / HTTP/1.1\r\nUpgrade: h2c\r\n" + upgrade, 200},
		{"GET /none HTTP/1.1\r\nUpgrade: h2c\r\n" + upgrade, 404},
		{"HEAD / HTTP/1.1\r\nUpgrade: websocket\r\n" + upgrade, 200},
		{"POST / HTTP/1.1\r\nUpgrade: websocket\r\n" + upgrade, 405},
		{"DELETE / HTTP/1.1\r\n", 405},
		{"TRACE / HTTP/1.1\r\n", 405},
		{"OPTIONS /script.js HTTP/1.1\r\n", 405},
		{"OPTIONS * HTTP/1.1\r\n", 405},
		{"CONNECT example.com:443 HTTP/1.1\r\n", 405},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://CHAT.example:3000\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://chat.example\r\n" + upgrade, 403},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://chat.example:3001\r\n" + upgrade, 403},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://evil.example:3000\r\n" + upgrade, 403},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: null\r\n" + upgrade, 403},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nOrigin: http://%zz\r\n" + upgrade, 403},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nCookie: " + long(8<<10) + "\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nCookie: " + long(17<<10) + "\r\n" + upgrade, 431},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nSec-WebSocket-Protocol: x" + strings.Repeat(", x", 300_000) + "\r\n" + upgrade, 431},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\n" + strings.Repeat("X: y\r\n", 150_000) + upgrade, 431},
	} {
		conn := must(net.Dial("tcp", addr))
		go fmt.Fprint(conn, test.request, "Host: chat.example:3000\r\n",
			"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil || response.StatusCode != test.status {
			t.Errorf("%.99q: %v, %v; want %d", test.request, response, err, test.status)
		} else if protocol := response.Header["Sec-Websocket-Protocol"]; protocol != nil {
			t.Errorf("%.99q: agreed to protocol %q", test.request, protocol)
		} else if allow := response.Header.Get("Allow"); test.status == 405 && allow != "GET, HEAD" {
			t.Errorf("%.99q: allows %q", test.request, allow)
		}
		conn.Close()
	}
}

func TestTheLogNamesARefusedOriginAndItsHost(t *testing.T) {
	logged := make(logger, 10)
	log.SetOutput(logged)
	defer log.SetOutput(io.Discard)
	addr := start(t, newChat())
	for _, origin := range []string{"https://chat.example", "inner:3000", "null"} {
		conn := must(net.Dial("tcp", addr))
		defer conn.Close()
		io.WriteString(conn, strings.Replace(handshake, "Host: x\r\n", "Host: inner:3000\r\nOrigin: "+origin+"\r\n", 1))
		want := fmt.Sprintf(`refused a page: %q is not an origin of the host "inner:3000", such as "http://inner:3000"`, origin)
		if line := <-logged; !strings.Contains(line, want) {
			t.Errorf("logged %q, want %s", line, want)
		}
	}
}

func TestServeHTTPLeavesTheRequestAsItCameAndAnswers500IfItCannotTakeTheConnection(t *testing.T) {
	hub := NewHub()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		came := fmt.Sprint(r)
		if hub.ServeHTTP(w, r); fmt.Sprint(r) != came {
			t.Errorf("%s came, and %v is left", came, r)
		}
	}))
	defer server.Close()
	defer hub.Close() // waits until ServeHTTP has ended
	dial(t, server.Listener.Addr().String()).conn.Close()
	answer := httptest.NewRecorder() // has no connection
	if hub.ServeHTTP(answer, httptest.NewRequest("GET", "/", nil)); answer.Code != 500 {
		t.Errorf("answered %d %s", answer.Code, answer.Body)
	}
}

func TestDribbledHeadersAndStalledHandshakesAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		network := startPipes(t, newChat())
		began := time.Now()
		conn := network.dial()
		for err := error(nil); err == nil; time.Sleep(time.Second) {
			_, err = io.WriteString(conn, "X")
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("dribbled headers: cut after %v", took)
		}
		for _, sent := range []string{handshake[:len(handshake)-2], handshake} { // the second does not read the answer
			conn = network.dial()
			io.WriteString(conn, sent)
			time.Sleep(10 * time.Second)
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("a handshake stalled after %d bytes: not cut", len(sent))
			}
		}
	})
}

func TestAClientThatIsConnectedMissesNothing(t *testing.T) {
	hub := NewHub()
	addr := start(t, hub)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 100 {
				c := dial(t, addr) // returns as soon as "connect" has come
				event := fmt.Sprint(i, "-", n)
				hub.Emit(event, nil)
				for !strings.Contains(c.next(), event) {
				}
				c.conn.Close()
			}
		})
	}
	wg.Wait()
}

func TestAFrameBehindTheHandshakeIsNotLost(t *testing.T) {
	addr := start(t, newChat())
	c := shakeHands(t, must(net.Dial("tcp", addr)), handshake+masked(0x81, `{"event":"chat","data":{"data":"early"}}`))
	c.hears("grpchat", `"early"`)
}

func TestAnIdleSocketTakesLittleMemory(t *testing.T) {
	addr := start(t, NewHub())
	var headers strings.Builder
	for n := 0; headers.Len() < 14<<10; n++ {
		fmt.Fprintf(&headers, "X%d: y\r\n", n)
	}
	for hello, limit := range map[string]int{
		handshake: 16 << 10,
		strings.TrimSuffix(handshake, "\r\n") + headers.String() + "\r\n": 100 << 10,
		handshake + "\x81\xfe\xff\xffmask":                                16 << 10, // 64 KiB announced, and none sent
	} {
		before := memory()
		for range 200 {
			shakeHands(t, must(net.Dial("tcp", addr)), hello)
		}
		if each := (memory() - before) / 200; each > limit {
			t.Errorf("%d bytes each, after %d bytes of handshake", each, len(hello))
		}
	}
}

func TestNothingIsLeftBehind(t *testing.T) {
	hub := hubOf(on{"exit": func(*Socket, string) error { runtime.Goexit(); return nil }})
	addr := start(t, hub)
	dial(t, addr).conn.Close()
	eventually(t, func() bool { return sockets(hub) == 0 })
	before := runtime.NumGoroutine()
	for range 5 {
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				c := dial(t, addr)
				switch i % 5 {
				case 0:
					c.frame(0x88, "\x03\xe9")
					c.closes(1001)
				case 1:
					c.conn.(*net.TCPConn).SetLinger(0)
				case 2:
					c.write([]byte("\x81\xff")) // and no more
				case 3:
					c.say(`{"event":"exit"}`)
					c.drain()
				}
				c.conn.Close()
			})
		}
		wg.Wait()
	}
	eventually(t, func() bool { return sockets(hub) == 0 && runtime.NumGoroutine() <= before+2 })
}

// Part 3: a message goes out.

func TestServerFramesHaveTheShortestLength(t *testing.T) {
	hub := NewHub()
	c := dial(t, start(t, hub))
	around := len(`{"event":"n","data":""}`)
	for _, size := range []int{around, 125, 126, 65_535, 65_536} {
		hub.Emit("n", long(size-around))
		if got := c.next(); len(got) != size { // client.read checks the length's form
			t.Errorf("%d bytes came, want %d", len(got), size)
		}
	}
}

func TestTextGoesOutAsItCame(t *testing.T) {
	c := dial(t, start(t, newChat()))
	c.say(`{"event":"chat","data":{"data":"<b> & \"é\" \\ \n 😀 \u007f"}}`)
	c.hears("grpchat", `"<b> & \"é\" \\ \n 😀 `+"\x7f"+`"`)
}

func TestAnEmptyFrameCountsAndAnEmptyQueueKeepsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		c := startPipes(t, hub).client(t)
		s := hub.socket(c.id)
		time.AfterFunc(time.Second/10, c.drain)
		n := 0
		for began := time.Now(); time.Since(began) == 0; n++ { // until the queue is full
			hub.Emit("n", nil)
		}
		for range 5 {
			hub.Emit("large", long(maxQueue/2))
		}
		synctest.Wait()
		s.mu.Lock()
		defer s.mu.Unlock()
		if n > maxQueue/64 || cap(s.queue) > maxIdleQueue || s.queuedBytes != 0 { // each takes 24 bytes for its place alone
			t.Errorf("%d frames filled it; now it has room for %d, and %d bytes are counted", n, cap(s.queue), s.queuedBytes)
		}
	})
}

// In each row, a client does harm, and reads nothing. Then somebody says 4 MB to all. He waits once.
func TestStuckClientsAreDroppedAndOthersWaitOnce(t *testing.T) {
	t.Parallel()
	const messages = 2 * maxQueue / 20_000
	say := func(emit func(string, any) error) {
		for range messages {
			emit("n", long(20_000))
		}
	}
	type stuck struct {
		network pipes
		hub     *Hub
		*client
	}
	floods := func(frame string) func(stuck) {
		return func(c stuck) { go c.write([]byte(strings.Repeat(frame, 20_000))) }
	}
	whispered := func(to string) string { return `{"event":"whisper","data":"` + to + `"}` }
	for _, test := range []struct {
		name  string
		does  func(stuck)
		limit time.Duration
	}{
		{"it stops reading", func(stuck) {}, 2 * time.Second},
		{"so do fifty", func(c stuck) {
			for range 49 {
				c.network.client(c.t)
			}
		}, 2 * time.Second},
		{"it sends pings", floods(masked(0x89, "")), 2 * time.Second},
		{"it sends bad messages", floods(masked(0x81, "garbage")), 2 * time.Second},
		{"one event fills its queue", func(c stuck) { c.hub.Emit("large", long(maxQueue)) }, 2 * time.Second},
		{"its own handler whispers to it", func(c stuck) { c.say(whispered(c.id)) }, 2 * time.Second},
		{"another's handler whispers to it", func(c stuck) { c.network.client(c.t).say(whispered(c.id)) }, 2 * time.Second},
		{"its socket ends", func(c stuck) { time.AfterFunc(time.Second/10, c.hub.socket(c.id).Disconnect) }, time.Second / 10},
		{"it leaves, but another begins a handshake, and reads no answer", func(c stuck) {
			io.WriteString(c.network.dial(), handshake)
			c.conn.Close()
		}, 0},
	} {
		inVirtualTime(t, test.name, func(t *testing.T) {
			hub := hubOf(on{"whisper": func(s *Socket, id string) error {
				to := s.hub.socket(strings.Trim(id, `"`))
				within(t, 2*time.Second, "to whisper 4 MB", func() {
					say(func(event string, data any) error {
						if n := to.queued(); n > maxQueue+100_000 {
							t.Errorf("%d bytes are queued", n)
						}
						return to.Emit(event, data)
					})
				})
				return nil
			}})
			network := startPipes(t, hub)
			test.does(stuck{network, hub, network.client(t)})
			reader := network.client(t)
			var reading sync.WaitGroup
			reading.Go(func() {
				for heard := 0; heard < messages; {
					if strings.HasPrefix(reader.next(), `{"event":"n"`) {
						heard++
					}
				}
				go reader.drain()
			})
			synctest.Wait() // until the harm is done
			within(t, test.limit, "to say 4 MB", func() { say(hub.Emit) })
			reading.Wait()
			time.Sleep(batchWait + time.Second)
			if n := sockets(hub); n != 1 {
				t.Errorf("%d sockets are left, want the reader's", n)
			}
		})
	}
}

// In each row, clients flood what is answered to them alone. Somebody else notices nothing.
func TestAFloodOfPingsOrBadMessagesHarmsItsSenderAlone(t *testing.T) {
	t.Parallel()
	ping, bad, fails := masked(0x89, long(125)), masked(0x81, "{"), masked(0x81, `{"event":"fails"}`)
	failure := errors.New(long(60_000))
	for _, test := range []struct {
		name    string
		clients int
		frame   string
		reads   int // bytes in 100 ms
		before  time.Duration
	}{
		{"one pings", 1, ping, 45_000, time.Second},
		{"five send bad messages", 5, bad, 10_000, time.Second},
		{"one gets long errors", 1, fails, 10_000, time.Second},
		{"forty ping, and read nothing", 40, ping, 0, time.Second},
		{"two read nothing, and dial again when dropped", 2, ping, 0, 25 * time.Second},
	} {
		inVirtualTime(t, test.name, func(t *testing.T) {
			hub := hubOf(on{"fails": func(*Socket, string) error { return failure }})
			network := startPipes(t, hub)
			talker := network.client(t)
			frames := []byte(strings.Repeat(test.frame, 50))
			var stopping atomic.Bool
			var dials atomic.Int32
			var flooding sync.WaitGroup
			for range test.clients {
				flooding.Go(func() {
					for !stopping.Load() {
						c := network.client(t)
						dials.Add(1)
						if test.reads > 0 {
							go c.drainSlowly(test.reads, 100*time.Millisecond)
						}
						for err := error(nil); err == nil && !stopping.Load(); _, err = c.conn.Write(frames) {
						}
					}
				})
			}
			time.Sleep(test.before)
			for range 5 {
				time.Sleep(300 * time.Millisecond)
				within(t, 50*time.Millisecond, "to be heard", func() {
					talker.say(`{"event":"chat","data":{"data":"hello"}}`)
					talker.hears("grpchat", `"hello"`)
				})
			}
			if again := int(dials.Load()) > test.clients; again != (test.before > batchWait) {
				t.Errorf("%d clients dialled %d times", test.clients, dials.Load())
			}
			stopping.Store(true)
			go hub.Close()
			within(t, 50*time.Millisecond, "the close frame", func() {
				if code, _ := talker.closeFrame(); code != 1001 {
					t.Errorf("got close code %d", code)
				}
			})
			flooding.Wait()
		})
	}
}

func TestWhileManySendersWaitNoQueueGrowsAndClientsComeAndGoAtOnce(t *testing.T) {
	t.Parallel()
	hub := NewHub()
	addr := start(t, hub)
	var slow *client
	for range 5 {
		slow = dial(t, addr)
		slow.conn.(*net.TCPConn).SetReadBuffer(16 << 10)
		go slow.drainSlowly(50_000, 100*time.Millisecond)
	}
	var said atomic.Int32
	s := hub.socket(slow.id)
	for range 150 {
		go func() { hub.Emit("n", long(60_000)); said.Add(1) }()
		go func() { s.Emit("n", long(60_000)); said.Add(1) }()
	}
	eventually(t, func() bool { return s.queued() > maxQueue })
	var took []time.Duration
	for range 9 {
		began := time.Now()
		c := dial(t, addr)
		c.frame(0x88, "\x03\xe8")
		c.closes(1000)
		took = append(took, time.Since(began))
		if n := s.queued(); n > maxQueue+2*60_100 || said.Load() == 300 {
			t.Errorf("%d bytes are queued; %d messages have been said", n, said.Load())
		}
	}
	if slices.Sort(took); took[4] > 200*time.Millisecond {
		t.Errorf("to connect and close took %v", took)
	}
	c := dial(t, addr)
	go hub.Close()
	within(t, time.Second, "the close frame", func() { c.closes(1001, "shutting down") })
}

func TestASlowReaderIsDroppedAndAQuickOrFarOneKept(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		rate int // bytes a second
		far  bool
		kept bool
	}{
		{50_000, false, false}, {200_000, false, true}, {1_000_000, false, true}, {4_000_000, false, true},
		{1_000_000, true, true}, {3_000_000, true, true},
	} {
		inVirtualTime(t, fmt.Sprintf("%d far=%v", test.rate, test.far), func(t *testing.T) {
			hub := NewHub()
			network := startPipes(t, hub)
			ours, theirs := net.Pipe()
			if test.far {
				theirs = &farLine{Conn: theirs, rate: test.rate, began: time.Now()}
			}
			network <- theirs
			c := shakeHands(t, ours, handshake)
			if test.far {
				go c.drain()
			} else {
				go c.drainSlowly(test.rate/10, 100*time.Millisecond)
			}
			for range (2*maxQueue + farBuffer) / 20_000 {
				hub.Emit("n", long(20_000))
			}
			synctest.Wait() // until its reader has noticed
			if kept := hub.socket(c.id) != nil; kept != test.kept {
				t.Errorf("kept: %v", kept)
			}
		})
	}
}

// A farLine is a server's end of a line that carries a number of bytes a second. Once it carries nothing for a
// second, as when TCP has to send lost bytes again. Like Linux, it has a large buffer, and a Write that waits goes on
// only when a third of the buffer is free.
type farLine struct {
	net.Conn
	rate     int
	began    time.Time
	buffered int           // after the line has carried bytes for so long:
	carried  time.Duration // since it began
	deadline time.Time
}

const farBuffer = 4 << 20

func (l *farLine) SetWriteDeadline(deadline time.Time) error { l.deadline = deadline; return nil }

func (l *farLine) Write(p []byte) (written int, err error) {
	for {
		carried := time.Since(l.began)
		carried -= min(max(0, carried-300*time.Millisecond), time.Second)
		sent := (carried - l.carried).Seconds() * float64(l.rate)
		l.buffered, l.carried = max(0, l.buffered-int(min(sent, farBuffer))), carried
		n, err := l.Conn.Write(p[written:min(len(p), written+farBuffer-l.buffered)])
		l.buffered += n
		written += n
		if err != nil || written == len(p) {
			return written, err
		}
		woken := time.Duration(l.buffered-farBuffer*2/3) * time.Second / time.Duration(l.rate)
		time.Sleep(min(woken, time.Until(l.deadline)))
		if !time.Now().Before(l.deadline) {
			return written, os.ErrDeadlineExceeded
		}
	}
}

func TestABusyReaderIsPingedAnsweredAndKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		busy := startPipes(t, hub).client(t)
		go flood(hub, busy)
		began, pinged := time.Now(), false
		for answered := false; !answered; time.Sleep(120 * time.Millisecond) { // 500 KB a second
			switch head, payload := busy.read(); head {
			case 0x81:
			case 0x89:
				pinged = true
				busy.frame(0x8a, payload)
				time.AfterFunc(10*time.Second, func() { began = time.Now(); busy.frame(0x89, "") })
			case 0x8a:
				answered = true
			default:
				t.Fatalf("after %v: %#x %s", time.Since(began), head, payload)
			}
		}
		if took := time.Since(began); !pinged || took > 8*time.Second {
			t.Errorf("pinged: %v; the pong came after %v", pinged, took)
		}
	})
}

func TestATalkerWhoReadsSlowlyIsHeardSoonInAFlood(t *testing.T) {
	t.Parallel()
	hub := newChat()
	addr := start(t, hub)
	talker, near := dial(t, addr), dial(t, addr)
	talker.conn.(*net.TCPConn).SetReadBuffer(16 << 10)
	go talker.drainSlowly(100_000, 100*time.Millisecond)
	go flood(hub, talker)
	var took []time.Duration
	for range 5 {
		near.hears("n", `"`+long(60_000)+`"`)
		began := time.Now()
		talker.write([]byte(masked(0x89, "") + masked(0x81, `{"event":"chat","data":{"data":"hello"}}`)))
		for near.next() != `{"event":"grpchat","data":"hello"}` {
		}
		took = append(took, time.Since(began))
	}
	if slices.Sort(took); took[2] > time.Second {
		t.Errorf("heard after %v", took)
	}
}

func TestAPausedClientIsKeptFor20sIfNobodyWaitsForIt(t *testing.T) {
	for pause, kept := range map[time.Duration]bool{18 * time.Second: true, 22 * time.Second: false} {
		synctest.Test(t, func(t *testing.T) {
			hub := NewHub()
			c := startPipes(t, hub).client(t)
			for range 15 {
				hub.Emit("n", long(100_000)) // less than the queue may have
			}
			time.Sleep(pause)
			for range 15 {
				if head, payload := c.read(); (head == 0x81) != kept {
					t.Fatalf("after %v: %#x %.99q", pause, head, payload)
				}
			}
		})
	}
}

func TestAClientThatStoppedReadingTakesLittleMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		network := startPipes(t, hub)
		for range 200 {
			network.client(t)
		}
		before := memory()
		for range 1800 {
			hub.Emit("n", long(1000))
		}
		synctest.Wait()
		if each := (memory() - before) / 200; each > 300_000 { // a batch, in a buffer of up to twice its size, and places in the queue
			t.Errorf("%d bytes each", each)
		}
	})
}

// Part 4: the end of a socket.

func TestDisconnectHandlerRunsOnceWithTheReason(t *testing.T) {
	const kick = `{"event":"kick"}`
	cut := func(frame string) func(*client) {
		return func(c *client) {
			c.write([]byte(frame[:len(frame)-1]))
			c.conn.(*net.TCPConn).CloseWrite()
		}
	}
	for _, test := range []struct {
		name   string
		leave  func(*client)
		reason string
	}{
		{"close frame", func(c *client) { c.frame(0x88, "\x03\xe8") }, `"client disconnect"`},
		{"end of file", func(c *client) { c.conn.Close() }, `"connection lost"`},
		{"reset", func(c *client) { c.conn.(*net.TCPConn).SetLinger(0); c.conn.Close() }, `"connection lost"`},
		{"half a close frame", cut(masked(0x88, "\x03\xe8 ")), `"connection lost"`},
		{"half a message, whole JSON", cut(masked(0x81, kick+" ")), `"connection lost"`},
		{"disconnected by the server", func(c *client) { c.say(kick); c.closes(1000, "server disconnect") }, `"server disconnect"`},
	} {
		reasons := make(chan string, 2)
		hub := hubOf(on{
			"kick":       func(s *Socket, _ string) error { s.Disconnect(); return nil },
			"disconnect": func(_ *Socket, reason string) error { reasons <- reason; return nil },
		})
		c := dial(t, start(t, hub))
		test.leave(c)
		got := <-reasons
		c.conn.Close()
		hub.Close()
		if got != test.reason || len(reasons) > 0 {
			t.Errorf("%s: reason %s, want %s, and %d more", test.name, got, test.reason, len(reasons))
		}
	}
}

func TestLastWordsAreHandledThoughTheClientIsGoneAtOnce(t *testing.T) {
	said, reasons := 0, make(chan string, 1)
	hub := hubOf(on{
		"n": func(s *Socket, _ string) error { said++; return s.hub.Emit("n", nil) },
		"disconnect": func(_ *Socket, reason string) error {
			got := fmt.Sprint(said, reason)
			said = 0
			reasons <- got
			return nil
		},
	})
	addr := start(t, hub)
	for n := range 100 {
		c := dial(t, addr)
		c.write([]byte(strings.Repeat(masked(0x81, `{"event":"n"}`), 300) + masked(0x88, "\x03\xe9")))
		if n%2 == 0 {
			c.conn.Close()
		} else {
			c.conn.(*net.TCPConn).CloseWrite() // and read the answers
			for range 300 {
				c.hears("n", "null")
			}
			c.closes(1001)
		}
		if got := <-reasons; got != `300"client disconnect"` {
			t.Error("messages handled, and the reason:", got)
		}
	}
}

func TestWhatIsQueuedAndTheCloseFrameArriveThoughMoreInputIsOnItsWay(t *testing.T) {
	t.Parallel()
	hub := NewHub()
	hub.On("connection", func(socket *Socket) {
		for n := range 150 {
			socket.Emit("n", fmt.Sprintf("%01000d", n))
		}
		socket.On("leave", func(json.RawMessage) error { socket.Disconnect(); return socket.Emit("n", "too late") })
		socket.On("never", func(json.RawMessage) error { t.Error("handled after Disconnect"); return nil })
	})
	addr := start(t, hub)
	never := strings.Repeat(masked(0x81, `{"event":"never"}`), 5000)
	for _, late := range []bool{false, true} {
		leaver, offender := dial(t, addr), dial(t, addr)
		for _, c := range []*client{leaver, offender} {
			c.conn.(*net.TCPConn).SetReadBuffer(16 << 10) // takes less than is on its way
		}
		leaver.write([]byte(masked(0x81, `{"event":"leave"}`) + never))
		offender.write([]byte(masked(0x83, "") + never))
		if late {
			eventually(t, func() bool { return sockets(hub) == 0 }) // before the clients have read it all
		}
		for n := range 150 {
			for _, c := range []*client{leaver, offender} {
				if !late {
					c.write(make([]byte, 100)) // resets the connection if the server has closed it
				}
				c.hears("n", fmt.Sprintf(`"%01000d"`, n))
			}
		}
		leaver.closes(1000, "server disconnect")
		offender.closes(1002, "reserved")
	}
}

func TestAClientMayWriteBeforeItReadsWhyItsSocketEnds(t *testing.T) {
	for reason, end := range map[string]func(*Socket, *client){
		"disconnect": func(s *Socket, _ *client) { s.Disconnect() },
		"reserved":   func(_ *Socket, c *client) { c.frame(0x83, "") },
		"server disconnect": func(s *Socket, c *client) {
			c.read() // a ping, which it does not answer
			time.Sleep(pingPeriod - time.Second)
			s.Disconnect()
			time.Sleep(2 * time.Second) // until it counts as lost
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			hub := NewHub()
			c := startPipes(t, hub).client(t)
			end(hub.socket(c.id), c)
			c.write([]byte(strings.Repeat(masked(0x81, "more"), 100_000))) // a pipe has no buffer: the close frame cannot be sent meanwhile
			if _, got := c.closeFrame(); !strings.Contains(got, reason) {
				t.Errorf("got %s, want %s", got, reason)
			}
		})
	}
}

func TestASocketThatEndsHasCloseWaitForItsQueue(t *testing.T) {
	for pause, eachByte := range map[time.Duration]time.Duration{0: time.Microsecond, 2 * time.Second: 0} {
		synctest.Test(t, func(t *testing.T) {
			hub := NewHub()
			c := startPipes(t, hub).client(t)
			time.AfterFunc(400*time.Millisecond, hub.socket(c.id).Disconnect)
			for range 45 {
				hub.Emit("n", long(60_000)) // the last ones wait: so the batch has 1.2 s, until the socket ends
			}
			time.Sleep(pause)
			var got bytes.Buffer
			chunk := make([]byte, 64<<10)
			for n, err := c.in.Read(chunk); err == nil; n, err = c.in.Read(chunk) {
				got.Write(chunk[:n])
				time.Sleep(time.Duration(n) * eachByte)
			}
			if got.Len() < maxQueue || !strings.HasSuffix(got.String(), "\x03\xe8server disconnect") {
				t.Errorf("pause of %v: got %d bytes, without the close frame", pause, got.Len())
			}
		})
	}
}

func TestAStuckClientIsGoneIn5sAndOneThatIsTooSlowLearnsOfItAtOnce(t *testing.T) {
	t.Parallel()
	var all sync.WaitGroup
	for name, end := range map[string]func(*Socket, *client){
		"as too slow":             func(s *Socket, c *client) { flood(s.hub, c) },
		"by its close frame":      func(_ *Socket, c *client) { c.frame(0x88, "\x03\xe8") },
		"by Disconnect":           func(s *Socket, _ *client) { s.Disconnect() },
		"by the server's stop":    func(s *Socket, _ *client) { go s.hub.Close() },
		"by a breach":             func(_ *Socket, c *client) { c.frame(0x83, "") },
		"by the end of its input": func(_ *Socket, c *client) { c.conn.(*net.TCPConn).CloseWrite() },
	} {
		all.Go(func() {
			ended := make(chan bool, 1)
			hub := hubOf(on{"disconnect": func(*Socket, string) error { ended <- true; return nil }})
			c := dial(t, start(t, hub))
			s := hub.socket(c.id)
			c.conn.(*net.TCPConn).SetReadBuffer(16 << 10)
			s.conn.(*net.TCPConn).SetWriteBuffer(16 << 10)
			for range 20 { // several batches, and more than the kernel takes
				hub.Emit("n", long(60_000))
			}
			within(t, 5*time.Second, name+": the end", func() {
				end(s, c)
				<-ended
				hub.Close() // waits until it has left
			})
			n, err := io.Copy(io.Discard, c.in)
			if name == "as too slow" && !errors.Is(err, syscall.ECONNRESET) { // the kernel keeps nothing for it
				t.Errorf("%s: it read %d bytes, then %v", name, n, err)
			}
		})
	}
	all.Wait()
}

func TestTheServerEndsTCPTLSOrAUnixSocketAtOnceAfterTheClientsCloseFrame(t *testing.T) {
	hub := NewHub()
	hub.On("connection", func(socket *Socket) { socket.Disconnect() })
	addr := start(t, hub)
	secure, local := httptest.NewUnstartedServer(hub), httptest.NewUnstartedServer(hub)
	secure.StartTLS()
	defer secure.Close()
	path := filepath.Join(t.TempDir(), "socket")
	local.Listener.Close()
	local.Listener = must(net.Listen("unix", path))
	local.Start()
	defer local.Close()
	trust := secure.Client().Transport.(*http.Transport).TLSClientConfig
	for _, conn := range []net.Conn{must(net.Dial("tcp", addr)), must(tls.Dial("tcp", secure.Listener.Addr().String(), trust)), must(net.Dial("unix", path))} {
		c := shakeHands(t, conn, handshake)
		c.closeFrame()
		conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := c.in.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) { // Firefox calls such a close unclean
			t.Errorf("%T: before the client's close frame: %v", conn, err)
		}
		c.frame(0x88, "\x03\xe8")
		within(t, closeWait-time.Second, fmt.Sprintf("over %T, the end", conn), func() {
			if head, payload := c.read(); head != 0 || payload != io.EOF.Error() {
				t.Errorf("after the client's close frame: %#x %q", head, payload)
			}
		})
	}
}

func TestTheServerClosesTCPAfterTheClientOrAfterCloseWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := startPipes(t, NewHub()).client(t)
		began := time.Now()
		c.frame(0x88, "\x03\xe8")
		c.closeFrame()
		if head, _ := c.read(); head != 0 || time.Since(began) != closeWait {
			t.Errorf("the connection ended after %v", time.Since(began))
		}
	})
}

func TestAnEventReachesAllOrNoneIfTheServerStops(t *testing.T) {
	for range 5 {
		hub := NewHub()
		allHearTheSame := listeners(t, start(t, hub))
		go func() {
			for sockets(hub) > 0 {
				hub.Emit("n", nil)
			}
		}()
		hub.Close()
		allHearTheSame()
	}
}

// listeners connects 50 clients, which read on to close code 1001. wait wants that all heard as many messages.
func listeners(t *testing.T, addr string) (wait func()) {
	counts := make(chan int, 50)
	for range cap(counts) {
		c := dial(t, addr)
		go func() {
			n := 0
			head, payload := c.read()
			for ; head == 0x81; n++ {
				head, payload = c.read()
			}
			if head != 0x88 || !strings.HasPrefix(payload, "\x03\xe9") {
				t.Errorf("after %d messages frame %#x %q", n, head, payload)
			}
			c.conn.Close()
			counts <- n
		}()
	}
	return func() {
		first := <-counts
		for range cap(counts) - 1 {
			if n := <-counts; n != first {
				t.Errorf("one heard %d messages, another %d", first, n)
			}
		}
	}
}

func TestWhoConnectsAsTheServerStopsIsClosedWith1001(t *testing.T) {
	hub := newChat()
	addr := start(t, hub)
	hub.Close()
	dial(t, addr).closes(1001, "shutting down")
}

// Part 5: a message comes in.

func TestBadMessagesAreAnsweredAndHarmNobody(t *testing.T) {
	addr := start(t, newChat())
	for _, test := range []struct{ message, words string }{
		{"hello", "JSON object with"},
		{"", "JSON object with"},
		{`["chat"]`, "JSON object with"},
		{`null`, "JSON object with"},
		{`{"data":{"data":"x"}}`, `with an "event"`},
		{`{"event":""}`, `with an "event"`},
		{`{"event":5}`, `with an "event"`},
		{`{"event":"chat","data":{"data":"x"}}{}`, "JSON object with"},
		{`{"event":"dance"}`, "dance"},
		{`{"event":"connect"}`, "connect"},
		{`{"event":"disconnect","data":"x"}`, "disconnect"},
		{`{"event":"error","data":"x"}`, "error"},
		{`{"event":"chat"}`, "chat"},
		{`{"event":"chat","data":null}`, "chat"},
		{`{"event":"chat","data":{}}`, "chat"},
		{`{"event":"chat","data":{"data":null}}`, "chat"},
		{`{"event":"broadcast","data":{"data":5}}`, "broadcast"},
		{`{"event":"chat","data":"x"}`, "chat"},
		{`{"event":"chat","data":[{"data":"x"}]}`, "chat"},
	} {
		offender, other := dial(t, addr), dial(t, addr)
		offender.say(test.message)
		offender.say(`{"event":"chat","data":{"data":"good"}}`)
		got := offender.next()
		if !strings.HasPrefix(got, `{"event":"error","data":"`) || !strings.Contains(strings.ReplaceAll(got, `\"`, `"`), test.words) {
			t.Errorf("%s: answer %s, want an error with %s", test.message, got, test.words)
		}
		if regexp.MustCompile(`main\.|json:|struct|Go |invalid character`).MatchString(got) {
			t.Errorf("answer %s is not for people", got)
		}
		offender.hears("grpchat", `"good"`)
		other.hears("grpchat", `"good"`)
	}
}

func TestWhatIsWrongInAFrameClosesWithItsCodeAndReason(t *testing.T) {
	addr := start(t, newChat())
	other := dial(t, addr)
	longest := long(maxMessageSize)
	for _, test := range []struct {
		name, frames string
		code         int
		reason       string
	}{
		{"not masked", "\x81\x02{}", 1002, "mask"},
		{"not masked, empty", "\x81\x00", 1002, "mask"},
		{"first reserved bit", masked(0xc1, "{}"), 1002, "a reserved bit"},
		{"second reserved bit", masked(0xa1, "{}"), 1002, "a reserved bit"},
		{"third reserved bit", masked(0x91, "{}"), 1002, "a reserved bit"},
		{"reserved opcode 3", masked(0x83, "{}"), 1002, "opcode is reserved"},
		{"reserved opcode 7", masked(0x87, "{}"), 1002, "opcode is reserved"},
		{"reserved opcode 11", masked(0x8b, ""), 1002, "opcode is reserved"},
		{"reserved opcode 15", masked(0x8f, ""), 1002, "opcode is reserved"},
		{"ping in fragments", masked(0x09, ""), 1002, "fragmented"},
		{"ping over 125 bytes", masked(0x89, long(126)), 1002, "control frame"},
		{"ping of 2³²+3 bytes", "\x89\xff\x00\x00\x00\x01\x00\x00\x00\x03mask", 1002, "control frame"},
		{"close over 125 bytes", masked(0x88, "\x03\xe8"+long(124)), 1002, "control frame"},
		{"continuation of nothing", masked(0x80, "{}"), 1002, "continuation"},
		{"continuation after a whole message", masked(0x81, "{}") + masked(0x00, "{}"), 1002, "continuation"},
		{"a text inside another", masked(0x01, long(60_000)) + masked(0x81, long(10_000)), 1002, "finished"},
		{"a binary message inside a text", masked(0x01, long(60_000)) + masked(0x82, long(10_000)), 1002, "finished"},
		{"close of one byte", masked(0x88, "\x03"), 1002, "close code"},
		{"close of one byte that could begin a code", masked(0x88, "\x0c"), 1002, "close code"},
		{"close with a bad reason", masked(0x88, "\x03\xe8\xff"), 1007, "UTF-8"},
		{"binary", masked(0x82, `{"event":"chat","data":{"data":"x"}}`), 1003, "text"},
		{"binary in fragments", masked(0x02, `{"event":"chat",`), 1003, "text"},
		{"not UTF-8", masked(0x81, `{"event":"chat","data":{"data":"`+"\xff"+`"}}`), 1007, "UTF-8"},
		{"overlong UTF-8", masked(0x81, `{"event":"chat","data":{"data":"`+"\xc0\xaf"+`"}}`), 1007, "UTF-8"},
		{"a surrogate", masked(0x81, `{"event":"chat","data":{"data":"`+"\xed\xa0\x80"+`"}}`), 1007, "UTF-8"},
		{"beyond Unicode", masked(0x81, `{"event":"chat","data":{"data":"`+"\xf4\x90\x80\x80"+`"}}`), 1007, "UTF-8"},
		{"UTF-8 cut short, in fragments", masked(0x01, "\xe4") + masked(0x80, "\xbd"), 1007, "UTF-8"},
		{"too long", masked(0x81, longest+"x"), 1009, "65536"},
		{"2³¹ bytes", "\x81\xff\x00\x00\x00\x00\x80\x00\x00\x00mask", 1009, "65536"},
		{"2³²+5 bytes", "\x81\xff\x00\x00\x00\x01\x00\x00\x00\x05maskhello", 1009, "65536"},
		{"2⁶² bytes", "\x81\xff\x40\x00\x00\x00\x00\x00\x00\x00mask", 1009, "65536"},
		{"too long in fragments", masked(0x01, longest) + masked(0x00, "x"), 1009, "65536"},
		{"too long, with a pong between", masked(0x01, longest) + masked(0x8a, "") + masked(0x80, "x"), 1009, "65536"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, addr)
			c.write([]byte(masked(0x81, `{"event":"broadcast","data":{"data":"sent before"}}`) + test.frames))
			c.closes(test.code, test.reason)
			other.hears("grpchat", `"sent before"`)
		})
	}
}

func TestCloseCodesAreEchoedIfTheyMayBeSent(t *testing.T) {
	addr := start(t, newChat())
	for code, want := range map[int]int{
		1000: 1000, 1001: 1001, 1003: 1003, 1007: 1007, 1011: 1011, 1014: 1014, 3000: 3000, 4999: 4999,
		0: 1002, 999: 1002, 1004: 1002, 1005: 1002, 1006: 1002, 1015: 1002, 1016: 1002, 2999: 1002, 5000: 1002, 65535: 1002,
	} {
		c := dial(t, addr)
		c.frame(0x88, string([]byte{byte(code >> 8), byte(code)})+"bye")
		if code == want {
			c.closes(want)
		} else {
			c.closes(want, "close code")
		}
	}
	c := dial(t, addr)
	c.frame(0x88, "")
	c.closes(1005)
}

func TestFragmentsMakeOneMessageAndPingsBetweenAreAnswered(t *testing.T) {
	c := dial(t, start(t, newChat()))
	said := "ü" + long(maxMessageSize-len(`{"event":"chat","data":{"data":"ü"}}`)) // the longest there may be
	text := `{"event":"chat","data":{"data":"` + said + `"}}`
	cut := strings.Index(text, "ü") + 1 // in the middle of a code point
	ping := strings.Repeat("?", 125)    // as long as a ping may be
	c.write([]byte(masked(0x01, text[:cut]) + masked(0x00, text[cut:]) + masked(0x89, ping) + masked(0x8a, "unasked") + masked(0x80, "")))
	if head, payload := c.read(); head != 0x8a || payload != ping {
		t.Errorf("the ping got %#x %q", head, payload)
	}
	c.hears("grpchat", `"`+said+`"`)
	c.say(text)
	c.hears("grpchat", `"`+said+`"`)
}

func TestSilentClientsArePingedAndVanishedOnesNoticed(t *testing.T) {
	for _, sent := range []string{"", "\x81"} { // the second is silent in the middle of a frame
		synctest.Test(t, func(t *testing.T) {
			gone := make(chan string, 2)
			c := startPipes(t, hubOf(on{"disconnect": func(_ *Socket, reason string) error { gone <- reason; return nil }})).client(t)
			c.write([]byte(sent))
			began := time.Now()
			if head, _ := c.read(); head != 0x89 || time.Since(began) != pingPeriod {
				t.Errorf("got frame %#x after %v, want a ping after %v", head, time.Since(began), pingPeriod)
			}
			if reason := <-gone; reason != `"connection lost"` || time.Since(began) != 2*pingPeriod {
				t.Errorf("%s after %v", reason, time.Since(began))
			}
			if head, payload := c.read(); head != 0 || time.Since(began) > 2*pingPeriod+closeWait || len(gone) > 0 {
				t.Errorf("after %v it was sent %#x %q, and disconnected %d times more", time.Since(began), head, payload, len(gone))
			}
		})
	}
}

func TestAPongOrAPingKeepsASocketAliveAndEachSilenceBringsAPing(t *testing.T) {
	for _, sent := range []byte{0x89, 0x8a} {
		synctest.Test(t, func(t *testing.T) {
			c := startPipes(t, newChat()).client(t)
			for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(pingPeriod / 2) {
				c.frame(sent, "")
				silent := time.Now()
				head, _ := c.read()
				if head == 0x8a { // the answer to its ping
					head, _ = c.read()
				}
				if took := time.Since(silent); head != 0x89 || took != pingPeriod {
					t.Fatalf("got %#x after %v", head, took)
				}
			}
		})
	}
}

func TestAPanicEndsItsSocketAloneWith1011(t *testing.T) {
	hub, logged, ran := NewHub(), make(logger, 10), make(chan bool, 10)
	log.SetOutput(logged)
	defer log.SetOutput(io.Discard)
	hub.On("connection", func(socket *Socket) {
		socket.On("bug", func(json.RawMessage) error { panic("a bug in a handler") })
		socket.On("hello", func(json.RawMessage) error { return hub.Emit("hello", nil) })
		socket.On("disconnect", func(json.RawMessage) error { panic("a bug in disconnect") })
		socket.On("disconnect", func(json.RawMessage) error { return errors.New("an error in disconnect") })
		socket.On("disconnect", func(json.RawMessage) error { ran <- true; return nil })
	})
	addr := start(t, hub)
	c, other := dial(t, addr), dial(t, addr)
	logs := func(words ...string) {
		t.Helper()
		line := <-logged
		for _, want := range words {
			if !strings.Contains(line, want) {
				t.Errorf("logged %q, want %s", line, want)
			}
		}
	}
	const stack = "hub_test.go"
	c.say(`{"event":"bug"}`)
	logs(c.id, "a bug in a handler", stack)
	c.closes(1011, "panicked")
	logs(c.id, "a bug in disconnect", stack)
	logs(c.id, "an error in disconnect")
	<-ran
	other.say(`{"event":"hello"}`)
	other.hears("hello", `null`)
	other.frame(0x88, "\x03\xe9")
	other.closes(1001) // in spite of the bug in disconnect
	logs(other.id, "a bug in disconnect", stack)
	logs(other.id, "an error in disconnect")
	<-ran
	hub = NewHub()
	hub.On("connection", func(*Socket) { panic("a bug in connection") })
	dial(t, start(t, hub)).closes(1011, "panicked")
}

// main.go: the files.

func TestNothingOutsidePublicIsServed(t *testing.T) {
	t.Chdir(t.TempDir())
	put("secret", "the secret")
	put("public/index.html", "the page")
	put("public/folder/secret", "") // its name must not be listed
	put("public/.env", "the secret")
	put("public/piped/.git/config", "the secret")
	put(`public/piped\.git`, "the secret")
	os.Symlink("../secret", "public/link")
	os.Symlink("..", "public/up")
	os.Symlink("pipe", "public/pipelink")
	must(exec.Command("mkfifo", "public/pipe", "public/piped/index.html").Output())
	chat := startProcess(t, ".", "127.0.0.1:0")
	request := func(method, path string) string {
		conn := must(net.Dial("tcp", chat.addr))
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path)
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	for _, path := range []string{"/../secret", "/%2e%2e/secret", "/..%2fsecret", "/link", "/up/secret", "/up", "/up/", "//secret", "/folder/",
		"/none", "/index.html/", "/index.html/x", "/%00", "/a%00b", "/%ff", "/" + long(5000), "*", "/folder/../../secret",
		"/pipe", "/pipe/", "/pipelink", "/piped/", "/piped/.git", "/piped/.git/config", "/piped%2f.git/config", "/piped\\.git", "/.env"} {
		for _, method := range []string{"GET", "HEAD"} {
			if answer := request(method, path); !strings.HasPrefix(answer, "HTTP/1.1 404") || strings.Contains(answer, "secret") {
				t.Errorf("%s %.99s: %.300s", method, path, answer)
			}
		}
	}
	if answer := request("GET", "/"); !strings.HasSuffix(answer, "\r\nthe page") {
		t.Errorf("the page reads %q", answer)
	}
	os.RemoveAll("public")
	put("public/.env", "the secret")
	if answer := request("GET", "/"); !strings.HasPrefix(answer, "HTTP/1.1 404") || strings.Contains(answer, "env") {
		t.Errorf("without index.html: %s", answer)
	}
	put("public/index.html", "the new page")
	if answer := request("GET", "/"); !strings.HasSuffix(answer, "\r\nthe new page") {
		t.Errorf("a new public/: %q", answer)
	}
}

// put writes a file, and makes its folder.
func put(path, text string) {
	os.MkdirAll(filepath.Dir(path), 0o755)
	must(0, os.WriteFile(path, []byte(text), 0o644))
}

func TestAFolderWithoutItsLastSlashRedirectsToItOnThisHost(t *testing.T) {
	t.Chdir(t.TempDir())
	os.MkdirAll(`public/about/index.html`, 0o755)
	os.MkdirAll(`public/\evil.example`, 0o755)
	for path, location := range map[string]string{
		"/about": "/about/", "/about?to=//evil.example&x": "/about/?to=//evil.example&x", "/about%2Findex.html": "/about%2Findex.html/",
		"http://evil.example/about": "/about/", `/\evil.example`: "/%5Cevil.example/", "//about": "", "/%2Fabout": "", "/about/": "",
		"//evil.example/..%2f": "", "//evil.example/../about": "", "http:https://evil.example": "",
	} {
		answer := httptest.NewRecorder()
		newServer(NewHub()).Handler.ServeHTTP(answer, httptest.NewRequest("GET", path, nil))
		if got := answer.Header().Get("Location"); got != location || (answer.Code == 301) != (got != "") {
			t.Errorf("%s: %d to %q, want %q", path, answer.Code, got, location)
		}
	}
}

func TestAReloadShowsWhatIsThereNow(t *testing.T) {
	t.Chdir(t.TempDir())
	first := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	kept := http.Header{} // by the browser
	for _, edit := range []struct {
		text     string
		modified time.Time
	}{
		{"first", first}, {"third", first.Add(time.Millisecond)}, {"fifth word", first.Add(time.Millisecond)},
		{"older", first.Add(-time.Hour)}, {"in the future", time.Now().Add(time.Hour)}, {"now", time.Now()},
	} {
		put("public/page.html", edit.text)
		os.Chtimes("public/page.html", edit.modified, edit.modified)
		for _, want := range []string{"200 " + edit.text, "304 "} {
			request, answer := httptest.NewRequest("GET", "/page.html", nil), httptest.NewRecorder()
			request.Header.Set("If-None-Match", kept.Get("Etag"))
			request.Header.Set("If-Modified-Since", kept.Get("Last-Modified"))
			newServer(NewHub()).Handler.ServeHTTP(answer, request)
			kept = answer.Header()
			if got := fmt.Sprint(answer.Code, " ", answer.Body); got != want || kept.Get("Cache-Control") != "no-cache" || kept.Get("Last-Modified") != "" {
				t.Errorf("got %s, want %s; %v", got, want, kept)
			}
		}
	}
}

func TestWhatIsThereButCannotBeOpenedIs500AndLogged(t *testing.T) {
	t.Chdir(t.TempDir())
	put("public/script.js", "")
	put("public/closed.js", "")
	os.Chmod("public/closed.js", 0)
	shell := `ulimit -n 20; exec "$0" "$@" 2>log`
	if os.Geteuid() == 0 { // without this, root needs no permission
		shell = `ulimit -n 20; exec setpriv --bounding-set=-dac_override,-dac_read_search "$0" "$@" 2>log`
	}
	chat := process(".", "-addr=127.0.0.1:0")
	chat.Path, chat.Args = "/bin/sh", append([]string{"sh", "-c", shell}, chat.Args...)
	must(0, chat.Start())
	defer chat.Wait()
	defer chat.Process.Kill()
	logged := func() string { log, _ := os.ReadFile("log"); return string(log) }
	eventually(t, func() bool { return strings.HasSuffix(logged(), "\n") })
	_, addr, _ := strings.Cut(strings.TrimSpace(logged()), "http://")
	conn := must(net.Dial("tcp", addr))
	for _, name := range []string{"closed.js", "script.js"} {
		status := 200
		for n := 0; n < 100 && status == 200; n++ {
			fmt.Fprintf(conn, "HEAD /%s HTTP/1.1\r\nHost: x\r\n\r\n", name)
			status = must(http.ReadResponse(bufio.NewReader(conn), &http.Request{Method: "HEAD"})).StatusCode
			defer must(net.Dial("tcp", addr)).Close() // takes one of the file descriptors
		}
		if status != 500 || !strings.Contains(logged(), fmt.Sprintf("cannot open %q", name)) {
			t.Errorf("%s: %d, logged %s", name, status, logged())
		}
	}
}

func TestALargeFileArrivesOverASlowLine(t *testing.T) {
	t.Chdir(t.TempDir())
	put("public/large", string(make([]byte, 30<<20)))
	synctest.Test(t, func(t *testing.T) {
		conn := startPipes(t, NewHub()).dial()
		defer conn.Close()
		io.WriteString(conn, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
		response := must(http.ReadResponse(bufio.NewReader(conn), nil))
		for second := range 30 {
			if _, err := io.CopyN(io.Discard, response.Body, 1<<20); err != nil {
				t.Fatalf("cut after %d s: %v", second, err)
			}
			time.Sleep(time.Second)
		}
	})
}

// main.go: the process.

func TestStopDeliversWhatWasQueuedAndClosesWith1001(t *testing.T) {
	t.Parallel()
	chat := startProcess(t, ".", "127.0.0.1:0")
	for range 3 {
		dial(t, chat.addr) // and do not read
	}
	talker := dial(t, chat.addr)
	go talker.drain()
	allHearTheSame := listeners(t, chat.addr)
	talker.write([]byte(strings.Repeat(masked(0x81, `{"event":"chat","data":{"data":"`+long(1000)+`"}}`), 1000)))
	chat.Process.Signal(syscall.SIGTERM)
	within(t, 5*time.Second, "the end", func() { must(0, chat.Wait()) })
	allHearTheSame()
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	chat := startProcess(t, ".", "127.0.0.1:0")
	c := dial(t, chat.addr)
	chat.Process.Signal(syscall.SIGTERM) // a script's background job ignores SIGINT
	c.closeFrame()                       // and do not answer it
	chat.Process.Signal(syscall.SIGTERM)
	within(t, time.Second, "the end", func() { chat.Wait() })
}

func TestTheServerGoesOnWhenNobodyReadsItsLog(t *testing.T) {
	t.Parallel()
	chat := startProcess(t, ".", "127.0.0.1:0")
	chat.log.Close()
	dial(t, chat.addr).conn.Close() // is logged
	c := dial(t, chat.addr)
	c.say(`{"event":"chat","data":{"data":"hello"}}`)
	c.hears("grpchat", `"hello"`)
	chat.Process.Signal(syscall.SIGTERM)
	c.closes(1001, "shutting down")
	must(0, chat.Wait())
}

func TestThePrintedAddressCanBeOpened(t *testing.T) {
	for addr, host := range map[string]string{
		":0": "localhost", "0.0.0.0:0": "localhost", "[::]:0": "localhost", "127.0.0.1:0": "127.0.0.1", "localhost:0": "localhost",
	} {
		chat := startProcess(t, ".", addr)
		if got, port, _ := net.SplitHostPort(chat.addr); got != host || port == "0" {
			t.Errorf("%s: printed %s", addr, chat.addr)
		}
		response := must(http.Get("http://" + chat.addr))
		if response.Body.Close(); response.StatusCode != 200 {
			t.Errorf("%s: %s", addr, response.Status)
		}
	}
}

func TestCannotStartSaysWhyAndExits1(t *testing.T) {
	taken := must(net.Listen("tcp", "127.0.0.1:0"))
	defer taken.Close()
	for _, test := range []struct{ dir, arg, words string }{
		{".", "-addr=" + taken.Addr().String(), "address already in use"},
		{".", "-addr=nonsense", `cannot use ["-addr=nonsense"]; write -addr host:port, as in`},
		{".", "-addr=localhost", `cannot use ["-addr=localhost"]; write`},
		{".", "-addr=", `cannot use ["-addr="]; write`},
		{".", "-addr=:", `cannot use ["-addr=:"]; write`},
		{".", "-addr=::1:3000", `or -addr "[::1]:3000"`},
		{".", "-addr=localhost:none", "cannot listen on localhost:none"},
		{".", ":8080", `cannot use [":8080"]; write -addr host:port`},
		{t.TempDir(), "-addr=127.0.0.1:0", "cannot open public/"},
	} {
		out, err := process(test.dir, test.arg).CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 1 || bytes.Count(out, []byte("\n")) != 1 || !strings.Contains(string(out), test.words) {
			t.Errorf("%s: %v, %q", test.arg, err, out)
		}
	}
}

// The hub in forty lines.

type naiveHub struct {
	mu    sync.Mutex
	conns map[*websocket.Conn]bool // guarded by mu
}
type naiveMessage struct {
	Event string `json:"event"`
	Data  any    `json:"data"`
}

func (h *naiveHub) serve(ws *websocket.Conn) { // io.on("connection", …)
	h.mu.Lock()
	h.conns[ws] = true
	websocket.JSON.Send(ws, naiveMessage{"connect", map[string]string{"id": rand.Text()}})
	h.mu.Unlock()
	for {
		var message struct {
			Event string
			Data  struct{ Data string }
		}
		if websocket.JSON.Receive(ws, &message) != nil {
			break
		}
		switch message.Event {
		case "chat":
			h.emit("grpchat", message.Data.Data, nil)
		case "broadcast":
			h.emit("grpchat", message.Data.Data, ws)
		}
	}
	h.mu.Lock()
	delete(h.conns, ws)
	h.mu.Unlock()
}

func (h *naiveHub) emit(event string, data any, except *websocket.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ws := range h.conns {
		if ws != except {
			websocket.JSON.Send(ws, naiveMessage{event, data})
		}
	}
}

// What breaks the hub in forty lines.

// In each row, the same happens to the naive hub and to ours. The last two strings are part of
// what a client sees: first with the naive hub, then with ours.
func TestWhatBreaksTheNaiveHub(t *testing.T) {
	const hello, heard = `{"event":"chat","data":{"data":"hello"}}`, `{"event":"grpchat","data":"hello"}`
	says := func(frames string) func(scene) string {
		return func(s scene) string {
			go s.b.drain()
			s.a.write([]byte(frames))
			return s.a.sees()
		}
	}
	for _, test := range []struct {
		name        string
		happens     func(scene) string
		naive, ours string
	}{
		// Clients that read slowly, and the cost of a message.
		{"a client that stops reading", func(s scene) string {
			go s.b.write([]byte(masked(0x81, hello) + masked(0x81, hello))) // a reads neither
			s.b.sees()                                                      // the first, if the map has b before a
			return s.b.sees()
		}, "nothing", heard},
		{"a client that reads one message a second", func(s scene) string {
			go s.a.drainSlowly(len("\x81\x22"+heard), time.Second)
			go s.b.write([]byte(strings.Repeat(masked(0x81, hello), 20)))
			began := time.Now()
			for range 20 {
				s.b.next()
			}
			return fmt.Sprintf("20 messages in %v", time.Since(began).Round(10*time.Second))
		}, "in 20s", "in 0s"},
		{"100 messages that wait for a client", func(s scene) string {
			go s.a.drain()
			go s.a.write([]byte(strings.Repeat(masked(0x81, hello), 100)))
			synctest.Wait() // until nothing moves before b reads
			writes, buf := 0, make([]byte, 64<<10)
			for got := 0; got < 100*len("\x81\x22"+heard); writes++ { // a pipe reads one write at most
				n, err := s.b.conn.Read(buf)
				if err != nil {
					return err.Error()
				}
				got += n
			}
			return fmt.Sprintf("%d writes", max(writes, 2)) // ours may need but one
		}, "100 writes", "2 writes"},
		{"a message for two clients", func(s scene) string {
			go s.a.drain()
			go s.b.drain()
			var n encodings
			s.emit("n", &n)
			return fmt.Sprintf("encoded %d times", n)
		}, "2 times", "1 times"},

		// Messages.
		{"text that is not JSON", says(masked(0x81, "hello")), "EOF", `"error"`},
		{"data of the wrong shape", says(masked(0x81, `{"event":"chat","data":"hello"}`)), "EOF", `"error"`},
		{"no data", says(masked(0x81, `{"event":"chat"}`)), `{"event":"grpchat","data":""}`, `"error"`},
		{"an unknown event", says(masked(0x81, `{"event":"dance"}`)), "nothing", `"error"`},

		// Frames.
		{"a message in two fragments", says(masked(0x01, hello[:20]) + masked(0x80, hello[20:])), "EOF", heard},
		{"text that is not UTF-8", says(masked(0x81, strings.Replace(hello, "hello", "\xff", 1))), `"data":"` + "\ufffd" + `"`, "close 1007"},
		{"a binary message", says(masked(0x82, hello)), heard, "close 1003"},
		{"a reserved bit", says(masked(0xc1, hello)), heard, "close 1002"},
		{"a reserved opcode", says(masked(0x83, hello)), heard, "close 1002"},
		{"a continuation of nothing", says(masked(0x80, hello)), heard, "close 1002"},
		{"a message of a megabyte", says(masked(0x81, strings.Replace(hello, "hello", long(1<<20), 1))), `"data":"xxx`, "close 1009"},
		{"a message of 2⁶² bytes", says("\x81\xff\x40\x00\x00\x00\x00\x00\x00\x00mask"), "EOF", "close 1009"},
		{"a close frame", says(masked(0x88, "\x03\xe8")), "EOF", "close 1000"},

		// Connections.
		{"a client that only listens", func(s scene) string { return s.a.sees() }, "nothing", "ping"},
		{"a client that vanishes", func(s scene) string {
			// On TCP, keep-alive would notice it after 150 s, but not behind a proxy. A pipe has none.
			time.Sleep(time.Hour)
			return s.a.sees() // EOF if the server has closed the connection
		}, "nothing", "EOF"},
		{"a server that stops", func(s scene) string {
			go s.stop()
			return s.a.sees()
		}, "nothing", "close 1001"},
		{"a handler that panics", func(s scene) string {
			s.bug()
			return says(masked(0x81, `{"event":"bug"}`) + masked(0x81, strings.Replace(hello, "chat", "broadcast", 1)))(s)
		}, "EOF", "close 1011"},
		{"a page of another origin", func(s scene) string {
			conn := s.dial()
			defer conn.Close()
			io.WriteString(conn, strings.Replace(handshake, "\r\n\r\n", "\r\nOrigin: http://evil.example\r\n\r\n", 1))
			return must(http.ReadResponse(bufio.NewReader(conn), nil)).Status
		}, "101", "403"},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				if got := test.happens(newScene(t, &naiveHub{conns: map[*websocket.Conn]bool{}})); !strings.Contains(got, test.naive) {
					t.Errorf("the naive hub: %.200s, want %s", got, test.naive)
				}
			})
			synctest.Test(t, func(t *testing.T) {
				hub := hubOf(on{"bug": func(*Socket, string) error { panic("a bug") }})
				if got := test.happens(newScene(t, hub)); !strings.Contains(got, test.ours) {
					t.Errorf("our hub: %.200s, want %s", got, test.ours)
				}
			})
		})
	}
}

// A scene is a hub and two clients, connected by pipes.
type scene struct {
	pipes
	a, b *client
	emit func(event string, data any)
	stop func()
	bug  func()
}

func newScene(t *testing.T, hub any) scene {
	s := scene{stop: func() {}, bug: func() {}} // Server.Close ends no connection that is a WebSocket
	switch hub := hub.(type) {
	case *naiveHub:
		s.pipes = serve(t, &http.Server{Handler: websocket.Server{Handler: hub.serve}}, func() {})
		s.emit = func(event string, data any) { hub.emit(event, data, nil) }
		s.bug = func() { hub.mu.Lock(); hub.conns[nil] = true; hub.mu.Unlock() } // Send to nil panics
	case *queueHub:
		s.pipes = serve(t, &http.Server{Handler: websocket.Server{Handler: hub.serve}}, func() {})
	case *Hub:
		s.pipes = serve(t, &http.Server{Handler: hub}, hub.Close)
		s.emit = func(event string, data any) { hub.Emit(event, data) }
		s.stop = hub.Close
	}
	s.a, s.b = s.client(t), s.client(t)
	return s
}

// sees says what the client gets next from the server: "nothing" if nothing comes for a minute.
func (c *client) sees() string {
	switch head, payload := c.read(); {
	case head == 0x88 && len(payload) > 1:
		return fmt.Sprintf("close %d %s", binary.BigEndian.Uint16([]byte(payload)), payload[2:])
	case head == 0x89:
		return "ping"
	case strings.Contains(payload, "timeout"):
		return "nothing"
	default:
		return payload // a message, or EOF
	}
}

// encodings counts how often it is encoded.
type encodings int

func (n *encodings) MarshalJSON() ([]byte, error) {
	*n++
	return []byte("null"), nil
}

// The hub with a queue for each client.

type queueHub struct {
	mu    sync.Mutex
	conns map[*websocket.Conn]chan naiveMessage // each client's queue; guarded by mu
}

func (h *queueHub) serve(ws *websocket.Conn) { // io.on("connection", …)
	queue := make(chan naiveMessage, 16)
	go write(ws, queue)
	h.mu.Lock()
	h.conns[ws] = queue
	queue <- naiveMessage{"connect", map[string]string{"id": rand.Text()}}
	h.mu.Unlock()
	for {
		var message struct {
			Event string
			Data  struct{ Data string }
		}
		if websocket.JSON.Receive(ws, &message) != nil {
			break
		}
		switch message.Event {
		case "chat":
			h.emit("grpchat", message.Data.Data, nil)
		case "broadcast":
			h.emit("grpchat", message.Data.Data, ws)
		}
	}
	h.mu.Lock()
	delete(h.conns, ws)
	close(queue) // no more messages: write ends
	h.mu.Unlock()
}

func write(ws *websocket.Conn, queue chan naiveMessage) {
	for message := range queue { // until the queue is closed and empty
		websocket.JSON.Send(ws, message)
	}
}

func (h *queueHub) emit(event string, data any, except *websocket.Conn) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for ws, queue := range h.conns {
		if ws != except {
			select {
			case queue <- naiveMessage{event, data}:
			default: // the queue is full
				ws.SetDeadline(time.Now()) // reading and writing fail: so serve ends
			}
		}
	}
}

func TestWithAQueueForEachClientAStuckOneStopsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newScene(t, &queueHub{conns: map[*websocket.Conn]chan naiveMessage{}}) // and a reads nothing
		for range 100 {
			s.b.say(`{"event":"chat","data":{"data":"hello"}}`)
			s.b.hears("grpchat", `"hello"`)
		}
	})
}

func TestAQueueThatNobodyWaitsForCostsAReaderItsConnection(t *testing.T) {
	for hub, hearsAll := range map[any]bool{&queueHub{conns: map[*websocket.Conn]chan naiveMessage{}}: false, newChat(): true} {
		synctest.Test(t, func(t *testing.T) {
			s := newScene(t, hub)
			go s.b.write([]byte(strings.Repeat(masked(0x81, `{"event":"broadcast","data":{"data":"hello"}}`), 100)))
			heard := 0
			for s.a.sees() == `{"event":"grpchat","data":"hello"}` {
				heard++
				time.Sleep(time.Millisecond) // it reads a thousand messages a second
			}
			if (heard == 100) != hearsAll {
				t.Errorf("%T: it heard %d of 100 messages", hub, heard)
			}
		})
	}
}

// The README.

// The README quotes sources and tests, and must not be left behind.
func TestTheReadmeQuotesWhatIsThere(t *testing.T) {
	read := func(name string) string { return string(must(os.ReadFile(name))) }
	readme, tests := read("README.md"), read("hub_test.go")+read("e2e/e2e_test.go")
	section, checked := "", map[string]bool{}
	for line := range strings.Lines(readme) {
		if strings.HasPrefix(line, "#") {
			section = strings.Trim(line, "# \n")
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | ")
		if len(cells) != 4 || !strings.Contains(line, "`") {
			continue
		}
		switch section {
		case "Line by line": // the tutorial, links to files, parts of their lines, what crosses the wire
			files := regexp.MustCompile(`\]\((.+?)\)`).FindAllStringSubmatch(cells[1], -1)
			for i, source := range strings.Split(cells[2], "<br>") {
				if file := files[min(i, len(files)-1)][1]; !strings.Contains(read(file), strings.Trim(source, "`")) {
					t.Errorf("%s has no %s", file, source)
				}
			}
		case "3. `hub.go`: wait, but not for long": // a client, the naive hub, an answer that names parts of the code, hub.go's part
			for _, name := range regexp.MustCompile("`([A-Za-z.]+)`").FindAllStringSubmatch(cells[2], -1) {
				_, part, _ := strings.Cut(read("hub.go"), "\n// Part "+cells[3])
				part, _, _ = strings.Cut(part, "\n// Part ")
				if word := strings.TrimPrefix(name[1], "Hub."); !strings.HasSuffix(word, ".go") && !strings.Contains(part+read("main.go"), word) {
					t.Errorf("part %s of hub.go has no %s", cells[3], word)
				}
			}
		case "Break it": // the line, the change, what happens, the test
			source := strings.Trim(cells[0], "`")
			if n := strings.Count(read("hub.go")+read("public/script.js"), source); n != 1 {
				t.Errorf("%d lines %s", n, source)
			}
			if test := strings.Trim(cells[3], "`"); !strings.Contains(tests, "func "+test+"(") {
				t.Errorf("no test %s", test)
			}
		default:
			continue
		}
		checked[section] = true
	}
	if len(checked) < 3 {
		t.Errorf("checked only %v: has the README another form now?", checked)
	}
}

// It does what the README says.
func TestTheHubsInTheReadmeCanBeTriedAsItSays(t *testing.T) {
	readme, tests := string(must(os.ReadFile("README.md"))), string(must(os.ReadFile("hub_test.go")))
	blocks := regexp.MustCompile("(?s)```(?:go|diff)\n(.+?)```").FindAllStringSubmatch(readme, -1)
	if len(blocks) != 3 {
		t.Fatalf("%d blocks of code", len(blocks))
	}
	naive, head, diff := blocks[0][1], blocks[1][1], blocks[2][1]
	first := head + "\n" + naive
	second := first
	for change := range strings.SplitSeq(diff, "\n\n") {
		var before, after string
		for line := range strings.Lines(strings.TrimSuffix(change, "\n") + "\n") {
			if line[0] != '+' {
				before += line[1:]
			}
			if line[0] != '-' {
				after += line[1:]
			}
		}
		if strings.Count(second, before) != 1 {
			t.Fatalf("not one place has\n%s", before)
		}
		second = strings.Replace(second, before, after, 1)
	}
	_, queued, _ := strings.Cut(second, "\nfunc (h *naiveHub) serve")
	if !strings.Contains(tests, naive) || !strings.Contains(tests, "serve"+strings.ReplaceAll(queued, "naiveHub", "queueHub")) {
		t.Error("the tests have other hubs")
	}

	// With -overlay, Go takes try/main.go to be there.
	dir, here := t.TempDir(), must(os.Getwd())
	source, program, overlay := filepath.Join(dir, "main.go"), filepath.Join(dir, "try"), filepath.Join(dir, "overlay.json")
	put(overlay, fmt.Sprintf(`{"Replace": {%q: %q}}`, filepath.Join(here, "try/main.go"), source))
	for _, text := range []string{first, second} {
		listener := must(net.Listen("tcp", "127.0.0.2:0")) // an address where no other test takes a port
		addr := listener.Addr().String()
		listener.Close()
		put(source, strings.Replace(text, "localhost:3000", addr, 1))
		if out, err := exec.Command("go", "build", "-overlay", overlay, "-o", program, "./try").CombinedOutput(); err != nil {
			t.Fatalf("%s", out)
		}
		try := exec.Command(program)
		must(0, try.Start())
		defer try.Wait()
		defer try.Process.Kill()
		var page *http.Response
		eventually(t, func() bool {
			page, _ = http.Get("http://" + addr)
			return page != nil
		})
		if got := must(io.ReadAll(page.Body)); !bytes.Equal(got, must(os.ReadFile("public/index.html"))) {
			t.Errorf("the page is %.99q", got)
		}
		page.Body.Close()
		speaksTheChat(t, addr)
	}
}

// Any input.

// FuzzWire sends anything behind a handshake. The next client must be served, and nothing may panic.
func FuzzWire(f *testing.F) {
	for _, seed := range []string{masked(0x81, `{"event":"chat","data":{"data":"x"}}`), masked(0x01, "{") + masked(0x89, "") + masked(0x80, "}"),
		masked(0x88, "\x03\xe8"), "\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff", "\x81\xfe\x00\x02mask", "\x00"} {
		f.Add([]byte(seed))
	}
	addr := start(f, newChat())
	log.SetOutput(logger(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := dial(t, addr)
		c.write(raw)
		c.conn.(*net.TCPConn).CloseWrite()
		c.drain()
		next := dial(t, addr)
		next.say(`{"event":"chat","data":{"data":"next"}}`)
		next.hears("grpchat", `"next"`)
	})
}

// How fast, and how much memory.

func BenchmarkEmit(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			hub := NewHub()
			addr := start(b, hub)
			var got sync.WaitGroup
			message := len(`{"event":"grpchat","data":"` + long(100) + `"}`)
			for range n {
				c := dial(b, addr)
				got.Go(func() {
					if _, err := io.CopyN(io.Discard, c.in, int64(b.N*(message+4))); err != nil {
						b.Error(err)
					}
				})
			}
			b.ResetTimer()
			for range b.N {
				hub.Emit("grpchat", long(100))
			}
			got.Wait()
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "deliveries/s")
		})
	}
}

// What the tests stand on.

// TestMain lets the test program be the chat, for the tests that need a process.
func TestMain(m *testing.M) {
	if os.Getenv("BE_THE_CHAT") != "" {
		main()
		os.Exit(0)
	}
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// start serves a hub on loopback for the length of a test.
func start(t testing.TB, hub *Hub) (addr string) {
	s := httptest.NewUnstartedServer(nil)
	s.Config = newServer(hub)
	s.Start()
	t.Cleanup(func() {
		hub.Close()
		s.Close()
	})
	return s.Listener.Addr().String()
}

// hubOf returns a chat whose sockets have these handlers, too.
func hubOf(handlers on) *Hub {
	hub := newChat()
	chat := hub.onConnection
	hub.On("connection", func(socket *Socket) {
		chat(socket)
		for event, handle := range handlers {
			socket.On(event, func(data json.RawMessage) error { return handle(socket, string(data)) })
		}
	})
	return hub
}

type on map[string]func(s *Socket, data string) error

// inVirtualTime runs a row of a table.
func inVirtualTime(t *testing.T, name string, test func(*testing.T)) {
	t.Run(name, func(t *testing.T) { synctest.Test(t, test) })
}

// within wants that something takes no longer than limit.
func within(t *testing.T, limit time.Duration, what string, do func()) {
	t.Helper()
	began := time.Now()
	do()
	if took := time.Since(began); took > limit {
		t.Errorf("%s took %v", what, took)
	}
}

// socket returns a hub's socket, or nil.
func (h *Hub) socket(id string) *Socket {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.sockets[id]
}

func sockets(hub *Hub) int {
	hub.mu.Lock()
	defer hub.mu.Unlock()
	return len(hub.sockets)
}

// flood says 60 KB to all, again and again, until a client has gone.
func flood(hub *Hub, until *client) {
	for hub.socket(until.id) != nil {
		hub.Emit("n", long(60_000))
	}
}

func (s *Socket) queued() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.queuedBytes
}

// pipes is a network in memory, for tests in virtual time. There, only one Emit may wait at a time: time
// stands still while a goroutine waits for a mutex. So tests with several senders use TCP.
type pipes chan net.Conn

func startPipes(t *testing.T, hub *Hub) pipes { return serve(t, newServer(hub), hub.Close) }

func serve(t *testing.T, server *http.Server, stop func()) pipes {
	p := make(pipes)
	go server.Serve(p)
	t.Cleanup(func() {
		stop()
		server.Close()
		time.Sleep(time.Minute) // virtual: until the clients have ended, too
	})
	return p
}

func (p pipes) Accept() (net.Conn, error) {
	conn, ok := <-p
	if !ok {
		return nil, net.ErrClosed
	}
	return conn, nil
}

func (p pipes) Close() error   { close(p); return nil }
func (p pipes) Addr() net.Addr { return &net.TCPAddr{} }
func (p pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p <- theirs
	return ours
}
func (p pipes) client(t testing.TB) *client { return shakeHands(t, p.dial(), handshake) }

// A client is a WebSocket client that does what it is told, legal or not.
type client struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
	id   string
}

// dial returns a client that has got its "connect", over TCP.
func dial(t testing.TB, addr string) *client {
	t.Helper()
	return shakeHands(t, must(net.Dial("tcp", addr)), handshake)
}

const handshake = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

func shakeHands(t testing.TB, conn net.Conn, sent string) *client {
	t.Helper()
	t.Cleanup(func() { conn.Close() })
	c := &client{t: t, conn: conn, in: bufio.NewReader(conn)}
	c.write([]byte(sent))
	if response, err := http.ReadResponse(c.in, nil); err != nil || response.StatusCode != 101 {
		t.Errorf("handshake: %v, %v", response, err)
		return c
	}
	var hello struct {
		Event string
		Data  struct{ ID string }
	}
	if json.Unmarshal([]byte(c.next()), &hello); hello.Event != "connect" {
		t.Errorf("the first event is %q", hello.Event)
	}
	c.id = hello.Data.ID
	return c
}

// masked is a client's frame: its first byte, length, masking key and payload.
func masked(head byte, payload string) string {
	f := []byte{head}
	switch n := len(payload); {
	case n < 126:
		f = append(f, 0x80|byte(n))
	case n < 1<<16:
		f = binary.BigEndian.AppendUint16(append(f, 0x80|126), uint16(n))
	default:
		f = binary.BigEndian.AppendUint64(append(f, 0x80|127), uint64(n))
	}
	f = append(f, "mask"...)
	for i := range len(payload) {
		f = append(f, payload[i]^"mask"[i%4])
	}
	return string(f)
}

func (c *client) write(raw []byte)                { c.conn.Write(raw) } // a server may hang up on it
func (c *client) frame(head byte, payload string) { c.write([]byte(masked(head, payload))) }
func (c *client) say(message string)              { c.frame(0x81, message) }
func (c *client) drain()                          { io.Copy(io.Discard, c.in) }

// drainSlowly reads a number of bytes each time.
func (c *client) drainSlowly(bytes int, every time.Duration) {
	for buf := make([]byte, bytes); ; time.Sleep(every) {
		if _, err := io.ReadFull(c.in, buf); err != nil {
			return
		}
	}
}

// read returns the next frame's first byte and its payload; 0 if there is none.
func (c *client) read() (head byte, payload string) {
	c.conn.SetReadDeadline(time.Now().Add(time.Minute))
	var h [10]byte
	if _, err := io.ReadFull(c.in, h[:2]); err != nil {
		return 0, err.Error()
	}
	n := uint64(h[1])
	switch n {
	case 126:
		io.ReadFull(c.in, h[2:4])
		n = uint64(binary.BigEndian.Uint16(h[2:]))
	case 127:
		io.ReadFull(c.in, h[2:10])
		n = binary.BigEndian.Uint64(h[2:])
	}
	if h[1] == 126 && n < 126 || h[1] == 127 && n < 1<<16 {
		c.t.Errorf("a length of %d is written in too many bytes", n) // RFC 6455, section 5.2
	}
	buf := make([]byte, n)
	io.ReadFull(c.in, buf)
	return h[0], string(buf)
}

// next returns the next text message, past pings and pongs.
func (c *client) next() string {
	for {
		head, payload := c.read()
		switch head {
		case 0x81:
			return payload
		case 0x89, 0x8a:
			continue
		}
		c.t.Fatalf("got frame %#x %q, want a message", head, payload)
	}
}

func (c *client) hears(event, data string) {
	c.t.Helper()
	if got, want := c.next(), fmt.Sprintf(`{"event":%q,"data":%s}`, event, data); got != want {
		c.t.Errorf("got %s, want %s", got, want)
	}
}

// closeFrame reads on to the close frame and returns its code, 1005 for none, and its reason.
func (c *client) closeFrame() (code int, reason string) {
	c.t.Helper()
	for {
		switch head, payload := c.read(); {
		case head == 0:
			c.t.Errorf("got %s, want a close frame", payload)
			return 1006, payload
		case head == 0x88 && payload == "":
			return 1005, ""
		case head == 0x88:
			return int(binary.BigEndian.Uint16([]byte(payload))), payload[2:]
		}
	}
}

// closes reads on to the close frame, wants its code and words of its reason, and answers it.
func (c *client) closes(code int, words ...string) {
	c.t.Helper()
	got, reason := c.closeFrame()
	if got != code || !strings.Contains(reason, strings.Join(words, "")) || words == nil && reason != "" {
		c.t.Errorf("got close code %d %q, want %d %q", got, reason, code, words)
	}
	c.frame(0x88, "\x03\xe8")
	if head, payload := c.read(); head != 0 || payload != io.EOF.Error() {
		c.t.Errorf("after the close frame %#x %q", head, payload)
	}
	c.conn.Close()
}

// A chatProcess is the chat as a program of its own.
type chatProcess struct {
	*exec.Cmd
	addr string
	log  io.ReadCloser
}

func process(dir, arg string) *exec.Cmd {
	cmd := exec.Command(must(os.Executable()), arg)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), "BE_THE_CHAT=1")
	return cmd
}

func startProcess(t *testing.T, dir, addr string) *chatProcess {
	cmd := process(dir, "-addr="+addr)
	stderr := must(cmd.StderrPipe())
	must(0, cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	in := bufio.NewReader(stderr)
	line, _ := in.ReadString('\n')
	_, addr, ok := strings.Cut(strings.TrimSpace(line), "listening on http://")
	if !ok {
		t.Fatalf("its first line is %q", line)
	}
	go io.Copy(io.Discard, in)
	return &chatProcess{cmd, addr, stderr}
}

// A logger passes on what is logged. A nil one ends the test program if a panic is logged.
type logger chan string

func (l logger) Write(p []byte) (int, error) {
	if l != nil {
		l <- string(p)
	} else if bytes.Contains(p, []byte("panic")) {
		panic(string(p))
	}
	return len(p), nil
}

// memory returns how many bytes are in use.
func memory() int {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // empties the pools
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

func long(n int) string { return strings.Repeat("x", n) }

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("never came true")
		}
	}
}
