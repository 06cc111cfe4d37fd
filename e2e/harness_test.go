package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"golang.org/x/net/websocket"
)

var (
	program string          // the chat, built
	browser context.Context // one for all tests
)

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "chat")
	defer os.RemoveAll(dir)
	program = filepath.Join(dir, "chat.exe") // an ending that only Windows cares about
	build := exec.Command("go", "build", "-o", program, ".")
	build.Dir, build.Stderr = "..", os.Stderr
	if err = errors.Join(err, build.Run()); err != nil {
		fmt.Println("cannot build the chat:", err)
		return 1
	}
	allocator, cancel := chromedp.NewExecAllocator(context.Background(),
		append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox, chromedp.DisableGPU, chromedp.IgnoreCertErrors,
			chromedp.Flag("disable-quic", true), chromedp.Flag("disable-component-update", true))...)
	defer cancel()
	browser, cancel = chromedp.NewContext(allocator)
	defer cancel()
	err = chromedp.Do(browser)
	if errors.Is(err, exec.ErrNotFound) {
		fmt.Println("These tests need Chromium: install it (Debian: apt-get install chromium) and run them again.")
		if os.Getenv("CI") == "" {
			return 0
		}
	}
	if err != nil {
		fmt.Println("cannot start the browser:", err)
		return 1
	}
	defer chromedp.Cancel(browser)
	return m.Run()
}

const limit = time.Minute // for what takes two seconds at most, on a machine that does nothing else

// until waits for a condition, and fails with the state in which it stayed.
func until(t *testing.T, what string, holds func() (ok bool, state any)) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; time.Sleep(5 * time.Millisecond) {
		ok, state := holds()
		if ok {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never came true: %.900s; it is %.900v", what, state)
		}
	}
}

// A server is the chat, running.
type server struct {
	t   *testing.T
	cmd *exec.Cmd
	url string
	mu  sync.Mutex // guards log
	log []byte
}

func start(t *testing.T) *server { t.Helper(); return startAt(t, "127.0.0.1:0") }

func startAt(t *testing.T, addr string) *server {
	t.Helper()
	return startBy(t, exec.Command(program, "-addr", addr))
}

func startBy(t *testing.T, cmd *exec.Cmd) *server {
	t.Helper()
	s := &server{t: t, cmd: cmd}
	s.cmd.Dir, s.cmd.Stderr = "..", s
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.kill)
	_, s.url, _ = strings.Cut(strings.TrimSpace(s.logs("listening on ")), "listening on ")
	return s
}

func (s *server) kill() { s.cmd.Process.Kill(); s.cmd.Wait() }

// Write takes the server's log.
func (s *server) Write(line []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = append(s.log, line...)
	return len(line), nil
}

// logs waits for words in the log, and returns it.
func (s *server) logs(words string) (log string) {
	s.t.Helper()
	until(s.t, "the log has "+words, func() (bool, any) {
		s.mu.Lock()
		defer s.mu.Unlock()
		log = string(s.log)
		return strings.Contains(log, words), log
	})
	return log
}

// A fake serves the same page, but its sockets do what a test says.
type fake struct {
	*httptest.Server
	t       *testing.T
	refuses atomic.Bool
	dials   chan *websocket.Conn
}

func pretend(t *testing.T, serve func(http.Handler) *httptest.Server) *fake {
	f := &fake{t: t, dials: make(chan *websocket.Conn)}
	sockets := websocket.Server{Handler: func(ws *websocket.Conn) { // of any origin
		select {
		case f.dials <- ws:
			<-t.Context().Done()
		case <-t.Context().Done():
		}
	}}
	files := http.FileServer(http.Dir("../public"))
	f.Server = serve(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Header.Get("Upgrade") == "":
			files.ServeHTTP(w, r)
		case f.refuses.Load():
			http.Error(w, "not now", http.StatusServiceUnavailable)
		default:
			sockets.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(f.Close)
	return f
}

// A peer is the fake's end of a connection.
type peer struct {
	*testing.T
	ws *websocket.Conn
}

// accept waits for the page to dial.
func (f *fake) accept() peer {
	f.t.Helper()
	select {
	case ws := <-f.dials:
		ws.SetDeadline(time.Now().Add(limit))
		return peer{f.t, ws}
	case <-time.After(limit):
		f.t.Fatal("the page does not dial")
		return peer{}
	}
}

// greet accepts a connection and gives it an id.
func (f *fake) greet(id string) peer {
	f.t.Helper()
	c := f.accept()
	c.says(fmt.Sprintf(`{"event":"connect","data":{"id":%q}}`, id))
	return c
}

func (c peer) says(message any) {
	c.Helper()
	if err := websocket.Message.Send(c.ws, message); err != nil {
		c.Fatal(err)
	}
}

func (c peer) hears(want string) {
	c.Helper()
	var got string
	if err := websocket.Message.Receive(c.ws, &got); err != nil || got != want {
		c.Fatalf("the page sent %q, %v, want %q", got, err, want)
	}
}

// closes ends the connection with a close code, or without a word for 1006.
func (c peer) closes(code int) {
	if code != 1006 {
		c.ws.WriteClose(code)
	}
	c.ws.SetDeadline(time.Now()) // or else Close would say 1000
	c.ws.Close()
}

// A tab of the browser.
type tab struct {
	t   *testing.T
	ctx context.Context
}

// clock makes a page's time the test's: timers wait for elapse().
const clock = `
	const timers = new Map(), delays = [];
	let dials = 0;
	const retries = () => delays.map(Math.round).filter((ms) => ms < 10_000); // the others limit a dial
	setTimeout = (fn, delay) => { timers.set(delays.push(delay), fn); return delays.length; };
	clearTimeout = (id) => timers.delete(id);
	const elapse = () => { for (const [id, fn] of [...timers]) if (timers.delete(id)) fn(); };
	WebSocket = class extends WebSocket { constructor(url) { super(url); dials++; } };
	Math.random = () => 0;`

// open opens a page in a tab, after scripts that run before the page's own.
func open(t *testing.T, url string, scripts ...string) *tab {
	t.Helper()
	ctx, _ := chromedp.NewContext(browser, chromedp.WithListener(func(ev any) {
		if ev, ok := ev.(*runtime.EventExceptionThrown); ok {
			t.Error("nobody caught in the page: ", ev.ExceptionDetails.Exception.Description)
		}
	}))
	t.Cleanup(func() { chromedp.Cancel(ctx) })
	p := &tab{t, ctx}
	call(p, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true})
	for _, script := range scripts {
		call(p, page.AddScriptToEvaluateOnNewDocument, page.AddScriptToEvaluateOnNewDocumentParams{Source: script})
	}
	p.do(chromedp.Navigate(url))
	return p
}

// enter opens the chat and waits until it is connected.
func enter(t *testing.T, s *server) *tab {
	t.Helper()
	p := open(t, s.url)
	p.status("connected as")
	return p
}

func call[P, R any](p *tab, command cdp.Command[P, R], params P) R {
	p.t.Helper()
	result, err := chromedp.Call(p.ctx, command, params)
	if err != nil {
		p.t.Fatal(err)
	}
	return result
}

func (p *tab) do(actions ...chromedp.Action[chromedp.Void]) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.ctx, limit)
	defer cancel()
	if err := chromedp.Do(ctx, actions...); err != nil {
		p.t.Fatal(err)
	}
}

// js runs JavaScript in the page.
func (p *tab) js(script string) {
	p.t.Helper()
	p.do(chromedp.Evaluate[chromedp.Void](script))
}

// sees waits until an expression in the page has a value.
func (p *tab) sees(expression string, want any) {
	p.t.Helper()
	until(p.t, fmt.Sprintf("%s is %v", expression, want), func() (bool, any) {
		ctx, cancel := context.WithTimeout(p.ctx, time.Second) // a page that is being left may not answer
		defer cancel()
		got, err := chromedp.Run(ctx, chromedp.Evaluate[[]byte](expression))
		if err != nil {
			return false, err
		}
		value := reflect.New(reflect.TypeOf(want))
		err = json.Unmarshal(got, value.Interface())
		return err == nil && reflect.DeepEqual(value.Elem().Interface(), want), string(got)
	})
}

// shows waits until these are the messages.
func (p *tab) shows(want ...string) {
	p.t.Helper()
	p.sees(`[...document.querySelectorAll("#messages li")].map((li) => li.textContent)`, append([]string{}, want...))
}

func (p *tab) status(words string) {
	p.t.Helper()
	p.sees(fmt.Sprintf(`document.querySelector("#status").textContent.includes(%q)`, words), true)
}

func (p *tab) id() string {
	p.t.Helper()
	id, err := chromedp.Run(p.ctx, chromedp.Evaluate[string]("socket.id"))
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

func (p *tab) press(keys string, modifiers ...chromedp.Modifier) {
	p.t.Helper()
	p.do(chromedp.KeyEvent(keys, chromedp.KeyModifiers(modifiers...)))
}

func (p *tab) click(selector chromedp.CSS) { p.t.Helper(); p.do(chromedp.Click(selector)) }

// types puts a text into the input, as from the clipboard.
func (p *tab) types(text string) {
	p.t.Helper()
	p.do(chromedp.Focus(chromedp.CSS("#msg")))
	call(p, input.InsertText, input.InsertTextParams{Text: text})
}

// says types a text and presses Enter.
func (p *tab) says(text string) { p.t.Helper(); p.types(text); p.press(kb.Enter) }
