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
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/websocket"
)

// TestMain lets the test program be the chat, for the tests that need a process.
func TestMain(m *testing.M) {
	if os.Getenv("BE_THE_CHAT") != "" {
		main()
		os.Exit(0)
	}
	log.SetOutput(io.Discard)
	os.Exit(m.Run())
}

// The chat.

func TestConnectComesFirstWithAUniqueID(t *testing.T) {
	addr, _ := start(t, newChat())
	a, b := dial(t, addr), dial(t, addr)
	if a.id == b.id || len(a.id) < 20 {
		t.Errorf("ids %q and %q", a.id, b.id)
	}
}

func TestAClientThatIsConnectedMissesNothing(t *testing.T) {
	hub := NewHub()
	addr, _ := start(t, hub)
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 100 {
				c := dial(t, addr) // returns as soon as "connect" has come
				event := fmt.Sprint(i, "-", n)
				hub.Emit(event, nil)
				for c.conn.SetReadDeadline(time.Now().Add(5 * time.Second)); ; {
					if _, payload := c.readFrame(); strings.Contains(payload, event) {
						break
					} else if !strings.HasPrefix(payload, "{") {
						t.Errorf("missed the event after connect: %s", payload)
						break
					}
				}
				c.conn.Close()
			}
		})
	}
	wg.Wait()
}

func TestChatReachesEveryoneAndBroadcastEveryoneElse(t *testing.T) {
	addr, _ := start(t, newChat())
	a, b, c := dial(t, addr), dial(t, addr), dial(t, addr)
	a.say(`{"event":"broadcast","data":{"data":"to the others"}}`)
	a.say(`{"event":"chat","data":{"data":"to <all> & \"sundry\""}}`)
	for _, other := range []*client{b, c} {
		other.hears("grpchat", `"to the others"`)
	}
	for _, each := range []*client{a, b, c} {
		each.hears("grpchat", `"to <all> & \"sundry\""`)
	}
}

func TestAllSeeOneOrder(t *testing.T) {
	addr, _ := start(t, newChat())
	const talkers, each = 10, 50
	var clients [talkers]*client
	for i := range clients {
		clients[i] = dial(t, addr)
	}
	var heard [talkers]string
	var wg sync.WaitGroup
	for i, c := range clients {
		wg.Go(func() {
			for n := range each {
				c.say(fmt.Sprintf(`{"event":"chat","data":{"data":"%d-%d"}}`, i, n))
			}
		})
		wg.Go(func() {
			for range talkers * each {
				heard[i] += c.next()
			}
		})
	}
	wg.Wait()
	for i := range heard {
		if heard[i] != heard[0] {
			t.Errorf("client %d saw another order than client 0", i)
		}
		last := -1
		for n := range each {
			at := strings.Index(heard[0], fmt.Sprintf(`"%d-%d"`, i, n))
			if at < last {
				t.Errorf("message %d of client %d came before the one sent before it", n, i)
			}
			last = at
		}
	}
}

func TestDisconnectHandlerRunsOnceWithTheReason(t *testing.T) {
	for _, test := range []struct {
		name   string
		leave  func(*client)
		reason string
	}{
		{"close frame", func(c *client) { c.frame(0x88, "\x03\xe8") }, `"client disconnect"`},
		{"end of file", func(c *client) { c.conn.Close() }, `"connection lost"`},
		{"reset", func(c *client) { c.conn.(*net.TCPConn).SetLinger(0); c.conn.Close() }, `"connection lost"`},
		{"disconnected by the server", func(c *client) { c.say(`{"event":"kick"}`); c.closes(1000, "server disconnect") }, `"server disconnect"`},
	} {
		t.Run(test.name, func(t *testing.T) {
			hub, reasons := NewHub(), make(chan string, 2)
			hub.On("connection", func(socket *Socket) {
				socket.On("kick", func(json.RawMessage) error { socket.Disconnect(); return nil })
				socket.On("disconnect", func(reason json.RawMessage) error { reasons <- string(reason); return nil })
			})
			addr, _ := start(t, hub)
			c := dial(t, addr)
			test.leave(c)
			if got := <-reasons; got != test.reason {
				t.Errorf("reason %s, want %s", got, test.reason)
			}
			c.conn.Close()
			hub.Close()
			if len(reasons) > 0 {
				t.Errorf("ran again, with %s", <-reasons)
			}
		})
	}
}

func TestDisconnectDeliversWhatWasQueuedThenClosesWith1000(t *testing.T) {
	t.Parallel()
	hub := NewHub()
	hub.On("connection", func(socket *Socket) {
		socket.On("count", func(json.RawMessage) error {
			for n := range 150 {
				socket.Emit("n", fmt.Sprintf("%01000d", n))
			}
			socket.Disconnect()
			return socket.Emit("n", "too late")
		})
		socket.On("never", func(json.RawMessage) error { t.Error("handled after Disconnect"); return nil })
	})
	addr, _ := start(t, hub)
	c := dial(t, addr)
	c.write([]byte(masked(0x81, `{"event":"count"}`) + strings.Repeat(masked(0x81, `{"event":"never"}`), 1000)))
	// More than its end of TCP takes is on the way to a client that still has
	// to read when the server has gone.
	eventually(t, func() bool { return sockets(hub) == 0 })
	for n := range 150 {
		c.hears("n", fmt.Sprintf(`"%01000d"`, n))
	}
	c.closes(1000, "server disconnect")
}

func TestTheServerEndsTCPOnlyAfterTheClientsCloseFrame(t *testing.T) {
	hub := NewHub()
	hub.On("connection", func(socket *Socket) { socket.Disconnect() })
	addr, _ := start(t, hub)
	c := dial(t, addr)
	c.closeFrame()
	c.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := c.in.ReadByte(); !errors.Is(err, os.ErrDeadlineExceeded) { // Firefox calls such a close unclean
		t.Errorf("before the client's close frame: %v", err)
	}
	c.frame(0x88, "\x03\xe8")
	if head, payload := c.read(); head != 0 || payload != io.EOF.Error() {
		t.Errorf("after the client's close frame: %#x %q", head, payload)
	}
}

func TestLastWordsWithTheEndOfInputBehindThemAreAnswered(t *testing.T) {
	addr, _ := start(t, newChat())
	for range 100 {
		c := dial(t, addr)
		c.write([]byte(masked(0x81, `{"event":"chat","data":{"data":"last words"}}`) + masked(0x88, "\x03\xe8")))
		c.conn.(*net.TCPConn).CloseWrite()
		c.hears("grpchat", `"last words"`)
		c.closes(1000)
	}
}

func TestAClientMayWriteBeforeItReadsWhyItsSocketEnds(t *testing.T) {
	for _, test := range []struct {
		first string
		code  int
		words string
	}{
		{masked(0x81, `{"event":"leave"}`), 1000, "server disconnect"},
		{masked(0x83, ""), 1002, "reserved"},
	} {
		synctest.Test(t, func(t *testing.T) {
			hub := NewHub()
			hub.On("connection", func(socket *Socket) {
				socket.On("leave", func(json.RawMessage) error { socket.Disconnect(); return nil })
			})
			c := startPipes(t, hub).client(t)
			c.write([]byte(test.first))
			c.chatter(2*maxQueue, 20_000) // a pipe has no buffer: the close frame cannot be sent meanwhile
			c.closes(test.code, test.words)
		})
	}
}

func TestASocketThatEndsHasCloseWaitThoughSomebodyWaitedForItsBatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		c := startPipes(t, hub).client(t)
		time.AfterFunc(400*time.Millisecond, hub.socket(c.id).Disconnect)
		for range 45 {
			hub.Emit("n", strings.Repeat("x", 60_000)) // the last ones wait, and leave the batch 0.9 s
		}
		time.Sleep(2 * time.Second)
		c.closes(1000, "server disconnect")
	})
}

func TestCloseDoesNotQueueBehindEmits(t *testing.T) {
	t.Parallel()
	hub := NewHub()
	addr, _ := start(t, hub)
	slow, other := dial(t, addr), dial(t, addr)
	slow.conn.(*net.TCPConn).SetReadBuffer(16 << 10)
	go slow.drainSlowly(40_000, 100*time.Millisecond)
	for range 30 {
		go func() {
			for range 10 {
				hub.Emit("n", strings.Repeat("x", 60_000))
			}
		}()
	}
	s := hub.socket(slow.id)
	eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.queuedBytes > maxQueue
	})
	go hub.Close()
	began := time.Now()
	other.closes(1001, "shutting down")
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("it was told after %v", took)
	}
	slow.conn.Close()
}

func TestAHandlerThatEndsItsGoroutineLeavesNoSocketBehind(t *testing.T) {
	hub := NewHub()
	hub.On("connection", func(socket *Socket) {
		socket.On("exit", func(json.RawMessage) error { runtime.Goexit(); return nil })
	})
	addr, _ := start(t, hub)
	dial(t, addr).say(`{"event":"exit"}`)
	eventually(t, func() bool { return sockets(hub) == 0 })
}

func TestAReaderGetsAllThoughItsSocketEndsWithALongQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		hub.On("connection", func(socket *Socket) { time.AfterFunc(time.Second, socket.Disconnect) })
		c := startPipes(t, hub).client(t)
		hub.Emit("large", strings.Repeat("x", maxQueue))
		var got bytes.Buffer
		chunk := make([]byte, 64<<10)
		for n, err := c.in.Read(chunk); err == nil; n, err = c.in.Read(chunk) {
			got.Write(chunk[:n])
			time.Sleep(time.Duration(n) * time.Microsecond) // 1 MB a second
		}
		if got.Len() < maxQueue || !strings.HasSuffix(got.String(), "\x03\xe8server disconnect") {
			t.Errorf("got %d bytes, without the close frame", got.Len())
		}
	})
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
	addr, _ := start(t, hub)
	dial(t, addr).hears("error", `"the server may say so"`) // and nothing before it
}

func TestAHubHasOnlyTheEventConnection(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("On took another event")
		}
	}()
	NewHub().On("disconnect", func(*Socket) {})
}

func TestAnswersStillComeAfterMegabytes(t *testing.T) {
	hub := NewHub()
	addr, _ := start(t, hub)
	c := dial(t, addr)
	for range 5 {
		hub.Emit("large", strings.Repeat("x", maxQueue/2))
		c.next()
	}
	c.say("garbage")
	if got := c.next(); !strings.HasPrefix(got, `{"event":"error"`) {
		t.Errorf("got %.99s", got)
	}
	s := hub.socket(c.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.queuedBytes != 0 {
		t.Errorf("%d bytes are queued", s.queuedBytes)
	}
}

func TestServerFramesHaveTheShortestLength(t *testing.T) {
	hub := NewHub()
	addr, _ := start(t, hub)
	c := dial(t, addr)
	around := len(`{"event":"n","data":""}`)
	for _, size := range []int{around, 125, 126, 65_535, 65_536} {
		hub.Emit("n", strings.Repeat("x", size-around))
		if got := c.next(); len(got) != size { // readFrame checks the length's form
			t.Errorf("%d bytes came, want %d", len(got), size)
		}
	}
}

func TestASocketThatHasEndedHasNoTimer(t *testing.T) {
	hub := NewHub()
	addr, _ := start(t, hub)
	c := dial(t, addr)
	s := hub.socket(c.id)
	c.frame(0x88, "\x03\xe8")
	c.closes(1000)
	eventually(t, func() bool { return sockets(hub) == 0 })
	if s.closeTimer.Stop() {
		t.Error("its timer still ran, and held its memory")
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

func TestHalfAMessageOrCloseFrameIsNoWholeOne(t *testing.T) {
	gone := make(chan string, 1)
	hub := newChatWith("disconnect", func(reason json.RawMessage) error { gone <- string(reason); return nil })
	addr, _ := start(t, hub)
	other := dial(t, addr)
	whole := `{"event":"chat","data":{"data":"half"}}`
	for _, frame := range []string{masked(0x81, whole+" "), masked(0x88, "\x03\xe8 ")} {
		c := dial(t, addr)
		c.write([]byte(frame[:len(frame)-1]))
		c.conn.(*net.TCPConn).CloseWrite()
		if reason := <-gone; reason != `"connection lost"` {
			t.Errorf("reason %s", reason)
		}
	}
	other.say(`{"event":"chat","data":{"data":"whole"}}`)
	other.hears("grpchat", `"whole"`)
}

func TestALostClientIsSentNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		c := startPipes(t, hub).client(t)
		s := hub.socket(c.id)
		c.write([]byte("\x81"))              // half a header, and no more
		time.Sleep(pingPeriod + time.Second) // then it is lost
		s.mu.Lock()
		if s.ending != connectionLost || s.writing {
			t.Errorf("it ends with %v, its writer runs: %v", s.ending, s.writing)
		}
		s.mu.Unlock()
	})
}

// The handshake and the files.

func TestHandshakeIsTakenOnAnyPathAndOnlyAHandshake(t *testing.T) {
	addr, _ := start(t, newChat())
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
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nCookie: " + strings.Repeat("x", 8<<10) + "\r\n" + upgrade, 101},
		{"GET / HTTP/1.1\r\nUpgrade: websocket\r\nCookie: " + strings.Repeat("x", 17<<10) + "\r\n" + upgrade, 431},
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
	addr, _ := start(t, newChat())
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

func TestNothingOutsidePublicIsServed(t *testing.T) {
	dir := t.TempDir()
	os.Mkdir(filepath.Join(dir, "public"), 0o755)
	os.WriteFile(filepath.Join(dir, "public", "index.html"), []byte("the page"), 0o644)
	os.WriteFile(filepath.Join(dir, "secret"), []byte("the secret"), 0o644)
	os.Mkdir(filepath.Join(dir, "public", "folder"), 0o755)
	os.WriteFile(filepath.Join(dir, "public", "folder", "secret"), nil, 0o644) // its name must not be listed
	os.Symlink("../secret", filepath.Join(dir, "public", "link"))
	os.Symlink("..", filepath.Join(dir, "public", "up"))
	os.Symlink("pipe", filepath.Join(dir, "public", "pipelink"))
	os.MkdirAll(filepath.Join(dir, "public", "piped", ".git"), 0o755)
	for _, name := range []string{".env", "piped/.git/config", `piped\.git`} {
		os.WriteFile(filepath.Join(dir, "public", name), []byte("the secret"), 0o644)
	}
	must(exec.Command("mkfifo", filepath.Join(dir, "public", "pipe"), filepath.Join(dir, "public", "piped", "index.html")).Output())
	chat := startProcess(t, dir, "127.0.0.1:0")
	request := func(method, path string) string {
		conn := must(net.Dial("tcp", chat.addr))
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", method, path)
		answer, _ := io.ReadAll(conn)
		return string(answer)
	}
	get := func(path string) string { return request("GET", path) }
	for _, path := range []string{"/../secret", "/%2e%2e/secret", "/..%2fsecret", "/link", "/up/secret", "/up", "/up/", "//secret", "/folder/",
		"/none", "/index.html/", "/index.html/x", "/%00", "/a%00b", "/%ff", "/" + strings.Repeat("x", 5000), "*", "/folder/../../secret",
		"/pipe", "/pipe/", "/pipelink", "/piped/", "/piped/.git", "/piped/.git/config", "/piped%2f.git/config", "/piped\\.git", "/.env"} {
		for _, method := range []string{"GET", "HEAD"} {
			if answer := request(method, path); !strings.HasPrefix(answer, "HTTP/1.1 404") || strings.Contains(answer, "secret") {
				t.Errorf("%s %.99s: %.300s", method, path, answer)
			}
		}
	}
	if answer := get("/"); !strings.HasSuffix(answer, "\r\nthe page") {
		t.Errorf("the page reads %q", answer)
	}
	os.RemoveAll(filepath.Join(dir, "public"))
	os.Mkdir(filepath.Join(dir, "public"), 0o755)
	os.WriteFile(filepath.Join(dir, "public", ".env"), []byte("the secret"), 0o644)
	if answer := get("/"); !strings.HasPrefix(answer, "HTTP/1.1 404") || strings.Contains(answer, "env") {
		t.Errorf("without index.html: %s", answer)
	}
	os.WriteFile(filepath.Join(dir, "public", "index.html"), []byte("the new page"), 0o644)
	if answer := get("/"); !strings.HasSuffix(answer, "\r\nthe new page") {
		t.Errorf("a new public/: %q", answer)
	}
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
	os.Mkdir("public", 0o755)
	first := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	kept := http.Header{} // by the browser
	for _, edit := range []struct {
		text     string
		modified time.Time
	}{
		{"first", first}, {"third", first.Add(time.Millisecond)}, {"fifth word", first.Add(time.Millisecond)},
		{"older", first.Add(-time.Hour)}, {"in the future", time.Now().Add(time.Hour)}, {"now", time.Now()},
	} {
		os.WriteFile("public/page.html", []byte(edit.text), 0o644)
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
	os.Mkdir("public", 0o755)
	os.WriteFile("public/script.js", nil, 0o644)
	os.WriteFile("public/closed.js", nil, 0)
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
	os.Mkdir("public", 0o755)
	os.WriteFile("public/large", make([]byte, 100<<20), 0o644)
	synctest.Test(t, func(t *testing.T) {
		conn := startPipes(t, NewHub()).dial()
		defer conn.Close()
		io.WriteString(conn, "GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
		response := must(http.ReadResponse(bufio.NewReader(conn), nil))
		for second := range 100 {
			if _, err := io.CopyN(io.Discard, response.Body, 1<<20); err != nil {
				t.Fatalf("cut after %d s: %v", second, err)
			}
			time.Sleep(time.Second)
		}
	})
}

func TestDribbledHeadersAndStalledHandshakesAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := startPipes(t, newChat())
		began := time.Now()
		conn := listener.dial()
		for err := error(nil); err == nil; time.Sleep(time.Second) {
			_, err = io.WriteString(conn, "X")
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("dribbled headers: cut after %v", took)
		}
		for _, sent := range []string{handshake[:len(handshake)-2], handshake} { // the second does not take the answer
			conn = listener.dial()
			io.WriteString(conn, sent)
			time.Sleep(10 * time.Second)
			if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Errorf("a handshake stalled after %d bytes: not cut", len(sent))
			}
		}
	})
	addr, _ := start(t, newChat())
	conn := must(net.Dial("tcp", addr))
	conn.SetDeadline(time.Now().Add(10 * time.Second))
	go io.Copy(conn, io.LimitReader(endless("GET / HTTP/1.1\r\nX: "), 10<<20))
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err == nil && response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
		t.Errorf("10 MB of headers got %v", response.Status)
	}
}

// Bad input.

func TestBadMessagesAreAnsweredAndHarmNobody(t *testing.T) {
	addr, _ := start(t, newChat())
	for _, test := range []struct{ name, frames, words string }{
		{"not JSON", masked(0x81, "hello"), "JSON object with"},
		{"empty", masked(0x81, ""), "JSON object with"},
		{"an array", masked(0x81, `["chat"]`), "JSON object with"},
		{"null", masked(0x81, `null`), "JSON object with"},
		{"no event", masked(0x81, `{"data":{"data":"x"}}`), `with an "event"`},
		{"empty event", masked(0x81, `{"event":""}`), `with an "event"`},
		{"event not a string", masked(0x81, `{"event":5}`), `with an "event"`},
		{"two values", masked(0x81, `{"event":"chat","data":{"data":"x"}}{}`), "JSON object with"},
		{"unknown event", masked(0x81, `{"event":"dance"}`), "dance"},
		{"connect", masked(0x81, `{"event":"connect"}`), "connect"},
		{"disconnect", masked(0x81, `{"event":"disconnect","data":"x"}`), "disconnect"},
		{"error", masked(0x81, `{"event":"error","data":"x"}`), "error"},
		{"no data", masked(0x81, `{"event":"chat"}`), "chat"},
		{"data null", masked(0x81, `{"event":"chat","data":null}`), "chat"},
		{"data empty", masked(0x81, `{"event":"chat","data":{}}`), "chat"},
		{"data of null", masked(0x81, `{"event":"chat","data":{"data":null}}`), "chat"},
		{"data of a number", masked(0x81, `{"event":"broadcast","data":{"data":5}}`), "broadcast"},
		{"data a string", masked(0x81, `{"event":"chat","data":"x"}`), "chat"},
		{"data an array", masked(0x81, `{"event":"chat","data":[{"data":"x"}]}`), "chat"},
	} {
		t.Run(test.name, func(t *testing.T) {
			offender, other := dial(t, addr), dial(t, addr)
			offender.write([]byte(test.frames))
			offender.say(`{"event":"chat","data":{"data":"good"}}`)
			got := offender.next()
			if !strings.HasPrefix(got, `{"event":"error","data":"`) || !strings.Contains(strings.ReplaceAll(got, `\"`, `"`), test.words) {
				t.Errorf("answer %s, want an error with %s", got, test.words)
			}
			for _, goType := range []string{"main.", "json:", "struct", "Go ", "invalid character"} {
				if strings.Contains(got, goType) {
					t.Errorf("answer %s is not for people", got)
				}
			}
			offender.hears("grpchat", `"good"`)
			other.hears("grpchat", `"good"`)
		})
	}
}

func TestAMessageTooLongClosesAtOnceAndCostsNoMemory(t *testing.T) {
	addr, _ := start(t, newChat())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	c := dial(t, addr)
	c.write([]byte("\x81\xff\x40\x00\x00\x00\x00\x00\x00\x00mask")) // 2⁶² bytes announced, and none sent
	if code, reason := c.closeFrame(); code != 1009 {
		t.Errorf("got close code %d %q, want 1009", code, reason)
	}
	for range 16 {
		c.write(make([]byte, 64<<10))
	}
	for range 100 {
		dial(t, addr).write([]byte("\x81\xfe\xff\xffmask")) // 64 KiB announced
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 100*40<<10 {
		t.Errorf("allocated %d bytes", grown)
	}
}

func TestDeepNestingCostsNoMemory(t *testing.T) {
	addr, _ := start(t, newChat())
	c := dial(t, addr)
	stacks := func() uint64 {
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.StackInuse
	}
	before := stacks()
	c.say(`{"event":"chat","data":{"data":` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}}`)
	c.next()
	if cost := int64(stacks() - before); cost > 500_000 {
		t.Errorf("it cost %d bytes of stack", cost)
	}
}

func TestFragmentsMakeOneMessageAndPingsBetweenAreAnswered(t *testing.T) {
	addr, _ := start(t, newChat())
	c := dial(t, addr)
	text := `{"event":"chat","data":{"data":"grüß"}}`
	cut := strings.Index(text, "ü") + 1 // in the middle of a code point
	there := strings.Repeat("?", 125)   // as long as a ping may be
	c.write([]byte(masked(0x01, text[:cut]) + masked(0x89, there) + masked(0x00, "") + masked(0x8a, "unasked") + masked(0x80, text[cut:])))
	if head, payload := c.read(); head != 0x8a || payload != there {
		t.Errorf("the ping got %#x %q", head, payload)
	}
	c.hears("grpchat", `"grüß"`)
}

func TestAMessageOfExactlyTheLimitIsHandled(t *testing.T) {
	addr, _ := start(t, newChat())
	c := dial(t, addr)
	longest := strings.Repeat("x", maxMessageSize-len(`{"event":"chat","data":{"data":""}}`))
	text := `{"event":"chat","data":{"data":"` + longest + `"}}`
	for _, frames := range []string{masked(0x81, text), masked(0x01, text[:1000]) + masked(0x00, text[1000:]) + masked(0x80, "")} {
		c.write([]byte(frames))
		c.hears("grpchat", `"`+longest+`"`)
	}
}

func TestAMessageIsNoLongerThanItCame(t *testing.T) {
	addr, _ := start(t, newChat())
	c := dial(t, addr)
	for _, text := range []string{"<", ">", "&", "é", "\U0001f600", "\x7f"} {
		c.say(`{"event":"chat","data":{"data":"` + strings.Repeat(text, 5500) + `"}}`)
		c.hears("grpchat", `"`+strings.Repeat(text, 5500)+`"`)
	}
}

func TestWhatIsWrongOnTheWireClosesWithItsCodeAndReason(t *testing.T) {
	addr, _ := start(t, newChat())
	other := dial(t, addr)
	long := strings.Repeat("x", maxMessageSize)
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
		{"ping over 125 bytes", masked(0x89, strings.Repeat("x", 126)), 1002, "control frame"},
		{"close over 125 bytes", masked(0x88, "\x03\xe8"+strings.Repeat("x", 124)), 1002, "control frame"},
		{"continuation of nothing", masked(0x80, "{}"), 1002, "continuation"},
		{"continuation after a whole message", masked(0x81, "{}") + masked(0x00, "{}"), 1002, "continuation"},
		{"a message inside another", masked(0x01, "{") + masked(0x81, "}"), 1002, "finished"},
		{"a binary message inside a text", masked(0x01, "{") + masked(0x82, "}"), 1002, "finished"},
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
		{"too long", masked(0x81, long+"x"), 1009, "65536"},
		{"too long in fragments", masked(0x01, long) + masked(0x00, "x"), 1009, "65536"},
		{"too long, with a pong between", masked(0x01, long) + masked(0x8a, "") + masked(0x80, "x"), 1009, "65536"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c := dial(t, addr)
			c.write([]byte(masked(0x81, `{"event":"broadcast","data":{"data":"sent before"}}`) + test.frames))
			c.closes(test.code, test.reason)
			other.hears("grpchat", `"sent before"`)
		})
	}
}

func TestTheCloseFrameArrivesThoughMoreInputIsOnItsWay(t *testing.T) {
	t.Parallel()
	hub := NewHub()
	hub.On("connection", func(socket *Socket) {
		for n := range 150 {
			socket.Emit("n", fmt.Sprintf("%01000d", n))
		}
	})
	addr, _ := start(t, hub)
	for _, late := range []bool{false, true} {
		c := dial(t, addr)
		c.conn.(*net.TCPConn).SetReadBuffer(16 << 10)
		c.write(append([]byte(masked(0x83, "")), make([]byte, 100_000)...))
		if late {
			eventually(t, func() bool { return sockets(hub) == 0 }) // before the client has read it all
		}
		for n := range 150 {
			if !late {
				c.write(make([]byte, 100)) // resets the connection if the server has closed it
			}
			c.hears("n", fmt.Sprintf(`"%01000d"`, n))
		}
		c.closes(1002, "reserved")
	}
}

func TestCloseCodesAreEchoedIfTheyMayBeSent(t *testing.T) {
	addr, _ := start(t, newChat())
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

func TestAFrameBehindTheHandshakeIsNotLost(t *testing.T) {
	addr, _ := start(t, newChat())
	c := dial(t, addr, masked(0x81, `{"event":"chat","data":{"data":"early"}}`))
	c.hears("grpchat", `"early"`)
}

func TestAPanicEndsItsSocketAloneWith1011(t *testing.T) {
	hub, logged := NewHub(), make(logger, 10)
	log.SetOutput(logged)
	defer log.SetOutput(io.Discard)
	hub.On("connection", func(socket *Socket) {
		socket.On("bug", func(json.RawMessage) error { panic("a bug in a handler") })
		socket.On("hello", func(json.RawMessage) error { return hub.Emit("hello", nil) })
		socket.On("disconnect", func(json.RawMessage) error { panic("a bug in disconnect") })
	})
	addr, _ := start(t, hub)
	c, other := dial(t, addr), dial(t, addr)
	panics := func(words string) {
		t.Helper()
		if line := <-logged; !strings.Contains(line, words) || !strings.Contains(line, "hub_test.go") {
			t.Errorf("logged %q, want the panic and its stack", line)
		}
	}
	c.say(`{"event":"bug"}`)
	panics("a bug in a handler")
	c.closes(1011, "panicked")
	panics("a bug in disconnect")
	other.say(`{"event":"hello"}`)
	other.hears("hello", `null`)
	other.frame(0x88, "\x03\xe9")
	other.closes(1001) // in spite of the bug in disconnect
	panics("a bug in disconnect")
}

// Faults and load.

func TestStuckClientsAreDroppedAndOthersWaitOnce(t *testing.T) {
	t.Parallel()
	for _, stuck := range []int{1, 50} {
		t.Run(fmt.Sprint(stuck), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				listener := startPipes(t, newChat())
				for range stuck {
					defer listener.client(t).conn.Close() // never read from again
				}
				reader, talker := listener.client(t), listener.client(t)
				go talker.drain()
				go talker.chatter(2*maxQueue, 20_000)
				var longest time.Duration
				for got := 0; got < 2*maxQueue; {
					began := time.Now()
					got += len(reader.next())
					longest = max(longest, time.Since(began))
				}
				if longest > 2*time.Second {
					t.Errorf("others waited %v", longest)
				}
			})
		})
	}
}

func TestAClientThatReadsNoAnswersIsDroppedAndOthersWaitOnce(t *testing.T) {
	t.Parallel()
	for _, frame := range []string{masked(0x89, ""), masked(0x81, "garbage")} {
		synctest.Test(t, func(t *testing.T) {
			hub := newChat()
			listener := startPipes(t, hub)
			rude, a := listener.client(t), listener.client(t)
			defer rude.conn.Close()
			go rude.write([]byte(strings.Repeat(frame, 100_000)))
			synctest.Wait() // until it is stuck
			began := time.Now()
			for range 10 {
				a.say(`{"event":"chat","data":{"data":"hello"}}`)
				a.hears("grpchat", `"hello"`)
			}
			if took := time.Since(began); took > time.Second {
				t.Errorf("heard after %v", took)
			}
			synctest.Wait()
			if hub.socket(rude.id) != nil {
				t.Error("it is still there")
			}
		})
	}
}

func TestAClientThatReadsIsHeardAndAnsweredInABusyChat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := make(chan time.Time, 1)
		listener := startPipes(t, newChatWith("hello", func(json.RawMessage) error { heard <- time.Now(); return nil }))
		busy, talker := listener.client(t), listener.client(t)
		go talker.drain()
		go talker.flood() // as fast as busy takes it: its queue is always long
		defer talker.conn.Close()
		defer busy.conn.Close()
		began := time.Now()
		var asked time.Time
		for {
			head, _ := busy.read()
			if head == 0x8a {
				break
			} else if head != 0x81 || time.Since(began) > time.Minute {
				t.Fatalf("after %v: %#x", time.Since(began), head)
			}
			if asked.IsZero() && time.Since(began) > 10*time.Second {
				asked = time.Now()
				go busy.write([]byte(masked(0x89, "") + masked(0x81, `{"event":"hello"}`)))
			}
			time.Sleep(75 * time.Millisecond) // 800 KB a second
		}
		if took := time.Since(asked); took > 6*time.Second {
			t.Errorf("the pong came after %v", took)
		}
		if took := (<-heard).Sub(asked); took > 3*time.Second {
			t.Errorf("heard after %v", took)
		}
	})
}

func TestAHandlerThatEmitsToAStuckSocketWaitsNotLong(t *testing.T) {
	for _, name := range []string{"its own", "another's"} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub, took := NewHub(), make(chan time.Duration)
				var stuck *Socket // set before anyone whispers
				hub.On("connection", func(socket *Socket) {
					socket.On("whisper", func(json.RawMessage) error {
						began := time.Now()
						for range 2 * maxQueue / 20_000 {
							stuck.Emit("n", strings.Repeat("x", 20_000))
						}
						took <- time.Since(began)
						return nil
					})
				})
				listener := startPipes(t, hub)
				a, b := listener.client(t), listener.client(t)
				defer a.conn.Close() // it never reads
				stuck = hub.socket(a.id)
				go b.drain()
				if name == "its own" {
					b = a
				}
				b.say(`{"event":"whisper"}`)
				if waited := <-took; waited > time.Second {
					t.Errorf("it waited %v", waited)
				}
			})
		})
	}
}

func TestNobodyWaitsForASocketThatEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		c := startPipes(t, hub).client(t) // does not read on
		defer c.conn.Close()
		time.AfterFunc(100*time.Millisecond, hub.socket(c.id).Disconnect)
		began := time.Now()
		for range 2 * maxQueue / 20_000 {
			hub.Emit("n", strings.Repeat("x", 20_000))
		}
		if took := time.Since(began); took != 100*time.Millisecond {
			t.Errorf("Emit waited %v", took)
		}
	})
}

func TestAStuckClientThatEndsOrIsEndedIsGoneIn4s(t *testing.T) {
	for name, end := range map[string]func(*Socket, *client){
		"by its close frame":      func(_ *Socket, c *client) { c.frame(0x88, "\x03\xe8") },
		"by Disconnect":           func(s *Socket, _ *client) { s.Disconnect() },
		"by the server's stop":    func(s *Socket, _ *client) { s.hub.Close() },
		"by a breach":             func(_ *Socket, c *client) { c.frame(0x83, "") },
		"by the end of its input": func(_ *Socket, c *client) { c.conn.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hub := NewHub()
				c := startPipes(t, hub).client(t)
				for range 100 {
					hub.Emit("n", strings.Repeat("x", 10_000)) // several batches
				}
				began := time.Now()
				end(hub.sockets[c.id], c)
				hub.mu.Lock()
				for len(hub.sockets) > 0 {
					hub.socketLeft.Wait()
				}
				hub.mu.Unlock()
				if took := time.Since(began); took > 4*time.Second {
					t.Errorf("it took %v", took)
				}
			})
		})
	}
}

func TestOneShortMessageToAThousandSocketsTakesLittleMemory(t *testing.T) {
	hub := NewHub()
	addr, _ := start(t, hub)
	var clients [1000]*client
	for i := range clients {
		clients[i] = dial(t, addr)
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	hub.Emit("n", nil)
	for _, c := range clients {
		c.hears("n", "null")
	}
	runtime.ReadMemStats(&after)
	if grown := after.TotalAlloc - before.TotalAlloc; grown > 20<<20 {
		t.Errorf("it took %d bytes", grown)
	}
}

func TestAHandshakeThatFailsHoldsUpNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		listener := startPipes(t, newChat())
		reader, talker := listener.client(t), listener.client(t)
		go talker.drain()
		conn := listener.dial()
		defer conn.Close()
		io.WriteString(conn, handshake) // and do not take the answer
		synctest.Wait()
		go talker.chatter(2*maxQueue, 20_000)
		for got := 0; got < 2*maxQueue; {
			got += len(reader.next())
		}
	})
}

func TestASlowReaderIsDroppedAndAQuickOneKept(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		every time.Duration // for each 100 KB
		kept  bool
	}{{500 * time.Millisecond, false}, {time.Second, false}, {50 * time.Millisecond, true}, {25 * time.Millisecond, true}} {
		t.Run(fmt.Sprint(test.every), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				gone := make(chan string, 3)
				listener := startPipes(t, newChatWith("disconnect", func(reason json.RawMessage) error { gone <- string(reason); return nil }))
				slow, talker := listener.client(t), listener.client(t)
				go talker.drain()
				finished := make(chan bool)
				go func() {
					talker.chatter(2*maxQueue, 20_000)
					close(finished)
				}()
				go slow.drainSlowly(100_000, test.every)
				<-finished
				if kept := len(gone) == 0; kept != test.kept {
					t.Errorf("kept: %v", kept)
				}
				slow.conn.Close()
			})
		})
	}
}

func TestABusyReaderGetsItsPingsAndStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		listener := startPipes(t, newChat())
		busy, talker := listener.client(t), listener.client(t)
		go talker.drain()
		go talker.flood() // as fast as the reader takes it: its queue is always long
		defer talker.conn.Close()
		defer busy.conn.Close()
		for began := time.Now(); time.Since(began) < time.Minute; time.Sleep(120 * time.Millisecond) {
			head, payload := busy.read()
			if head == 0x89 {
				busy.frame(0x8a, payload)
			} else if head != 0x81 {
				t.Fatalf("after %v: %#x %s", time.Since(began), head, payload)
			}
		}
	})
}

func TestAPingHurriesNobodyWhoseQueueIsLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		c := startPipes(t, hub).client(t)
		time.Sleep(pingPeriod - 3*time.Second)
		for range 15 {
			hub.Emit("n", strings.Repeat("x", 100_000))
		}
		time.Sleep(8 * time.Second) // the ping is due, and the client reads again in 5 s
		for range 15 {
			c.next()
		}
		if head, payload := c.read(); head != 0x89 {
			t.Errorf("got %#x %.99q, want the ping", head, payload)
		}
	})
}

func TestAClientThatNeverReadsWhileTCPBuffersIsDropped(t *testing.T) {
	t.Parallel()
	hub := newChat()
	addr, _ := start(t, hub)
	stuck, reader, talker := dial(t, addr), dial(t, addr), dial(t, addr)
	go talker.drain()
	stuck.say(`{"event":"chat","data":{"data":"last words"}}`)
	go talker.chatter(8<<20, 20_000)
	for got := 0; got < 8<<20; {
		got += len(reader.next())
	}
	if hub.socket(stuck.id) != nil {
		t.Error("8 MB later it is still there")
	}
}

func TestAQueueThatOneEventFillsMakesNobodyWaitLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		c := startPipes(t, hub).client(t) // does not read on
		began := time.Now()
		hub.Emit("large", strings.Repeat("x", maxQueue))
		for range 3 {
			hub.Emit("next", nil)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("the next events waited %v", took)
		}
		c.conn.Close()
	})
}

func TestAFloodReachesAllInOrder(t *testing.T) {
	addr, _ := start(t, newChat())
	const readers, messages = 50, 5000
	var wg sync.WaitGroup
	for range readers {
		c := dial(t, addr)
		wg.Go(func() {
			for n := range messages {
				c.hears("grpchat", fmt.Sprintf(`"%d"`, n))
			}
		})
	}
	talker := dial(t, addr)
	go talker.drain()
	var all bytes.Buffer
	for n := range messages {
		all.WriteString(masked(0x81, fmt.Sprintf(`{"event":"chat","data":{"data":"%d"}}`, n)))
	}
	talker.write(all.Bytes())
	wg.Wait()
}

func TestSilentClientsArePingedAndVanishedOnesNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var gone atomic.Int32
		hub := NewHub()
		hub.On("connection", func(socket *Socket) {
			socket.On("disconnect", func(reason json.RawMessage) error {
				if string(reason) != `"connection lost"` {
					t.Errorf("reason %s", reason)
				}
				gone.Add(1)
				return nil
			})
		})
		c := startPipes(t, hub).client(t)
		began := time.Now()
		if head, _ := c.read(); head != 0x89 || time.Since(began) != pingPeriod {
			t.Errorf("got frame %#x after %v, want a ping after %v", head, time.Since(began), pingPeriod)
		}
		c.drain() // and say nothing
		synctest.Wait()
		if took := time.Since(began); gone.Load() != 1 || took > time.Minute {
			t.Errorf("%d disconnects after %v", gone.Load(), took)
		}
	})
}

func TestAPongOrAPingNowAndThenKeepsASocketAlive(t *testing.T) {
	for _, head := range []byte{0x89, 0x8a} {
		synctest.Test(t, func(t *testing.T) {
			c := startPipes(t, newChat()).client(t)
			go c.drain()
			for range 20 {
				time.Sleep(pingPeriod + pingPeriod/2)
				c.frame(head, "")
			}
			c.frame(0x88, "")
		})
	}
}

func TestABurstLeavesLittleBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hub := NewHub()
		c := startPipes(t, hub).client(t)
		for range 2 * maxIdleQueue {
			hub.Emit("n", nil)
		}
		for range 2 * maxIdleQueue {
			c.next()
		}
		synctest.Wait()
		s := hub.socket(c.id)
		s.mu.Lock()
		defer s.mu.Unlock()
		if cap(s.queue) > maxIdleQueue {
			t.Errorf("room for %d frames", cap(s.queue))
		}
	})
}

func TestNothingIsLeftBehind(t *testing.T) {
	hub := newChat()
	addr, _ := start(t, hub)
	dial(t, addr).conn.Close()
	eventually(t, func() bool { return sockets(hub) == 0 })
	before := runtime.NumGoroutine()
	for range 10 {
		var wg sync.WaitGroup
		for i := range 200 {
			wg.Go(func() {
				c := dial(t, addr)
				switch i % 4 {
				case 0:
					c.frame(0x88, "\x03\xe9")
					c.closes(1001)
				case 1:
					c.conn.(*net.TCPConn).SetLinger(0)
				case 2:
					c.write([]byte("\x81\xff")) // and no more
				}
				c.conn.Close()
			})
		}
		wg.Wait()
	}
	eventually(t, func() bool { return sockets(hub) == 0 && runtime.NumGoroutine() <= before+2 })
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

// The process.

func TestStopDeliversWhatWasQueuedAndClosesWith1001(t *testing.T) {
	t.Parallel()
	chat := startProcess(t, ".", "127.0.0.1:0")
	var stuck [3]*client
	for i := range stuck {
		stuck[i] = dial(t, chat.addr)
	}
	talker := dial(t, chat.addr)
	go talker.drain()
	var wg sync.WaitGroup
	counts := make(chan int, 100)
	for range cap(counts) {
		c := dial(t, chat.addr)
		wg.Go(func() {
			for n := 0; ; n++ {
				head, payload := c.read()
				if head != 0x81 {
					if code := binary.BigEndian.Uint16([]byte(payload + "\x00\x00")); head != 0x88 || code != 1001 {
						t.Errorf("after %d messages frame %#x %q", n, head, payload)
					}
					counts <- n
					return
				}
			}
		})
	}
	for range 1000 {
		talker.say(`{"event":"chat","data":{"data":"` + strings.Repeat("x", 1000) + `"}}`)
	}
	began := time.Now()
	chat.Process.Signal(syscall.SIGTERM)
	err := chat.Wait()
	if took := time.Since(began); err != nil || took > 5*time.Second {
		t.Errorf("ended after %v: %v", took, err)
	}
	wg.Wait()
	first := <-counts
	for len(counts) > 0 {
		if n := <-counts; n != first {
			t.Errorf("one got %d messages, another %d", first, n)
		}
	}
}

func TestWhoConnectsAsTheServerStopsIsClosedWith1001(t *testing.T) {
	hub := newChat()
	addr, _ := start(t, hub)
	hub.Close()
	dial(t, addr).closes(1001, "shutting down")
}

func TestASecondSignalEndsAtOnce(t *testing.T) {
	t.Parallel()
	chat := startProcess(t, ".", "127.0.0.1:0")
	c := dial(t, chat.addr)
	began := time.Now()
	chat.Process.Signal(syscall.SIGTERM) // a script's background job ignores SIGINT
	c.closeFrame()                       // and do not answer it
	chat.Process.Signal(syscall.SIGTERM)
	chat.Wait()
	if took := time.Since(began); took > time.Second {
		t.Errorf("ended after %v", took)
	}
}

func TestTheServerGoesOnWhenNobodyReadsItsLog(t *testing.T) {
	t.Parallel()
	chat := startProcess(t, ".", "127.0.0.1:0")
	chat.log.Close()
	for range 3 {
		c := dial(t, chat.addr) // is logged
		c.say(`{"event":"chat","data":{"data":"hello"}}`)
		c.hears("grpchat", `"hello"`)
		c.conn.Close()
	}
	c := dial(t, chat.addr)
	chat.Process.Signal(syscall.SIGTERM)
	c.closes(1001, "shutting down")
	if err := chat.Wait(); err != nil {
		t.Error("it ended with", err)
	}
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

// The parts.

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

// The README quotes sources and tests, and must not be left behind.
func TestTheReadmeQuotesWhatIsThere(t *testing.T) {
	read := func(name string) string { return string(must(os.ReadFile(name))) }
	lines := map[string]map[string]int{} // by file
	for _, path := range []string{"go.mod", "main.go", "hub.go", "public/index.html", "public/script.js", "public/socket.io/socket.io.js"} {
		name := filepath.Base(path)
		lines[name] = map[string]int{}
		for line := range strings.Lines(read(path)) {
			lines[name][strings.TrimSpace(line)]++
		}
	}
	readme, tests := read("README.md"), read("hub_test.go")+read("e2e/e2e_test.go")
	section, quotes := "", map[string]int{}
	for line := range strings.Lines(readme) {
		if strings.HasPrefix(line, "## ") {
			section = strings.TrimSpace(line)
		}
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "| "), " | ")
		if len(cells) < 3 || !strings.Contains(line, "`") {
			continue
		}
		switch section {
		case "## Line by line": // the tutorial, files, lines, what crosses the wire
			files, sources := strings.Split(cells[1], "<br>"), strings.Split(cells[2], "<br>")
			for i, source := range sources {
				quotes[section]++
				file := strings.Trim(files[min(i, len(files)-1)], "`")
				if lines[file][strings.Trim(source, "`")] == 0 {
					t.Errorf("%s has no line %s", file, source)
				}
			}
		case "## The hub in forty lines": // a client, the naive hub, an answer that names parts of hub.go
			quotes[section]++
			for _, name := range regexp.MustCompile("`([A-Za-z.]+)`").FindAllStringSubmatch(cells[2], -1) {
				if part := strings.TrimPrefix(name[1], "Hub."); !strings.HasSuffix(part, ".go") && !strings.Contains(read("hub.go")+read("main.go"), part) {
					t.Errorf("hub.go has no %s", part)
				}
			}
		case "## Break it": // the line, the change, what happens, the test
			if !strings.HasPrefix(line, "| `") {
				continue
			}
			quotes[section]++
			source := strings.ReplaceAll(strings.Trim(cells[0], "`"), `\|`, "|")
			if n := lines["hub.go"][source] + lines["script.js"][source]; n != 1 {
				t.Errorf("%d lines %s", n, source)
			}
			if test := strings.Trim(cells[3], "`"); !strings.Contains(tests, "func "+test+"(") {
				t.Errorf("no test %s", test)
			}
		}
	}
	if quotes["## Line by line"] < 25 || quotes["## The hub in forty lines"] < 12 || quotes["## Break it"] < 10 {
		t.Errorf("only %v quotes: has the README another form now?", quotes)
	}
	_, naive, _ := strings.Cut(tests, "// The hub in forty lines.\n\n")
	naive, _, _ = strings.Cut(naive, "\n// What breaks the hub in forty lines.")
	if !strings.Contains(readme, "```go\n"+naive+"```") {
		t.Error("the README has another hub in forty lines")
	}
}

// FuzzWire sends what no client should behind a handshake; the next client must
// be served, and nothing may panic.
func FuzzWire(f *testing.F) {
	for _, seed := range []string{masked(0x81, `{"event":"chat","data":{"data":"x"}}`), masked(0x01, "{") + masked(0x89, "") + masked(0x80, "}"),
		masked(0x88, "\x03\xe8"), "\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff", "\x81\xfe\x00\x02mask", "\x00"} {
		f.Add([]byte(seed))
	}
	addr, server := start(f, newChat())
	server.ErrorLog = log.New(logger(nil), "", 0)
	log.SetOutput(logger(nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c := dial(t, addr)
		c.write(raw)
		c.conn.(*net.TCPConn).CloseWrite()
		c.drain()
		next := dial(t, addr)
		next.say(`{"event":"chat","data":{"data":"next"}}`)
		next.hears("grpchat", `"next"`)
		next.conn.Close()
	})
}

// FuzzRoute sends any text; it must be an event that is known, or be refused in
// words.
func FuzzRoute(f *testing.F) {
	f.Add(`{"event":"chat","data":{"data":"x"}}`)
	f.Add(`{"event":"chat","data":{"data":null}}`)
	f.Add(`[{"event":5}]`)
	f.Fuzz(func(t *testing.T, text string) {
		var got *string
		s := &Socket{handlers: map[string][]Handler{"chat": {withChatData(func(chatdata chatData) error {
			got = &chatdata.Data
			return nil
		})}}}
		if err := s.route([]byte(text)); (err == nil) != (got != nil) || err != nil && err.Error() == "" {
			t.Errorf("%q: handled %v, error %v", text, got, err)
		}
	})
}

func BenchmarkEmit(b *testing.B) {
	for _, n := range []int{1, 100, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			hub := NewHub()
			addr, _ := start(b, hub)
			var got sync.WaitGroup
			message := len(`{"event":"grpchat","data":"` + strings.Repeat("x", 100) + `"}`)
			for range n {
				c := dial(b, addr)
				got.Go(func() {
					if _, err := io.CopyN(io.Discard, c.in, int64(b.N*(message+4))); err != nil {
						b.Error(err)
					}
				})
			}
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			b.ResetTimer()
			for range b.N {
				hub.Emit("grpchat", strings.Repeat("x", 100))
			}
			got.Wait()
			runtime.ReadMemStats(&after)
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "deliveries/s")
			b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N*n), "allocs/delivery")
		})
	}
}

// BenchmarkIdle counts both ends, of which the client's has some 5 KB.
func BenchmarkIdle(b *testing.B) {
	addr, _ := start(b, NewHub())
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	before := heap()
	for range b.N {
		dial(b, addr)
	}
	b.ReportMetric(float64(heap()-before)/float64(b.N), "B/socket")
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

func TestTheNaiveHubIsTheTutorialsChat(t *testing.T) {
	hub := &naiveHub{conns: map[*websocket.Conn]bool{}}
	server := httptest.NewServer(websocket.Server{Handler: hub.serve})
	defer server.Close()
	addr := server.Listener.Addr().String()
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
			var slow sync.WaitGroup
			slow.Go(func() {
				for range 20 {
					s.a.next()
					time.Sleep(time.Second)
				}
			})
			defer slow.Wait()
			began := time.Now()
			go s.b.write([]byte(strings.Repeat(masked(0x81, hello), 20)))
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
		{"a message of a megabyte", says(masked(0x81, strings.Replace(hello, "hello", strings.Repeat("x", 1<<20), 1))), `"data":"xxx`, "close 1009"},
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
				if got := test.happens(newScene(t, newChat())); !strings.Contains(got, test.ours) {
					t.Errorf("our hub: %.200s, want %s", got, test.ours)
				}
			})
		})
	}
}

func TestAPanicCutsAClientOfTheNaiveHubWithoutACloseFrame(t *testing.T) {
	run := func(t *testing.T, hub any, want string) {
		s := newScene(t, hub)
		go s.b.drain()
		s.a.say(`{"event":"broadcast","data":{"data":"hello"}}`)
		if got := s.a.sees(); !strings.Contains(got, want) {
			t.Errorf("%T: %s, want %s", hub, got, want)
		}
	}
	synctest.Test(t, func(t *testing.T) {
		naive := &naiveHub{conns: map[*websocket.Conn]bool{nil: true}} // a bug: Send to nil panics
		run(t, naive, "EOF")
	})
	synctest.Test(t, func(t *testing.T) {
		ours := NewHub()
		ours.On("connection", func(socket *Socket) {
			socket.On("broadcast", func(json.RawMessage) error { panic("a bug") })
		})
		run(t, ours, "close 1011")
	})
}

// A scene is a hub and two clients, connected by pipes.
type scene struct {
	pipes
	a, b *client
	emit func(event string, data any)
	stop func()
}

func newScene(t *testing.T, hub any) scene {
	s := scene{pipes: make(pipes)}
	server := &http.Server{}
	switch hub := hub.(type) {
	case *naiveHub:
		server.Handler = websocket.Server{Handler: hub.serve}
		s.emit = func(event string, data any) { hub.emit(event, data, nil) }
		s.stop = func() { server.Close() } // it ends no connection that is a WebSocket
	case *Hub:
		server.Handler = hub
		s.emit = func(event string, data any) { hub.Emit(event, data) }
		s.stop = hub.Close
	}
	go server.Serve(s.pipes)
	s.a, s.b = s.client(t), s.client(t)
	t.Cleanup(func() {
		s.a.conn.Close()
		s.b.conn.Close()
		s.stop()
		server.Close()
	})
	return s
}

// sees says what the client gets next from the server: "nothing" if nothing comes for a minute.
func (c *client) sees() string {
	switch head, payload := c.read(); {
	case head == 0x81:
		return payload
	case head == 0x88 && len(payload) > 1:
		return fmt.Sprintf("close %d %s", binary.BigEndian.Uint16([]byte(payload)), payload[2:])
	case head == 0x89:
		return "ping"
	case strings.Contains(payload, "timeout"):
		return "nothing"
	default:
		return payload
	}
}

// encodings counts how often it is encoded.
type encodings int

func (n *encodings) MarshalJSON() ([]byte, error) {
	*n++
	return []byte("null"), nil
}

// What the tests stand on.

// start serves a hub on loopback for the length of a test.
func start(t testing.TB, hub *Hub) (addr string, server *http.Server) {
	s := httptest.NewUnstartedServer(nil)
	s.Config = newServer(hub)
	s.Start()
	t.Cleanup(func() {
		hub.Close()
		s.Close()
	})
	return s.Listener.Addr().String(), s.Config
}

// newChatWith is the chat, with one handler more.
func newChatWith(event string, handle Handler) *Hub {
	hub := newChat()
	chat := hub.onConnection
	hub.On("connection", func(socket *Socket) {
		chat(socket)
		socket.On(event, handle)
	})
	return hub
}

// pipes is a network in memory, for tests in which time is not real. A pipe has
// no buffer, so a client that does not read is stuck at once.
type pipes chan net.Conn

func startPipes(t *testing.T, hub *Hub) pipes {
	p := make(pipes)
	server := newServer(hub)
	go server.Serve(p)
	t.Cleanup(func() {
		hub.Close()
		server.Close()
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
func (p pipes) client(t testing.TB) *client { return shakeHands(t, p.dial(), "") }

// A client is a WebSocket client that does what it is told, legal or not.
type client struct {
	t    testing.TB
	conn net.Conn
	in   *bufio.Reader
	id   string
}

// dial returns a client that has got its connect message. What is early goes
// out together with the handshake.
func dial(t testing.TB, addr string, early ...string) *client {
	t.Helper()
	c := shakeHands(t, must(net.Dial("tcp", addr)), strings.Join(early, ""))
	t.Cleanup(func() { c.conn.Close() })
	return c
}

const handshake = "GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"

func shakeHands(t testing.TB, conn net.Conn, early string) *client {
	t.Helper()
	c := &client{t: t, conn: conn, in: bufio.NewReader(conn)}
	c.write([]byte(handshake + early))
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

// flood sends chats until the connection ends.
func (c *client) flood() {
	frame := []byte(masked(0x81, `{"event":"chat","data":{"data":"`+strings.Repeat("x", 60_000)+`"}}`))
	for err := error(nil); err == nil; _, err = c.conn.Write(frame) {
	}
}

// chatter sends chats of a size until they add up to total.
func (c *client) chatter(total, size int) {
	frame := []byte(masked(0x81, `{"event":"chat","data":{"data":"`+strings.Repeat("x", size)+`"}}`))
	for range total/size + 1 {
		c.write(frame)
	}
}

// read returns the next frame's first byte and its payload; 0 if there is none.
func (c *client) read() (head byte, payload string) {
	c.conn.SetReadDeadline(time.Now().Add(time.Minute))
	return c.readFrame()
}

// readFrame is read, within the time that the caller has set.
func (c *client) readFrame() (head byte, payload string) {
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
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
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

// endless reads as its text, then as x for ever.
type endless string

func (e endless) Read(p []byte) (int, error) {
	return copy(p, string(e)+strings.Repeat("x", len(p))), nil
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func eventually(t *testing.T, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !condition(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatal("never came true")
		}
	}
}
