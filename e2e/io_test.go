package e2e

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/heapprofiler"
	"github.com/chromedp/chromedp"
	"golang.org/x/net/websocket"
)

// What io() promises beside the calls of the tutorial.

func TestItReconnectsWhereverTheFirstDialGotThrough(t *testing.T) {
	serve := func(h http.Handler) *httptest.Server {
		return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodHead {
				panic(http.ErrAbortHandler) // this server cuts HEAD
			}
			w.Header().Set("Content-Security-Policy", "connect-src "+r.URL.Query().Get("allow"))
			h.ServeHTTP(w, r)
		}))
	}
	for name, c := range map[string]struct{ policy, user string }{
		"a policy that allows WebSockets alone": {"ws:", ""},
		"a policy that allows one host":         {"ws://127.0.0.1:*", ""},
		"a server that cuts HEAD":               {"*", ""},
		"a user and a password":                 {"*", "user:secret@"},
	} {
		t.Run(name, func(t *testing.T) {
			f := pretend(t, serve)
			p := open(t, f.URL+"?allow="+c.policy, clock)
			f.greet("page")
			p.js(fmt.Sprintf(`
				let asked = 0;
				fetch = ((native) => (...args) => { asked++; return native(...args); })(fetch);
				const own = io(%q)`, "//"+c.user+strings.TrimPrefix(f.URL, "http://")))
			for _, id := range []string{"a", "b", "c"} {
				end := f.greet(id)
				p.sees("own.id", id)
				end.closes(1006)
				p.sees("[own.connected, timers.size]", []any{false, 1.0})
				p.js("elapse()")
			}
			f.greet("d")
			p.sees("[own.id, asked]", []any{"d", 0.0})
		})
	}
}

// Firefox delays a WebSocket after failed ones to the same host, port and path.
func TestEachDialHasAFreshPathUnlessTheAddressHasOne(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL)
	f.greet("page")
	for n, address := range []string{"/?room=5", "/chat?room=5"} {
		p.js(fmt.Sprintf("const own%d = io(%q)", n, address))
		paths := map[string]bool{}
		for i := range 3 {
			c := f.greet(fmt.Sprint(i))
			p.sees(fmt.Sprintf("own%d.id", n), fmt.Sprint(i))
			url := c.ws.Request().URL
			paths[url.Path] = true
			if url.RawQuery != "room=5" {
				t.Errorf("io(%q) dials %s", address, url)
			}
			p.js(fmt.Sprintf("own%d.disconnect().connect()", n))
		}
		f.accept()
		if n == 0 && (len(paths) != 3 || paths["/"]) || n == 1 && (len(paths) != 1 || !paths["/chat"]) {
			t.Errorf("io(%q) dials the paths %v", address, paths)
		}
	}
}

func TestAConnectionThatIsNotMadeInTenSecondsIsTriedAgain(t *testing.T) {
	mute, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mute.Close()
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL, clock)
	p.js(fmt.Sprintf(`
		let errors = 0, muteErrors = 0, faults = 0;
		addEventListener("error", (ev) => { faults++; ev.preventDefault(); });
		socket.on("connect_error", (e) => { errors += e instanceof Error; });
		const other = io(%q).on("connect_error", () => muteErrors++)`, mute.Addr()))
	c := f.accept() // answers 101, but never says "connect"
	unanswered, err := mute.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer unanswered.Close()
	p.sees("[delays, errors, muteErrors]", []any{[]any{10000.0, 10000.0}, 0.0, 0.0})
	c.says(`{"event":"connect"}`) // without an id, this is none
	p.sees("faults", 1)
	p.js("elapse()")
	p.sees("[errors, muteErrors, timers.size]", []int{1, 1, 2})
	p.status("cannot reach the server, trying again")
	if err := websocket.Message.Receive(c.ws, new(string)); err != io.EOF {
		t.Error("the page keeps its connection:", err)
	}
	p.js("elapse()")
	f.greet("late").says(`{"event":"grpchat","data":"in time"}`)
	p.shows("in time")
	p.js("other.disconnect()")
	p.sees("[socket.id, errors, timers.size]", []any{"late", 1.0, 0.0}) // nothing ends it after connect
}

func TestAServerThatClosesWith1000BeforeConnectIsTriedAgain(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL, clock)
	p.js(`
		let errors = 0, told = 0;
		socket.on("connect_error", (e) => { errors += e instanceof Error; }).on("disconnect", () => told++)`)
	for n := range 3 {
		f.accept().closes(1000)
		p.sees("[errors, told, timers.size]", []int{n + 1, 0, 1})
		p.js("elapse()")
	}
	f.greet("x")
	p.status("connected as x")
}

func TestConnectAfterDisconnectStartsAnew(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	f.refuses.Store(true)
	p := open(t, f.URL, clock)
	for _, want := range [][]int{{1000}, {1000, 2000}, {1000, 2000, 4000}, {1000, 2000, 4000, 5000}} {
		p.sees("retries()", want)
		p.js("elapse()")
	}
	p.js("delays.length = 0; timers.clear(); socket.disconnect().connect()")
	p.sees("retries()", []int{1000})
}

func TestItWorksWhereWebSocketIsWrapped(t *testing.T) {
	for name, wrap := range map[string]string{
		"by a function": `WebSocket = ((Native) => function (url) { return new Native(url); })(WebSocket)`,
		"by an object": `WebSocket = ((Native) => class {
			constructor(url) { this.ws = new Native(url); }
			get readyState() { return this.ws.readyState; }
			set onmessage(fn) { this.ws.onmessage = fn; }
			set onclose(fn) { this.ws.onclose = fn; }
			send(text) { this.ws.send(text); }
			close(code) { this.ws.close(code); }
		})(WebSocket)`,
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, start(t).url, wrap)
			p.status("connected as")
			p.says("hello")
			p.shows("hello")
			p.js("socket.disconnect().connect()")
			p.status("connected as")
		})
	}
}

func TestIoWorksInWorkers(t *testing.T) {
	p := enter(t, start(t))
	p.js(`
		const script = (say) => URL.createObjectURL(new Blob([
			"importScripts('" + location.origin + "/socket.io/socket.io.js');" +
			"const socket = io().emit('chat', { data: 'from a worker' });" + say]));
		const worker = new Worker(script("socket.on('grpchat', () => postMessage(socket.id));"));
		const shared = new SharedWorker(script("onconnect = ({ ports: [port] }) => socket.on('grpchat', () => port.postMessage(socket.id));"));
		const ids = new Set([socket.id]);
		worker.onmessage = shared.port.onmessage = ({ data }) => ids.add(data)`)
	p.sees("messages.children.length", 2)
	p.js(`socket.emit("chat", { data: "to all" })`)
	p.sees("ids.size", 3)
}

func TestSocketsThatHaveLeftAreFreed(t *testing.T) {
	p := open(t, start(t).url+"/none", `
		let listeners = 0;
		const { addEventListener: add, removeEventListener: remove } = window;
		window.addEventListener = (...args) => { listeners++; add(...args); };
		window.removeEventListener = (...args) => { listeners--; remove(...args); };`)
	p.js(`
		const script = document.createElement("script");
		let left = [], gone = 0;
		const one = () => {
			const socket = io().on("connect", () => socket.disconnect());
			socket.on("disconnect", () => { if (++gone < 100) one(); }); // all at once, Chromium would delay them
			left.push(new WeakRef(socket));
		};
		script.onload = one;
		script.src = "/socket.io/socket.io.js";
		document.body.append(script)`)
	p.sees("gone", 100)
	until(t, "all are freed", func() (bool, any) {
		call(p, heapprofiler.CollectGarbage, cdp.Empty{})
		alive, err := chromedp.Run(p.ctx, chromedp.Evaluate[int]("left.filter((ref) => ref.deref()).length"))
		return alive == 0 && err == nil, alive
	})
	p.js("let n = 0; const again = io().on('connect', () => { if (++n < 40) again.disconnect().connect(); })")
	p.sees("[n, listeners <= 3, again.connected]", []any{40.0, true, true})
}

// A page that has been left, and shown again.

// watched counts the page's live connections and timers: also right after pagehide.
const watched = clock + `
	const made = [], left = [];
	WebSocket = class extends WebSocket { constructor(url) { super(url); made.push(this); } };
	const alive = () => made.filter((ws) => ws.readyState < 2).length + timers.size;`

// leaveAndComeBack leaves the page and goes back, to the same page and not to a new one.
func (p *tab) leaveAndComeBack() {
	p.t.Helper()
	p.js(`
		var fromHistory = false;
		addEventListener("pagehide", () => left.push(alive()));
		addEventListener("pageshow", (ev) => { fromHistory = ev.persisted; });
		location = "/script.js"`)
	p.sees("location.pathname", "/script.js")
	p.js("history.back()")
	p.sees("window.fromHistory", true)
}

func TestDisconnectCountsInWhateverHandlerAsThePageIsLeft(t *testing.T) {
	s := start(t)
	for name, c := range map[string]struct{ before, after string }{
		"the disconnect handler":                  {after: `socket.on("disconnect", () => socket.disconnect())`},
		"a pagehide handler that was added first": {before: `addEventListener("pagehide", () => socket.disconnect());`},
		"a pagehide handler that was added last":  {after: `addEventListener("pagehide", () => socket.disconnect())`},
		"a pageshow handler that was added first": {before: `addEventListener("pageshow", (ev) => ev.persisted && socket.disconnect());`},
		"a pageshow handler that was added last":  {after: `addEventListener("pageshow", (ev) => ev.persisted && socket.disconnect())`},
		"the last of many calls":                  {after: `socket.on("disconnect", () => socket.connect().disconnect().connect().disconnect())`},
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, s.url, watched+c.before)
			p.status("connected as")
			p.js(c.after)
			p.leaveAndComeBack()
			p.sees("[left, alive(), socket.connected]", []any{[]any{0.0}, 0.0, false})
			p.js("socket.connect()")
			p.sees("socket.connected", true)
		})
	}
}

func TestConnectWaitsUntilThePageThatWasLeftIsShownAgain(t *testing.T) {
	s := start(t)
	for name, c := range map[string]struct {
		before, after string
		dials         int
	}{
		"the disconnect handler":                  {"", `socket.on("disconnect", () => socket.connect())`, 2},
		"a pagehide handler that was added first": {`addEventListener("pagehide", () => socket.disconnect().connect());`, "", 3},
		"a pagehide handler that was added last":  {"", `addEventListener("pagehide", () => socket.disconnect().connect())`, 2},
		"a pageshow handler that was added first": {`addEventListener("pageshow", (ev) => ev.persisted && socket.disconnect().connect());`, "", 2},
	} {
		t.Run(name, func(t *testing.T) {
			p := open(t, s.url, watched+c.before)
			p.status("connected as")
			p.js(c.after)
			p.leaveAndComeBack()
			p.sees("[left, alive(), dials, socket.connected]", []any{[]any{0.0}, 1.0, float64(c.dials), true})
		})
	}
	t.Run("a new socket", func(t *testing.T) {
		p := open(t, s.url, watched)
		p.status("connected as")
		p.js(`let own; socket.on("disconnect", () => { own ??= io(); })`)
		p.leaveAndComeBack()
		p.sees("[left, alive(), dials, socket.connected, own.connected]", []any{[]any{0.0}, 2.0, 3.0, true, true})
	})
}

func TestAPageThatWasWaitingToReconnectDoesSoAsItIsShownAgain(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	f.refuses.Store(true)
	p := open(t, f.URL, watched)
	p.status("cannot reach the server, trying again")
	f.refuses.Store(false)
	p.leaveAndComeBack()
	p.sees("[left, dials]", []any{[]any{0.0}, 2.0})
	f.greet("x")
	p.status("connected as x")
	p.sees("timers.size", 0)
}

func TestThePageshowOfAPageThatWasNotLeftDialsNothing(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	f.refuses.Store(true)
	p := open(t, f.URL, clock)
	p.status("cannot reach the server, trying again")
	p.js(`dispatchEvent(new Event("pageshow"))`) // as after a load that took long
	p.sees("[dials, timers.size]", []int{1, 1})
}

// The network is lost once: so each handler runs once, though the socket connects anew.
func TestHandlersMayConnectAnewAsTheNetworkIsLost(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL, clock)
	f.greet("x")
	p.status("connected as x")
	p.js(`
		let told = 0;
		const again = () => { told++; socket.disconnect().connect(); };
		socket.on("disconnect", again).on("connect_error", again);
		dispatchEvent(new Event("offline"))`)
	f.greet("y")
	p.sees("[told, dials, socket.id]", []any{1.0, 2.0, "y"})
}

func TestOnAnyOutgoingShowsWhatIsSent(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL)
	c := f.accept()
	p.js(`
		const shown = [], data = { n: 1, list: [1] };
		socket.onAnyOutgoing((event, data) => shown.push(data)).emit("x", data).emit("x", new Date(0)).emit("x");
		data.n = 2;
		data.list.push(2)`)
	c.says(`{"event":"connect","data":{"id":"x"}}`)
	c.hears(`{"event":"x","data":{"n":1,"list":[1]}}`)
	c.hears(`{"event":"x","data":"1970-01-01T00:00:00.000Z"}`)
	c.hears(`{"event":"x"}`)
	p.sees("shown.length", 3)
	p.sees("[shown[0], shown[1], shown[2] === undefined]", []any{
		map[string]any{"n": 1.0, "list": []any{1.0}}, "1970-01-01T00:00:00.000Z", true})
}
