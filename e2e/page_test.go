package e2e

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
)

// The page, in states that are rare.

const endInView = `(() => {
	const log = document.querySelector("[role=log]").getBoundingClientRect();
	const { bottom } = messages.lastElementChild.getBoundingClientRect();
	return bottom > log.top && bottom <= log.bottom;
})()`

func TestAMessageOfVeryManyLinesIsShownByItsFirstHundred(t *testing.T) {
	s := start(t)
	p := enter(t, s)
	chat := crowd(t, s)
	for range 60 {
		chat(strings.Repeat("\n", 32_000) + "end")
	}
	p.sees("messages.children.length", 60)
	p.sees(`[...messages.children].every((li) => li.textContent === "\n".repeat(100) + "… Lines not shown: 31901.")`, true)
	p.sees(endInView, true)
	hundred := strings.Repeat("a line\n", 99)
	for _, text := range []string{hundred, hundred + "the hundredth", "one line"} {
		chat(text)
		p.sees("messages.lastElementChild.textContent", text)
		p.sees(endInView, true)
	}
}

// Safari has no scroll anchoring. So this page has none, too.
const noAnchoring = `addEventListener("DOMContentLoaded", () => {
	document.head.insertAdjacentHTML("beforeend", "<style>* { overflow-anchor: none !important; }</style>");
})`

func TestAReaderOfAFullListKeepsTheTextThoughTheBrowserDoesNotAnchorIt(t *testing.T) {
	s := start(t)
	p := open(t, s.url, noAnchoring)
	p.status("connected as")
	chat := crowd(t, s)
	said := 0
	say := func(n int) {
		t.Helper()
		for range n {
			chat(fmt.Sprint("message ", said))
			said++
		}
		p.sees("messages.lastElementChild?.textContent", fmt.Sprint("message ", said-1))
	}
	say(1100)
	p.sees("messages.children.length", 1000)
	p.sees(newestInView, true)
	p.js(scroller + `.scrollTop -= 100`)
	p.js(`
		const log = document.querySelector("[role=log]").getBoundingClientRect();
		const item = document.elementFromPoint(log.left + 30, log.top + 60), y = item.getBoundingClientRect().y`)
	say(500)
	p.sees("[messages.children.length, item.getBoundingClientRect().y - y]", []int{1500, 0})
	say(9000)
	p.sees("messages.children.length", 10_000) // bounded, whatever happens to the text
	p.js(scroller + `.scrollTop = 1e9; let frames = 0`)
	p.js(`requestAnimationFrame(() => requestAnimationFrame(() => { frames = 2; }))`)
	p.sees("frames", 2)
	say(1)
	p.sees("messages.children.length", 1000)
	p.sees(newestInView, true)
}

func TestEachSentenceIsSaidOnceForEachChange(t *testing.T) {
	s := start(t)
	p := enter(t, s)
	p.js(`
		const said = [], parts = [state, notice, disconnect];
		for (const part of parts) new MutationObserver(() => said.push(part.textContent)).observe(part, { childList: true, characterData: true, subtree: true });
		let failed = 0;
		socket.on("connect_error", () => failed++)`)
	s.kill()
	p.status("reconnecting")
	p.says("one")
	p.sees("failed >= 3", true)
	waiting := "Messages waiting to be sent: %d. They are sent when the page reconnects."
	want := []string{"reconnecting", fmt.Sprintf(waiting, 1), "cannot reach the server, trying again …"}
	p.sees("said", want)
	p.types("two")
	p.click("#broadcast")
	p.sees("said", append(want, fmt.Sprintf(waiting, 2)))
}

func TestLeavingThePageWithMessagesWaitingAsksFirst(t *testing.T) {
	s := start(t)
	p := enter(t, s)
	p.says("sent")
	p.shows("sent")
	p.js("window.old = true; location.reload()")
	p.sees("window.old === undefined && socket.connected", true) // nobody was asked
	s.kill()
	p.status("reconnecting")
	p.says("waits")
	p.sees("waiting", 1)
	p.js("setTimeout(() => location.reload())")
	until(t, "the browser asks", func() (bool, any) {
		_, err := chromedp.Call(p.ctx, page.HandleJavaScriptDialog, page.HandleJavaScriptDialogParams{Accept: false})
		return err == nil, err
	})
	p.sees("waiting", 1)
	startAt(t, strings.TrimPrefix(s.url, "http://"))
	p.shows("waits")
	p.js("window.old = true; location.reload()")
	p.sees("window.old === undefined && socket.connected", true)
}

func TestWhereScriptsDoNotRunThePageSaysSoAndKeepsWhatIsTyped(t *testing.T) {
	for name, broken := range map[string]struct {
		path, text string // what is served there
		before     string // runs before
		off        bool
	}{
		"script.js is empty":         {path: "/script.js"},
		"script.js has a mistake":    {path: "/script.js", text: "const const"},
		"script.js fails":            {path: "/script.js", text: "none()"},
		"socket.io.js is empty":      {path: "/socket.io/socket.io.js"},
		"the browser is an old one":  {before: "delete Intl.Segmenter"},
		"the browser has no scripts": {off: true},
	} {
		t.Run(name, func(t *testing.T) {
			var pages, images atomic.Int32
			f := pretend(t, func(h http.Handler) *httptest.Server {
				return httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch r.URL.Path {
					case broken.path:
						w.Header().Set("Content-Type", "text/javascript")
						fmt.Fprint(w, broken.text)
						return
					case "/":
						pages.Add(1)
					case "/image":
						images.Add(1)
					}
					h.ServeHTTP(w, r)
				}))
			})
			p := open(t, f.URL+"/none", `addEventListener("error", (ev) => ev.preventDefault());`+broken.before)
			if broken.off {
				call(p, emulation.SetScriptExecutionDisabled, emulation.SetScriptExecutionDisabledParams{Value: true})
			}
			p.do(chromedp.Navigate(f.URL))
			p.status("needs JavaScript and a browser of today")
			before := pages.Load()
			p.says("a long text")
			p.click("#btn")
			// A page that is being left would ask for this after its next page.
			p.js(`document.body.append(Object.assign(document.createElement("img"), { src: "/image" }))`)
			until(t, "the page asks for an image", func() (bool, any) { return images.Load() > 0, nil })
			p.sees(`document.querySelector("#msg").value`, "a long text")
			p.status("needs JavaScript and a browser of today")
			if n := pages.Load(); n != before {
				t.Error("Enter has loaded the page again")
			}
		})
	}
}

func TestOnASmallScreenNothingIsGone(t *testing.T) {
	s := start(t)
	for _, size := range [][2]int64{{320, 256}, {480, 270}, {568, 320}} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			p := enter(t, s)
			p.do(chromedp.EmulateViewport(size[0], size[1]))
			p.sees("[innerWidth, innerHeight]", size)
			check := func() {
				t.Helper()
				p.sees(`["h1", "#status", "#disconnect", "[role=log]", "label", "#msg", "#btn", "#broadcast", "summary", "footer a", "#notice", "details div"].filter((part) => {
					const e = document.querySelector(part);
					if (part === "#notice" && e.textContent === "" || part === "details div" && !e.closest("details").open) return false;
					e.scrollIntoView({ block: "nearest" });
					const { left, right, top, bottom } = e.getBoundingClientRect();
					const there = document.elementFromPoint((left + right) / 2, (top + bottom) / 2);
					return !(e.contains(there) && left >= 0 && right <= innerWidth && top >= 0 && bottom <= innerHeight && bottom - top > 10);
				})`, []string{})
				p.sees("document.documentElement.scrollWidth <= innerWidth", true)
				p.sees("messages.parentElement.clientHeight > 40", true) // two lines
			}
			check()
			p.says(strings.Repeat("a long text ", 50))
			p.click("summary")
			p.js(`socket.emit("x".repeat(200))`)
			p.sees(`messages.children.length + (notice.textContent !== "")`, 2)
			check()
		})
	}
}

// The ink of tall letters shows where their fonts are installed (Debian: fonts-noto-core).
func TestTallLettersAreNotCut(t *testing.T) {
	p := enter(t, start(t))
	p.sees(`["#status", "#messages", "#msg", "#notice", "#wire"].map((part) => getComputedStyle(document.querySelector(part)).lineHeight)`,
		[]string{"normal", "normal", "normal", "normal", "normal"})
	p.js(`document.activeElement.blur(); document.querySelector("details").open = true`)
	for _, text := range []string{"ꦏꦿꦸꦥꦸꦏ꧀ ꦱꦶꦁꦒꦶꦃ ꦗꦮ", "ᬓᬸᬓ᭄ᬓᬸᬃ ᬩᬮᬶ ᬰ᭄ᬭᬷ", "བོད་སྐད་ རྒྱུད་ ཧཱུྃ", "یہ نستعلیق ہے چیچک گنجائش"} {
		p.js(fmt.Sprintf(`messages.replaceChildren(); wire.replaceChildren(); socket.emit("chat", { data: %q })`, text))
		p.sees("[messages.children.length, wire.children.length]", []int{1, 2})
		around, err := chromedp.Run(p.ctx, chromedp.Evaluate[[]page.Viewport](`[messages, wire].map((list) => {
			const { x, y, width, height } = list.getBoundingClientRect();
			return { x, y: y - 8, width, height: height + 16, scale: 1 };
		})`))
		if err != nil {
			t.Fatal(err)
		}
		for _, place := range around {
			shows := func(overflow string) []byte {
				t.Helper()
				p.js(fmt.Sprintf(`for (const li of document.querySelectorAll("li")) li.style.overflow = %q`, overflow))
				return call(p, page.CaptureScreenshot, page.CaptureScreenshotParams{Clip: &place}).Data
			}
			until(t, "all the ink is there of "+text, func() (bool, any) {
				return bytes.Equal(shows("clip"), shows("visible")), "cut off"
			})
		}
	}
}

func TestATextThatIsCutIsSaid(t *testing.T) {
	p := enter(t, start(t))
	said := "Cut: a message may have at most 10000 characters."
	p.types(strings.Repeat("x", 10_000))
	p.sees("[msg.value.length, notice.textContent]", []any{10_000.0, ""})
	p.types("x")
	p.sees("[msg.value.length, notice.textContent]", []any{10_000.0, said})
	p.press(kb.Enter)
	p.sees("[msg.value.length, notice.textContent]", []any{0.0, ""})
	p.types(strings.Repeat("x", 9_000))
	p.js("msg.setSelectionRange(0, 500)")
	p.types(strings.Repeat("y", 1_500)) // in place of the selection
	p.sees("[msg.value.length, notice.textContent]", []any{10_000.0, ""})
	p.js("msg.setSelectionRange(0, 500)")
	p.types(strings.Repeat("y", 501))
	p.sees("[msg.value.length, notice.textContent]", []any{10_000.0, said})
}
