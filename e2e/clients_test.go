package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	coder "github.com/coder/websocket"
	gorilla "github.com/gorilla/websocket"
)

// Clients of other houses talk with the page and with each other.
func TestClientsOfOtherHousesTalkWithThePage(t *testing.T) {
	s := start(t)
	p := enter(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	url := "ws" + strings.TrimPrefix(s.url, "http")

	a, answer, err := coder.Dial(ctx, url+"/any/path", &coder.DialOptions{
		CompressionMode: coder.CompressionContextTakeover, Subprotocols: []string{"chat", "superchat"}})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"} {
		if got := answer.Header.Get(name); got != "" {
			t.Errorf("%s: %s, want neither compression nor a subprotocol", name, got)
		}
	}
	b, _, err := gorilla.DefaultDialer.DialContext(ctx, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	b.SetReadDeadline(time.Now().Add(limit))
	hears := func(read func() ([]byte, error), event, data string) {
		t.Helper()
		var message struct {
			Event string
			Data  any
		}
		text, err := read()
		if json.Unmarshal(text, &message); err != nil || message.Event != event || data != "" && message.Data != data {
			t.Fatalf("got %s, %v, want %s %s", text, err, event, data)
		}
	}
	readA := func() ([]byte, error) { _, text, err := a.Read(ctx); return text, err }
	readB := func() ([]byte, error) { _, text, err := b.ReadMessage(); return text, err }
	hears(readA, "connect", "")
	hears(readB, "connect", "")

	p.says("from the page")
	hears(readA, "grpchat", "from the page")
	hears(readB, "grpchat", "from the page")
	a.Write(ctx, coder.MessageText, []byte(`{"event":"chat","data":{"data":"from coder"}}`))
	hears(readA, "grpchat", "from coder")
	hears(readB, "grpchat", "from coder")
	b.WriteMessage(gorilla.TextMessage, []byte(`{"event":"broadcast","data":{"data":"from gorilla"}}`))
	hears(readA, "grpchat", "from gorilla")
	p.shows("from the page", "from coder", "from gorilla")

	ponged := make(chan string, 1)
	b.SetPongHandler(func(text string) error { ponged <- text; return nil })
	b.WriteControl(gorilla.PingMessage, []byte("there?"), time.Now().Add(limit))
	pinged := make(chan error, 1)
	go func() { pinged <- a.Ping(ctx) }() // needs a reader
	a.CloseRead(ctx)
	if err := <-pinged; err != nil {
		t.Error("coder's ping:", err)
	}
	b.WriteControl(gorilla.CloseMessage, gorilla.FormatCloseMessage(4001, "bye"), time.Now().Add(limit))
	if _, err := readB(); !gorilla.IsCloseError(err, 4001) {
		t.Errorf("gorilla's close got %v", err)
	}
	if got := <-ponged; got != "there?" {
		t.Errorf("gorilla's ping got %q", got)
	}
	if err := a.Close(4002, "bye"); err != nil {
		t.Error("coder's close:", err)
	}
	p.says("to nobody else")
	p.shows("from the page", "from coder", "from gorilla", "to nobody else")
}

func TestAServerOutOfFileDescriptorsGoesOn(t *testing.T) {
	s := startBy(t, exec.Command("sh", "-c", `ulimit -n 64 && exec "$0" -addr 127.0.0.1:0`, program))
	url := "ws" + strings.TrimPrefix(s.url, "http")
	var in []*gorilla.Conn
	patient := gorilla.Dialer{HandshakeTimeout: 200 * time.Millisecond}
	for range 200 {
		if c, _, err := patient.Dial(url, nil); err == nil {
			defer c.Close()
			in = append(in, c)
		} else if len(in) > 0 {
			break // the server is full
		}
	}
	if len(in) == 0 || len(in) > 64 {
		t.Fatalf("%d clients are in", len(in))
	}
	talk := func(c *gorilla.Conn, text string) {
		t.Helper()
		c.SetReadDeadline(time.Now().Add(limit))
		c.WriteMessage(gorilla.TextMessage, fmt.Appendf(nil, `{"event":"chat","data":{"data":%q}}`, text))
		for {
			if _, got, err := c.ReadMessage(); err != nil {
				t.Fatal(err)
			} else if strings.Contains(string(got), text) {
				return
			}
		}
	}
	talk(in[0], "still here")
	for _, c := range in[1:] {
		c.Close()
	}
	until(t, "a new client is let in", func() (bool, any) {
		c, _, err := patient.Dial(url, nil)
		if err == nil {
			talk(c, "new here")
			c.Close()
		}
		return err == nil, err
	})
}
