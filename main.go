// Command chat is the chat of the tutorial renamsingla/WebSockets, in Go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"
)

// ChatData comes with "chat" and "broadcast": {data: msg.value} on the page.
type ChatData struct{ Data string }

// newChat is the tutorial's server, its lines above ours.
func newChat() *Hub {
	// const io = new Server(httpServer)
	io := NewHub()

	// io.on("connection", (socket) => {
	io.On("connection", func(socket *Socket) {
		// console.log("client connected", socket.id)
		log.Println("client connected", socket.ID)

		// socket.on('chat', (chatdata) => {
		socket.On("chat", withChatData(func(chatdata ChatData) error {
			// io.emit('grpchat', chatdata.data)
			return io.Emit("grpchat", chatdata.Data)
		}))

		socket.On("broadcast", withChatData(func(chatdata ChatData) error {
			// socket.broadcast.emit('grpchat', chatdata.data)
			return socket.Broadcast("grpchat", chatdata.Data)
		}))

		socket.On("disconnect", func(reason json.RawMessage) error {
			log.Println("client disconnected", socket.ID, string(reason))
			return nil
		})
	})
	return io
}

// withChatData makes a Handler of a function that takes a ChatData. Anybody can
// send anything: what is no ChatData is refused.
func withChatData(handle func(ChatData) error) Handler {
	return func(data json.RawMessage) error {
		var chatdata struct {
			DATA json.RawMessage // gets other letter cases, as in route
			Data *string         `json:"data"`
		}
		if json.Unmarshal(data, &chatdata) != nil || chatdata.Data == nil {
			return errors.New(`its data should look like {"data":"hello"}`)
		}
		return handle(ChatData{*chatdata.Data})
	}
}

func main() {
	addr := flag.String("addr", "localhost:3000", "host:port to listen on; port 0 picks a free one")
	flag.Parse()
	debug.SetGCPercent(200) // a chat keeps little and throws away much: for some megabytes more it need not clean up as often
	if err := listen(newChat(), *addr); err != nil {
		log.Fatal(err)
	}
}

// listen serves public/ and the sockets until Ctrl-C or SIGTERM.
func listen(io *Hub, addr string) error {
	public, err := os.OpenRoot("public") // no path and no link leads out of a Root
	if err != nil {
		return fmt.Errorf("cannot find the page, is this the project's folder? %w", err)
	}
	// httpServer.listen(3000)
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("cannot listen on %s: %w", addr, err)
	}
	at := listener.Addr().(*net.TCPAddr)
	host, _, _ := net.SplitHostPort(addr)
	if at.IP.IsUnspecified() {
		host = "localhost"
	}
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(stopped, func() {
		stop()                                               // a second signal ends the program at once
		time.AfterFunc(4*time.Second, func() { os.Exit(0) }) // should a handler hang
		listener.Close()
	})
	log.Printf("listening on http://%s", net.JoinHostPort(host, fmt.Sprint(at.Port)))
	if err := newServer(io, public.FS()).Serve(listener); stopped.Err() == nil {
		return fmt.Errorf("cannot go on: %w", err)
	}
	io.Close()
	return nil
}

// newServer hands handshakes, on any path, to the sockets, and all else to the
// files.
func newServer(io *Hub, public fs.FS) *http.Server {
	// app.use(express.static(path.join(__dirname, 'public')))
	files := http.FileServerFS(public)
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.EqualFold(r.Header.Get("Upgrade"), "websocket") {
				io.ServeHTTP(w, r)
				return
			}
			if r.URL.Path != "/" && strings.HasSuffix(r.URL.Path, "/") {
				http.NotFound(w, r) // no lists of folders
				return
			}
			w.Header().Set("Cache-Control", "no-cache") // who edits the page sees it on reload
			files.ServeHTTP(w, r)
		}),
		// For those who dribble their request, or do not take the answer.
		// A socket, once it is one, has its own limits.
		ReadTimeout:  5 * time.Second,
		WriteTimeout: 4 * time.Second,
	}
}
