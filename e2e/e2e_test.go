// Package e2e drives the chat as people do: the real program, in a real browser.
package e2e

import (
	"fmt"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"golang.org/x/net/websocket"
)

// The page.

func TestSendReachesEverybodyAndBroadcastEverybodyElse(t *testing.T) {
	s := start(t)
	a, b, c := enter(t, s), enter(t, s), enter(t, s)
	a.types("to all")
	a.click("#btn")
	a.shows("to all")
	b.types("to the others")
	b.click("#broadcast")
	c.shows("to all", "to the others")
	c.says("bye") // behind it, so that what is not there by then never comes
	a.shows("to all", "to the others", "bye")
	b.shows("to all", "bye")
	c.shows("to all", "to the others", "bye")
}

func TestStatusShowsTheSocketsOwnID(t *testing.T) {
	s := start(t)
	a, b := enter(t, s), enter(t, s)
	a.status(a.id())
	b.status(b.id())
	if a.id() == b.id() {
		t.Error("two tabs have the id", a.id())
	}
	s.logs("connected " + a.id())
}

func TestEnterSendsAndClearsTheInputUnlessItIsBlank(t *testing.T) {
	p := enter(t, start(t))
	for _, blank := range []string{"", " ", "\u00a0\u3000 "} {
		p.says(blank)
		p.click("#btn")
		p.click("#broadcast")
		p.js(`msg.value = ""`)
	}
	p.says("not blank")
	p.sees("msg.value", "")
	p.says("nor this")
	p.shows("not blank", "nor this")
	p.sees(`[...wire.children].filter((li) => li.textContent.startsWith("↑")).length`, 2)
}

func TestTextIsShownAsText(t *testing.T) {
	s := start(t)
	a, b := enter(t, s), enter(t, s)
	evil := `<img src=x onerror="document.title = 'evil'"><b>&amp;"\n`
	a.says(evil)
	a.shows(evil)
	b.shows(evil)
	a.js(`socket.emit("<b>", 1)`) // the error names it
	a.sees(`notice.textContent.includes("<b>")`, true)
	for _, p := range []*tab{a, b} {
		p.sees(`document.querySelectorAll("li *, #notice *").length`, 0)
		p.sees("document.title", "Chat")
	}
}

func TestDisconnectLeavesAndConnectComesBackWithANewID(t *testing.T) {
	s := start(t)
	a, b := enter(t, s), enter(t, s)
	old := a.id()
	a.sees("disconnect.textContent", "Disconnect")
	a.click("#disconnect")
	a.status("disconnected")
	a.sees("disconnect.textContent", "Connect")
	a.sees("[socket.id === undefined, socket.connected]", []bool{true, false})
	s.logs("disconnected " + old)
	b.says("not for those who are away")
	b.shows("not for those who are away")
	a.says("kept") // sent when there is somebody to send it to
	a.click("#disconnect")
	a.status("connected as")
	a.sees("disconnect.textContent", "Disconnect")
	a.shows("kept")
	a.sees(fmt.Sprintf("socket.id === %q", old), false)
}

func TestATextTooLongCannotBeTypedOrPasted(t *testing.T) {
	s := start(t)
	a, b := enter(t, s), enter(t, s)
	a.types(strings.Repeat("x", 70<<10))
	a.sees("msg.value.length", 10_000)
	a.press(kb.Enter)
	a.js(`msg.value = "x" + "\u0001".repeat(9_999)`) // each takes six bytes in JSON
	a.click("#broadcast")
	b.sees("[...messages.children].map((li) => li.textContent.length)", []int{10_000, 10_000})
}

func TestAFaultOfThePagesIsShownUntilSomethingElseIsSent(t *testing.T) {
	p := enter(t, start(t))
	id := p.id()
	p.js(`
		const told = [];
		socket.on("error", (words) => told.push(words)).on("disconnect", (reason) => told.push(reason));
		socket.emit("chat", { data: "x".repeat(70_000) })`)
	p.sees("told", []string{"a message may have at most 65536 bytes", "transport close"})
	p.status("connected as")
	p.sees(fmt.Sprintf("socket.id === %q", id), false)
	p.sees(`notice.checkVisibility() && notice.textContent`, "a message may have at most 65536 bytes")
	p.says("something else")
	p.shows("something else")
	p.sees("notice.textContent", "")
}

func TestAPageThatLeavesOnAFaultDoesNotComeBack(t *testing.T) {
	p := open(t, start(t).url, clock)
	p.status("connected as")
	p.js(`
		const told = [];
		socket.on("error", () => socket.disconnect()).on("disconnect", (reason) => told.push(reason));
		socket.emit("chat", { data: "x".repeat(70_000) })`)
	p.sees("told", []string{"io client disconnect"})
	p.sees("[dials, timers.size, socket.connected]", []any{1.0, 0.0, false})
}

func TestWhatOneDoesShowsAtOnceAndNoticesGoWhenTheyAreNoLongerTrue(t *testing.T) {
	s := start(t)
	p := enter(t, s)
	p.types("to the others")
	p.click("#broadcast")
	p.sees("notice.textContent", "Sent to everyone but you.")
	p.js(`socket.emit("nothing like this")`)
	p.sees(`notice.textContent.includes("nothing like this")`, true)
	p.click("#disconnect")
	p.sees("notice.textContent", "")
	p.says("one")
	p.says("two")
	p.sees("[notice.textContent, notice.className]", []string{"Messages waiting to be sent: 2. Press Connect to send them.", "news"})
	s.kill()
	p.click("#disconnect")
	p.sees("notice.textContent", "Messages waiting to be sent: 2. They are sent when the page reconnects.")
	startAt(t, strings.TrimPrefix(s.url, "http://"))
	p.shows("one", "two")
	p.sees("notice.textContent", "")
}

func TestTheLastThousandMessagesAreKept(t *testing.T) {
	p := enter(t, start(t))
	p.js(`for (let n = 0; n <= 1004; n++) socket.emit("chat", { data: "" + n + "." })`)
	p.sees("[messages.children.length, messages.firstElementChild?.textContent, messages.lastElementChild?.textContent]", []any{1000.0, "5.", "1004."})
}

const newestInView = `(() => {
	const log = document.querySelector("[role=log]").getBoundingClientRect();
	const item = messages.lastElementChild.getBoundingClientRect();
	return item.top >= log.top && item.bottom <= log.bottom && log.bottom <= innerHeight;
})()`

func TestTheNewestMessageIsInViewUnlessTheReaderScrolledUp(t *testing.T) {
	p := enter(t, start(t))
	scrolled := `document.querySelector("[role=log]").scrollTop`
	p.js(`for (let n = 0; n < 50; n++) socket.emit("chat", { data: "message " + n })`)
	p.sees("messages.children.length", 50)
	p.sees(newestInView, true)
	p.js(scrolled + " = 100")
	p.says("somebody reads above")
	p.sees("messages.children.length", 51)
	p.sees(scrolled, 100)
	p.js(scrolled + " = 1e6")
	p.says("and is back")
	p.sees("messages.children.length", 52)
	p.sees(newestInView, true)
}

func TestTheNewestMessageIsInViewWhenTheListBecomesShorter(t *testing.T) {
	for name, shorten := range map[string]func(*tab){
		"by the panel":            func(p *tab) { p.click("summary"); p.sees("wire.checkVisibility()", true) },
		"by a phone's keyboard":   func(p *tab) { p.do(chromedp.EmulateViewport(800, 350)); p.sees("innerHeight", 350) },
		"by the server's refusal": func(p *tab) { p.js(`socket.emit("nonsense")`); p.sees("notice.checkVisibility()", true) },
	} {
		t.Run(name, func(t *testing.T) {
			p := enter(t, start(t))
			p.do(chromedp.EmulateViewport(800, 700))
			p.js(`for (let n = 0; n < 50; n++) socket.emit("chat", { data: "message " + n })`)
			p.sees("messages.children.length", 50)
			shorten(p)
			p.js(`socket.emit("chat", { data: "the newest" })`)
			p.sees("messages.children.length", 51)
			p.sees(newestInView, true)
		})
	}
}

func TestThePageFitsAPhone(t *testing.T) {
	s := start(t)
	p := open(t, s.url)
	p.do(chromedp.EmulateViewport(360, 640, chromedp.EmulateMobile))
	p.status("connected as")
	p.says(strings.Repeat("unbroken", 100))
	p.js(`socket.emit("x".repeat(200))`)
	p.sees(`messages.children.length + (notice.textContent !== "")`, 2)
	p.sees(`[innerWidth, document.documentElement.scrollWidth]`, []int{360, 360})
	for _, part := range []string{"#status", "[role=log]", "#msg", "#btn", "#broadcast", "#disconnect", "summary"} {
		p.sees(fmt.Sprintf(`(() => {
			const e = document.querySelector(%q), { left, right, top, bottom } = e.getBoundingClientRect();
			const there = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
			return left >= 0 && right <= 360 && e.scrollWidth <= right - left && e.contains(there);
		})()`, part), true)
	}
}

// contrast is that of two colours, as WCAG 2 defines it.
const contrast = `
	const numbers = (color) => color.match(/[\d.]+/g).map(Number);
	const light = (color) => {
		const [r, g, b] = numbers(color).map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
		return 0.2126 * r + 0.7152 * g + 0.0722 * b;
	};
	const contrast = (one, other) => {
		const [dark, bright] = [light(one), light(other)].sort((x, y) => x - y);
		return (bright + 0.05) / (dark + 0.05);
	};`

// paleTexts lists what has less contrast than WCAG 2 asks for (1.4.3, AA).
const paleTexts = `(() => {` + contrast + `
	const ground = (e) => {
		const color = e ? getComputedStyle(e).backgroundColor : "rgb(255, 255, 255)";
		return numbers(color)[3] === 0 ? ground(e.parentElement) : color;
	};
	const pale = [];
	for (const e of document.querySelectorAll("body *")) {
		for (const part of ["", "::before"]) {
			const { color, content } = getComputedStyle(e, part);
			const text = part ? content !== "none" : e.matches("input") || [...e.childNodes].some((n) => n.nodeType === 3);
			const ratio = contrast(color, ground(e));
			if (text && e.checkVisibility() && ratio < 4.5) pale.push(e.tagName + e.id + part + " " + ratio);
		}
	}
	return pale;
})()`

// faintBorders lists the controls whose border has less contrast with the page than WCAG 2 asks
// for (1.4.11).
const faintBorders = `(() => {` + contrast + `
	const page = getComputedStyle(document.body).backgroundColor;
	return [...document.querySelectorAll("input, button")]
		.filter((e) => contrast(getComputedStyle(e).borderColor, page) < 3).map((e) => e.id);
})()`

func TestEveryTextIsReadableInLightAndDark(t *testing.T) {
	s := start(t)
	p := enter(t, s)
	p.click("summary")
	check := func() {
		t.Helper()
		for scheme, dark := range map[string]bool{"light": false, "dark": true} {
			call(p, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
				Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}})
			p.sees(`+getComputedStyle(document.body).backgroundColor.match(/\d+/)[0] < 80`, dark)
			p.sees(paleTexts, []string{})
			p.sees(faintBorders, []string{})
		}
	}
	check() // nothing said yet
	p.says("hello")
	p.js(`socket.emit("nothing like this")`)
	p.sees(`messages.children.length + (notice.textContent !== "")`, 2)
	check()
	s.kill()
	p.status("reconnecting")
	check()
	p.click("#disconnect")
	p.status("disconnected")
	check()
}

func TestAKeyboardIsEnough(t *testing.T) {
	s := start(t)
	p, other := enter(t, s), enter(t, s)
	tabTo := func(selector string) {
		t.Helper()
		on := fmt.Sprintf("document.activeElement.matches(%q)", selector)
		for range 10 {
			p.press(kb.Tab)
			if there, _ := chromedp.Run(p.ctx, chromedp.Evaluate[bool](on)); there {
				p.sees(`getComputedStyle(document.activeElement).outlineStyle !== "none"`, true)
				return
			}
		}
		t.Fatal("Tab does not reach ", selector)
	}
	tabTo("#msg")
	p.press("hello")
	tabTo("#btn")
	p.press(" ")
	other.shows("hello")
	p.press("others") // the input has the focus again
	tabTo("#broadcast")
	p.press(kb.Enter)
	other.shows("hello", "others")
	tabTo("#disconnect")
	p.press(" ")
	p.status("disconnected")
	p.press(kb.Enter)
	p.status("connected as")
	p.js(`for (let n = 0; n < 50; n++) socket.emit("chat", { data: "message " + n })`)
	p.sees("messages.children.length", 51)
	tabTo("[role=log]")
	p.press(kb.Home)
	p.sees("document.activeElement.scrollTop", 0)
	tabTo("summary")
	p.press(kb.Enter)
	p.sees("wire.checkVisibility()", true)
}

func TestAScreenReaderFindsNamesAndRoles(t *testing.T) {
	p := enter(t, start(t))
	p.sees(`[...document.body.children].filter((e) => !e.matches("header, main, footer, script")).length`, 0) // all is in a landmark
	p.says("hello")
	p.js(`socket.emit("nothing like this")`)
	p.sees(`messages.children.length + (notice.textContent !== "")`, 2)
	var tree strings.Builder
	for _, node := range call(p, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes {
		if !node.Ignored && node.Name != nil {
			fmt.Fprintf(&tree, "%s %s\n", node.Role.Value, node.Name.Value)
		}
	}
	for _, want := range []string{
		`"heading" "Chat"`, `"status" `, `"button" "Disconnect"`, `"log" "Messages"`, `"StaticText" "hello"`,
		`"alert" `, `"textbox" "Message"`, `"button" "Send"`, `"button" "Broadcast"`,
	} {
		if !strings.Contains(tree.String(), want) {
			t.Errorf("no %s in\n%s", want, tree.String())
		}
	}
}

func TestTheWirePanelListsTheLastHundredMessages(t *testing.T) {
	p := enter(t, start(t))
	p.sees(`[wire.tagName, wire.closest("details").open, wire.checkVisibility()]`, []any{"OL", false, false})
	p.js(`
		const heard = [];
		socket.onAny((...args) => heard.push(args)).onAnyOutgoing((...args) => heard.push(args))`)
	p.says("hello")
	p.sees("JSON.stringify(heard)", `[["chat",{"data":"hello"}],["grpchat","hello"]]`)
	lines := `[...wire.children].map((li) => li.textContent)`
	p.sees(lines, []string{
		`↓ {"event":"connect","data":{"id":"` + p.id() + `"}}`,
		`↑ {"event":"chat","data":{"data":"hello"}}`,
		`↓ {"event":"grpchat","data":"hello"}`,
	})
	p.js(`for (let n = 1; n <= 60; n++) socket.emit("chat", { data: n + "" })`)
	p.sees(lines+`.at(-1)`, `↓ {"event":"grpchat","data":"60"}`)
	p.sees("wire.children.length", 100)
}

func TestThreeFramesAreThreeClients(t *testing.T) {
	s := start(t)
	p := open(t, s.url+"/three.html")
	p.js(`
		const each = (see) => Array.from(frames, see);
		const status = (f) => f.document.querySelector("#status").textContent;
		const heard = (f) => [...f.document.querySelectorAll("#messages li")].map((li) => li.textContent).sort().join()`)
	p.sees(`each((f) => status(f).startsWith("connected as "))`, []bool{true, true, true})
	p.sees(`new Set(each(status)).size`, 3)
	p.js(`each((f, n) => { f.msg.value = "from " + n; f.btn.click(); })`)
	all := "from 0,from 1,from 2"
	p.sees(`each(heard)`, []string{all, all, all})
	p.sees(`each((f) => f.document.querySelector("footer a").checkVisibility())`, []bool{false, false, false})
	p.do(chromedp.EmulateViewport(360, 640, chromedp.EmulateMobile))
	p.sees(`[...document.querySelectorAll("iframe")].every((f) => f.getBoundingClientRect().bottom <= innerHeight)`, true)
	p.sees(`each((f) => f.document.documentElement.scrollHeight <= f.innerHeight && f.btn.checkVisibility())`, []bool{true, true, true})
}

func TestALeftPageIsDisconnectedAndComesBackFromHistory(t *testing.T) {
	s := start(t)
	p := open(t, s.url, clock) // for its count of dials
	p.status("connected as")
	p.says("before")
	p.shows("before")
	p.js(`addEventListener("pageshow", (ev) => { window.fromHistory = ev.persisted; })`)
	leave := func() { p.js(`location = "/script.js"`); p.sees("location.pathname", "/script.js") }
	comeBack := func() {
		p.js("history.back()")
		p.sees("window.fromHistory", true) // the same page: a new one would connect anyway
	}
	for range 2 {
		id := p.id()
		leave()
		s.logs("disconnected " + id)
		comeBack()
		p.status("connected as")
		p.sees(fmt.Sprintf("socket.id === %q", id), false)
		p.shows("before")
	}
	p.js("disconnect.click()")
	leave()
	comeBack()
	p.status("disconnected") // as it was left
	p.sees("dials", 3)
}

// The client, when a server goes.

func TestAKilledServerIsFoundAgainAndGetsWhatWasTypedMeanwhile(t *testing.T) {
	s := start(t)
	a, b := enter(t, s), enter(t, s)
	old := a.id()
	s.kill()
	a.status("reconnecting")
	a.sees("disconnect.textContent", "Disconnect")
	b.status("reconnecting")
	b.click("#disconnect")
	b.status("disconnected")
	a.says("one")
	a.says("two")
	a.says("three")
	startAt(t, strings.TrimPrefix(s.url, "http://"))
	a.status("connected as")
	a.says("four")
	a.shows("one", "two", "three", "four")
	a.sees(fmt.Sprintf("socket.id === %q", old), false)
	b.status("disconnected")
	b.click("#disconnect")
	b.status("connected as")
	b.shows()
}

func TestAStoppingServerSays1001AndExitsWith0(t *testing.T) {
	s := start(t)
	p := enter(t, s)
	p.js(`
		const raw = new WebSocket("ws://" + location.host);
		let code;
		raw.onclose = (ev) => { code = ev.code; }`)
	p.sees("raw.readyState", 1)
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Skip(err) // Windows has no such thing
	}
	p.status("reconnecting")
	p.sees("code", 1001)
	if err := s.cmd.Wait(); err != nil {
		t.Error("the server ended with", err)
	}
}

func TestABrowserThatLosesItsNetworkReconnects(t *testing.T) {
	p := enter(t, start(t))
	old := p.id()
	p.js(`socket.on("disconnect", (reason) => { window.reason = reason; })`)
	call(p, network.OverrideNetworkState, network.OverrideNetworkStateParams{Offline: true})
	p.status("reconnecting")
	p.sees("window.reason", "transport close")
	call(p, network.OverrideNetworkState, network.OverrideNetworkStateParams{Offline: false})
	p.status("connected as")
	p.sees(fmt.Sprintf("socket.id === %q", old), false)
}

// The client's calls.

func TestSeveralHandlersRunInTheOrderAddedThoughOneThrows(t *testing.T) {
	p := enter(t, start(t))
	p.js(`
		const heard = [];
		let thrown = 0;
		addEventListener("error", (ev) => { thrown++; ev.preventDefault(); });
		const first = (text) => { heard.push("first " + text); throw new Error("on purpose"); };
		const second = (text) => heard.push("second " + text);
		const chained = socket.on("grpchat", first).on("grpchat", second)`)
	p.says("a")
	p.says("b")
	p.sees("heard", []string{"first a", "second a", "first b", "second b"})
	p.sees("[thrown, chained === socket, socket.off('grpchat', first) === socket]", []any{2.0, true, true})
	p.says("c")
	p.sees("heard.slice(4)", []string{"second c"})
	p.shows("a", "b", "c") // the page's own handler was the first of all
}

func TestOffTakesAwayOneHandlerOrAllOfANameOrAll(t *testing.T) {
	p := enter(t, start(t))
	p.js(`
		let heard = "";
		const a = () => { heard += "a"; }, b = () => { heard += "b"; };
		socket.on("grpchat", a).on("grpchat", a).on("grpchat", b).on("connect", b)
		socket.off("grpchat", a).off("grpchat", () => {}).off("nothing")`)
	p.says("x")
	p.sees("heard", "ab")
	p.js(`socket.off("grpchat")`)
	p.says("y")
	p.sees(`wire.lastElementChild.textContent.includes('"y"')`, true)
	p.js(`socket.off(); socket.disconnect().connect()`)
	p.sees("socket.connected", true)
	p.sees("heard", "ab")
	p.shows("x")
}

func TestEmitThrowsForWhatWouldBeLost(t *testing.T) {
	p := enter(t, start(t))
	p.js(`
		const errors = [];
		const attempt = (...args) => {
			try { socket.emit(...args); errors.push("none"); } catch (e) { errors.push(e.name + " " + e.message); }
		};
		attempt("chat", { data: "x" }, () => {});
		attempt("chat", () => {});
		attempt("chat", Symbol());
		attempt("chat", 1, 2)`)
	p.sees(`errors.every((e) => /^TypeError .*acknowledgement.*values/.test(e))`, true)
	p.says("nothing before this")
	p.shows("nothing before this")
}

func TestConnectErrorComesEachTimeThatNoConnectionCanBeMade(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	f.refuses.Store(true)
	p := open(t, f.URL, clock)
	p.status("cannot reach the server, trying again")
	p.js(`let errors = 0; socket.on("connect_error", (e) => { errors += e instanceof Error; }); elapse()`)
	p.sees("errors", 1)
	f.refuses.Store(false)
	p.js("elapse()")
	c := f.greet("x")
	p.status("connected as x")
	c.says(`{"event":"connect_error","data":"a lie"}`)
	c.closes(1011) // a lost connection is no connect_error
	p.status("reconnecting")
	p.sees("errors", 1)
}

func TestWhatIsEmittedTooEarlyIsSentOnceInOrderBeforeConnectHandlersRun(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL, clock)
	c := f.accept()
	p.js(`
		const order = [];
		socket.onAnyOutgoing((event) => order.push(event)).on("connect", () => order.push("connect " + socket.id));
		socket.on("connect", () => socket.emit("third"));
		const chained = socket.emit("first", 1).emit("second")`)
	p.sees("[chained === socket, socket.connected, socket.id === undefined, order.length === 0]", []bool{true, false, true, true})
	c.says(`{"event":"connect","data":{"id":"x"}}`)
	c.hears(`{"event":"first","data":1}`)
	c.hears(`{"event":"second"}`)
	c.hears(`{"event":"third"}`)
	p.sees("order", []string{"first", "second", "connect x", "third"})
	c.closes(1006)
	p.sees("timers.size", 1)
	p.js(`socket.emit("meanwhile"); elapse()`)
	c = f.greet("y")
	c.hears(`{"event":"meanwhile"}`)
	c.hears(`{"event":"third"}`)
}

func TestDisconnectIsToldOncePerConnectionWithTheReason(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL, clock)
	p.js(`
		const told = [];
		socket.on("disconnect", (reason) => told.push([reason, socket.id === undefined, socket.connected].join()))`)
	var want []string
	tells := func(reason string) {
		t.Helper()
		want = append(want, reason+",true,false")
		p.sees("told", want)
	}
	join := func() peer { t.Helper(); c := f.greet("x"); p.status("connected as x"); return c }

	for _, code := range []int{1001, 1006, 1011, 4000} {
		join().closes(code)
		p.status("reconnecting")
		tells("transport close")
		p.js("elapse()")
	}
	join()
	p.js(`dispatchEvent(new Event("offline"))`)
	tells("transport close")
	p.js(`dispatchEvent(new Event("offline")); elapse()`) // is told no more

	join()
	p.js(`const before = told.length, same = socket.disconnect().disconnect() === socket, after = told.length`)
	p.sees("[same, after - before, timers.size]", []any{true, 1.0, 0.0}) // at once
	tells("io client disconnect")

	p.js("dials = 0; socket.connect().connect()")
	c := join()
	p.js("socket.connect()")
	c.closes(1000)
	p.status("disconnected")
	tells("io server disconnect")
	p.sees("[dials, timers.size, disconnect.textContent]", []any{1.0, 0.0, "Connect"})
	p.click("#disconnect")
	join()
	p.sees("told", want)
}

func TestDisconnectHoldsBackMessagesAndDialsThatAreOnTheirWay(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	f.refuses.Store(true)
	p := open(t, f.URL, clock)
	p.sees("[dials, timers.size]", []int{1, 1})
	p.click("#disconnect") // while it waits to dial
	p.sees("[dials, timers.size, disconnect.textContent]", []any{1.0, 0.0, "Connect"})
	f.refuses.Store(false)
	p.click("#disconnect")
	c := f.accept()
	p.click("#disconnect") // while it dials
	p.sees("[dials, timers.size, disconnect.textContent]", []any{2.0, 0.0, "Connect"})
	websocket.Message.Send(c.ws, `{"event":"connect","data":{"id":"late"}}`) // may be too late even to send
	p.click("#disconnect")
	c = f.greet("x")
	p.js(`socket.on("last", () => socket.disconnect())`)
	c.says(`{"event":"grpchat","data":"heard"}`)
	c.says(`{"event":"last"}`)
	c.says(`{"event":"grpchat","data":"unheard"}`)
	p.status("disconnected")
	p.click("#disconnect")
	f.greet("y").says(`{"event":"grpchat","data":"heard again"}`)
	p.shows("heard", "heard again")
}

func TestReconnectingTakesLongerEachTimeUpToFiveSeconds(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	f.refuses.Store(true)
	p := open(t, f.URL, clock) // whose random number is 0 at first
	for _, want := range [][]float64{{1000, 2000, 4000, 5000, 5000}, {500, 1000, 2000, 2500, 2500}} {
		for n := range want {
			p.sees("retries()", want[:n+1])
			if n == len(want)-1 {
				f.refuses.Store(false)
			}
			p.js("elapse()")
		}
		c := f.greet("x")
		p.status("connected as x")
		p.js("delays.length = 0; Math.random = () => 1 - 2 ** -53") // the other end of its range
		f.refuses.Store(true)
		c.closes(1011)
	}
	p.sees("retries()", []int{500})
}

func TestIoDialsThePagesServerOrTheOneItIsTold(t *testing.T) {
	safe, other := pretend(t, httptest.NewTLSServer), pretend(t, httptest.NewServer)
	p := open(t, safe.URL)
	safe.greet("wss")
	p.status("connected as wss")
	p = enter(t, start(t))
	p.js(fmt.Sprintf(`const other = io(%q)`, other.URL))
	other.greet("elsewhere")
	p.sees("[other.id, other.connected, other.id !== socket.id]", []any{"elsewhere", true, true})
	host := strings.TrimPrefix(other.URL, "http://")
	for n, url := range []string{host, "//" + host, host + "/any/path?q", "localhost" + host[strings.Index(host, ":"):], "ws://" + host} {
		p.js(fmt.Sprintf(`const other%d = io(%q)`, n, url))
		other.greet(url)
		p.sees(fmt.Sprintf("other%d.id", n), url)
	}
	p.js(`
		let thrown = 0;
		for (const bad of [{}, "host:port", "ftp://example.com", "http://"]) try { io(bad); } catch { thrown++; }`)
	p.sees("thrown", 4)
}

func TestOddMessagesFromAServerDoNoHarm(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL)
	p.js(`addEventListener("error", (ev) => ev.preventDefault())`) // may happen, as long as it goes on
	c := f.greet("x")
	p.status("connected as x")
	for _, odd := range []any{"not JSON", "null", "5", "[]", "{}", []byte("binary"), `{"event":"toString"}`} {
		c.says(odd)
	}
	c.says(`{"event":"grpchat","data":"fine"}`)
	p.shows("fine")
	p.status("connected as x")
}

func TestDisconnectIsNotToldBecauseAServerSendsTheWord(t *testing.T) {
	f := pretend(t, httptest.NewServer)
	p := open(t, f.URL)
	c := f.greet("x")
	p.status("connected as x")
	p.js(`let told = 0; socket.on("disconnect", () => told++)`)
	c.says(`{"event":"disconnect","data":"a lie"}`)
	c.says(`{"event":"grpchat","data":"fine"}`)
	p.shows("fine")
	p.sees("told", 0)
	p.status("connected as x")
}
