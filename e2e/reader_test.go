package e2e

import (
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	gorilla "github.com/gorilla/websocket"
)

// crowd is a client that says much, and reads what it gets.
func crowd(t *testing.T, s *server) (chat func(text string)) {
	t.Helper()
	c, _, err := gorilla.DefaultDialer.Dial("ws"+strings.TrimPrefix(s.url, "http"), nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go func() {
		for {
			if _, _, err := c.ReadMessage(); err != nil {
				return
			}
		}
	}()
	return func(text string) {
		message, _ := json.Marshal(map[string]any{"event": "chat", "data": map[string]string{"data": text}})
		if err := c.WriteMessage(gorilla.TextMessage, message); err != nil {
			t.Error(err)
		}
	}
}

// often calls do at a rate until the test or the returned function ends it.
func often(t *testing.T, perSecond int, do func(n int)) (stop func()) {
	quit, done := make(chan bool), make(chan bool)
	go func() {
		defer close(done)
		ticker := time.NewTicker(time.Second / time.Duration(perSecond))
		defer ticker.Stop()
		for n := 0; ; n++ {
			select {
			case <-ticker.C:
				do(n)
			case <-quit:
				return
			}
		}
	}()
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			close(quit)
			<-done
		}
	}
	t.Cleanup(stop)
	return stop
}

func TestOfABurstNoMessageIsLostAndThePageNeverStandsStill(t *testing.T) {
	for name, burst := range map[string]struct {
		n, length int
		wire      bool
	}{
		"2,000 messages":           {2000, 10, false},
		"2,000 with the wire open": {2000, 10, true},
		"2,000 long ones":          {2000, 1000, true},
		"20,000 messages":          {20_000, 10, true},
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			p := enter(t, s)
			p.js(fmt.Sprintf(`document.querySelector("details").open = %v`, burst.wire))
			p.js(`
				let got = 0, ordered = true, longest = 0, last = performance.now();
				socket.on("grpchat", (text) => { ordered &&= parseInt(text) === got++; });
				const look = () => {
					longest = Math.max(longest, performance.now() - last);
					last = performance.now();
					requestAnimationFrame(look);
				};
				look()`)
			call(p, network.Disable, cdp.Empty{}) // or the browser reports each message to the test, too
			chat := crowd(t, s)
			for n := range burst.n {
				chat(fmt.Sprintf("%-*d", burst.length, n))
			}
			p.sees("[got, ordered, messages.children.length]", []any{float64(burst.n), true, 1000.0})
			p.sees("longest < 1000 || longest", true)
			p.sees("parseInt(messages.lastElementChild.textContent)", burst.n-1)
			p.sees(newestInView, true)
		})
	}
}

func TestAHiddenTabsListStaysBoundedAndComplete(t *testing.T) {
	p := open(t, start(t).url, `requestAnimationFrame = () => 1`) // a hidden tab has no frames
	p.status("connected as")
	p.js(`for (let n = 0; n <= 1004; n++) socket.emit("chat", { data: "" + n })`)
	p.sees("[messages.children.length, messages.lastElementChild?.textContent]", []any{1000.0, "1004"})
}

// scroller is the box of the messages.
const scroller = `document.querySelector("[role=log]")`

// A reader who moves up, by however little, stays there though messages keep coming, and is back at
// the end as soon as the end is reached.
func TestAReaderCanScrollUpInABusyChatAndComeBack(t *testing.T) {
	wheel := func(p *tab, dy float64) {
		call(p, input.DispatchMouseEvent, input.DispatchMouseEventParams{Type: "mouseWheel", X: 300, Y: 200, DeltaX: 0.01, DeltaY: dy})
	}
	for name, up := range map[string]func(p *tab){
		"by small steps of the wheel": func(p *tab) {
			for range 4 {
				wheel(p, -1)
			}
		},
		"by the wheel": func(p *tab) { wheel(p, -100) },
		"by an arrow":  func(p *tab) { p.do(chromedp.Focus(chromedp.CSS("[role=log]"))); p.press(kb.ArrowUp) },
		"by a page":    func(p *tab) { p.do(chromedp.Focus(chromedp.CSS("[role=log]"))); p.press(kb.PageUp) },
		"by a script":  func(p *tab) { p.js(scroller + `.scrollTop -= 2`) },
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t)
			p := enter(t, s)
			chat := crowd(t, s)
			for n := range 980 { // the list is full soon, and drops its oldest
				chat(fmt.Sprint("before ", n))
			}
			p.sees("messages.children.length", 980)
			p.sees(newestInView, true)
			stop := often(t, 50, func(n int) { chat(fmt.Sprint("message ", n)) })
			up(p)
			p.js(`
				let still = 0, before = "";
				const read = () => {
					const { left, top } = document.querySelector("[role=log]").getBoundingClientRect();
					const now = document.elementFromPoint(left + 30, top + 60).textContent;
					still = now === before ? still + 1 : 0;
					before = now;
					requestAnimationFrame(read);
				};
				read()`)
			p.sees("still > 30 || still", true) // for half a second and 25 messages
			p.sees(newestInView, false)
			p.do(chromedp.Focus(chromedp.CSS("[role=log]")))
			p.press(kb.End)
			stop()
			p.sees(newestInView, true)
			chat("the newest")
			p.sees("messages.lastElementChild.textContent", "the newest")
			p.sees(newestInView, true)
		})
	}
}

func TestASelectionInTheListIsNotScrolledAway(t *testing.T) {
	p := enter(t, start(t))
	p.js(`for (let n = 0; n < 50; n++) socket.emit("chat", { data: "message " + n })`)
	p.sees("messages.children.length", 50)
	p.sees(newestInView, true)
	p.js(`getSelection().selectAllChildren(messages.lastElementChild); let frames = 0`)
	p.js(`for (let n = 0; n < 20; n++) socket.emit("chat", { data: "more " + n })`)
	p.sees("messages.children.length", 70)
	p.js(`requestAnimationFrame(() => requestAnimationFrame(() => { frames = 2; }))`)
	p.sees("frames", 2)
	p.sees(newestInView, false)
	p.js(`getSelection().removeAllRanges()`)
	p.says("the newest")
	p.sees("messages.children.length", 71)
	p.sees(newestInView, true)
}

func TestOnlyIoIsAGlobalName(t *testing.T) {
	s := start(t)
	for _, script := range []string{"class Socket {}", "const Socket = 1", "let Socket", "function Socket() {}", "var Socket = 1", "undeclared = 1", "const origin = 1"} {
		p := open(t, s.url+"/none")
		p.js(fmt.Sprintf(`
			const before = new Set(Object.getOwnPropertyNames(window));
			const add = (prepare) => document.body.append(prepare(document.createElement("script")));
			let mine, news;
			add((script) => {
				script.src = "/socket.io/socket.io.js";
				script.onload = () => {
					news = Object.getOwnPropertyNames(window).filter((name) => !before.has(name));
					add((own) => { own.text = %q; return own; });
					mine = io();
				};
				return script;
			})`, script))
		p.sees("mine.connected", true)
		p.sees("news", []string{"io"})
	}
}

func TestNothingPushesTheInputOutOfView(t *testing.T) {
	s := start(t)
	for name, screen := range map[string]struct{ width, height, font int64 }{
		"320x568": {320, 568, 16}, "360x640": {360, 640, 16}, "360x640 with large text": {360, 640, 32},
	} {
		t.Run(name, func(t *testing.T) {
			p := enter(t, s)
			p.do(chromedp.EmulateViewport(screen.width, screen.height, chromedp.EmulateMobile))
			call(p, page.SetFontSizes, page.SetFontSizesParams{FontSizes: &page.FontSizes{Standard: screen.font, Fixed: screen.font}})
			p.sees("getComputedStyle(document.documentElement).fontSize", fmt.Sprintf("%dpx", screen.font))
			inView := `(() => {
				const { left, right, top, bottom } = msg.getBoundingClientRect();
				return scrollY === 0 && left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight && right - left > 200;
			})()`
			p.sees(inView, true)
			p.js("disconnect.click()")
			for n := range 30 {
				p.js(fmt.Sprintf("msg.value = 'a text that waits ' + %d; btn.click()", n))
			}
			p.sees(`notice.textContent.includes("waiting to be sent: 30.")`, true)
			p.sees(inView, true)
			p.sees("notice.clientHeight > 0", true)
			p.js("disconnect.click()")
			p.status("connected as")
			p.sees("[messages.children.length, notice.textContent]", []any{30.0, ""})
			p.js(`tell("words ".repeat(2000), "error")`)
			p.sees(inView, true)
		})
	}
}

func TestIoTakesNothingOrAnAddress(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL)
	f.greet("page")
	for n, nothing := range []string{"", "null", "undefined", "undefined, undefined", `"/"`, `new URL("/", location)`, "new URL(location)"} {
		p.js(fmt.Sprintf("const own%d = io(%s)", n, nothing))
		f.greet(fmt.Sprint("own ", n))
		p.sees(fmt.Sprintf("own%d.id", n), fmt.Sprint("own ", n))
	}
	p.js(`
		const wrong = [[5], [{}], [[]], [true], [() => {}], [Symbol()], [0n], ["/", {}], ["/", null], [null, { autoConnect: false }], [undefined, 1]].map((args) => {
			try { io(...args); return "none"; } catch (e) { return e.name + " " + e.message; }
		})`)
	p.sees(`wrong.filter((e) => !/^TypeError io takes one URL.*options/.test(e))`, []string{})
}

func TestIoWorksInFramesWithoutAnAddressOfTheirOwn(t *testing.T) {
	p := enter(t, start(t))
	p.js(`
		const html = '<script src="' + location.origin + '/socket.io/socket.io.js"></' + "script><script>window.own = io()</" + "script>";
		const frame = (set) => { const e = document.createElement("iframe"); set(e); document.body.append(e); return e; };
		const srcdoc = frame((e) => { e.srcdoc = html; });
		const blob = frame((e) => { e.src = URL.createObjectURL(new Blob([html], { type: "text/html" })); })`)
	p.sees("[srcdoc, blob].map((e) => e.contentWindow.own?.connected)", []bool{true, true})
}

func TestTextOfRightToLeftScriptsRunsFromRightToLeft(t *testing.T) {
	p := enter(t, start(t))
	for _, text := range []string{"hello?", "שלום, מה שלומך?", "مرحبا، كيف حالك؟"} {
		p.types(text)
		rtl := text != "hello?"
		p.sees(`msg.matches(":dir(rtl)")`, rtl)
		p.press(kb.Enter)
		p.sees("messages.lastElementChild?.textContent", text)
		p.sees(`messages.lastElementChild.matches(":dir(rtl)")`, rtl)
	}
}

func TestATextIsCutAtAWholeCharacter(t *testing.T) {
	p := enter(t, start(t))
	for _, char := range []string{"😀", "👨‍👩‍👧‍👦", "🇩🇪", "e\u0301", "ה"} {
		p.js(fmt.Sprintf(`
			for (let n = 235; n < 255; n++) socket.emit("chat", { data: "x".repeat(n) + %[1]q.repeat(70) })`, char))
		p.sees("wire.children.length >= 40 && messages.children.length % 20", 0)
		p.sees(fmt.Sprintf(`[...wire.children].slice(-40).every((li) => {
			const [, tail] = /x+(.*)…$/u.exec(li.textContent);
			return tail !== "" && li.textContent.length <= 301 && tail.replaceAll(%q, "") === "";
		})`, char), true)
	}
}

func TestAMessageOfInvisibleCharactersIsBlank(t *testing.T) {
	p := enter(t, start(t))
	p.js(`
		for (const c of [
			0x9, 0x1, 0x7f, 0x85, 0xa0, 0xad, 0x34f, 0x61c, 0x115f, 0x1160, 0x1680, 0x17b4, 0x180b, 0x180e, 0x2003, 0x200b, 0x200c, 0x200d, 0x200e,
			0x2028, 0x202e, 0x2060, 0x2064, 0x2069, 0x206f, 0x2800, 0x3000, 0x3164, 0xfe0f, 0xfeff, 0xffa0, 0xfffa, 0x1d159, 0x1d173, 0xe0041, 0xe0100,
		]) {
			msg.value = String.fromCodePoint(c, 0x20, c);
			btn.click();
			broadcast.click();
			msg.value = "";
		}`)
	visible := []string{"\u2060.", "👨‍👩‍👧‍👦", "ه\u200d", "❤\ufe0f", "0", "\u0301"}
	for _, text := range visible {
		p.says(text)
	}
	p.shows(visible...)
}

func TestTheInkOfALineStaysInItsLine(t *testing.T) {
	p := enter(t, start(t))
	p.says("A" + strings.Repeat("\u0301", 96) + strings.Repeat("\u0323", 96))
	p.sees(`[messages, wire].map((list) => getComputedStyle(list.lastElementChild).overflowY)`, []string{"clip", "clip"})
}

func TestPrintShowsAllMessagesDarkOnLight(t *testing.T) {
	p := enter(t, start(t))
	p.js(`for (let n = 0; n < 200; n++) socket.emit("chat", { data: "message " + n })`)
	p.sees("messages.children.length", 200)
	for _, scheme := range []string{"light", "dark"} {
		call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Media: "print",
			Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
		p.sees(`[messages.firstElementChild, messages.lastElementChild].every((li) => {
			const box = li.closest("[role=log]");
			const { top, bottom } = box.getBoundingClientRect();
			return box.scrollHeight <= bottom - top && li.getBoundingClientRect().bottom <= bottom && li.getBoundingClientRect().top >= top;
		})`, true)
		p.sees(`+getComputedStyle(messages.lastElementChild).color.match(/\d+/)[0] < 80`, true)
	}
}

func TestAfterSendTheInputHasTheFocus(t *testing.T) {
	p := enter(t, start(t))
	p.types("one")
	p.js(`let lost = 0; msg.addEventListener("blur", () => lost++)`)
	for _, button := range []chromedp.CSS{"#btn", "#broadcast", "#btn"} { // the last sends a blank
		p.click(button)
		p.sees("[document.activeElement === msg, lost]", []any{true, 0.0})
	}
	p.press("two\r")
	p.shows("one", "two")
}

func TestThePanelSaysWhatItsArrowsMean(t *testing.T) {
	p := enter(t, start(t))
	p.click("summary")
	p.sees(`document.querySelector("details").innerText.includes("↑ sent, ↓ received")`, true)
}
