// Command chat is the chat of the tutorial renamsingla/WebSockets, in Go.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

type chatData struct{ Data string } // of "chat" and "broadcast": {data: msg.value} on the page

// newChat is the tutorial's server. Each tutorial line is a comment above its Go line.
func newChat() *Hub {
	// const io = new Server(httpServer)
	io := NewHub()
	// io.on("connection", (socket) => {
	io.On("connection", func(socket *Socket) {
		// console.log("client connected", socket.id)
		log.Println("client connected", socket.ID)
		// socket.on('chat', (chatdata) => {
		socket.On("chat", withChatData(func(chatdata chatData) error {
			// io.emit('grpchat', chatdata.data)
			return io.Emit("grpchat", chatdata.Data)
		}))
		socket.On("broadcast", withChatData(func(chatdata chatData) error {
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

// withChatData makes a Handler that decodes its data, and rejects what is not a chatData.
func withChatData(handle func(chatData) error) Handler {
	return func(data json.RawMessage) error {
		var chatdata chatData
		if json.Unmarshal(data, &chatdata) != nil || chatdata.Data == "" {
			return errors.New(`data must look like {"data":"hello"}, with some text`)
		}
		return handle(chatdata)
	}
}

func main() {
	addr := flag.String("addr", "localhost:3000", "host:port to listen on; port 0 picks a free one")
	flag.Parse()
	if flag.NArg() > 0 {
		log.Fatalf("unexpected argument %q; to set the address, write -addr host:port", flag.Arg(0))
	}
	public, err := os.OpenRoot("public") // neither .. nor a symbolic link leads out of a Root
	if err != nil {
		log.Fatalf("cannot open public/; run this from the project's folder: %v", err)
	}
	io := newChat()
	server := newServer(io, public)
	// httpServer.listen(3000)
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		log.Fatalf("cannot listen on %s: %v", *addr, err)
	}
	stopped, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(stopped, func() {
		stop()                                               // a second signal ends the program at once
		time.AfterFunc(4*time.Second, func() { os.Exit(0) }) // in case a handler hangs
		server.Close()
	})
	host, _, _ := net.SplitHostPort(*addr)
	_, port, _ := net.SplitHostPort(listener.Addr().String())
	log.Printf("listening on http://%s", net.JoinHostPort(cmp.Or(host, "localhost"), port))
	if err := server.Serve(listener); stopped.Err() == nil {
		log.Fatalf("serving failed: %v", err)
	}
	io.Close()
}

// newServer routes WebSocket handshakes, on any path, to the hub, and all else to the files.
func newServer(io *Hub, public *os.Root) *http.Server {
	// app.use(express.static(path.join(__dirname, 'public')))
	files := http.FileServerFS(public.FS())
	var handler http.HandlerFunc = func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are allowed", http.StatusMethodNotAllowed)
		case r.Method == http.MethodGet && findToken(r.Header["Upgrade"], "websocket") != "":
			io.ServeHTTP(w, r)
		case r.URL.Path != "/" && strings.HasSuffix(r.URL.Path, "/"):
			http.NotFound(w, r) // no directory listings
		default:
			w.Header().Set("Cache-Control", "no-cache") // so that a reload shows an edit
			files.ServeHTTP(w, r)
		}
	}
	// The timeouts are for slow requests of files. A socket has its own.
	return &http.Server{Handler: handler, ReadTimeout: 4 * time.Second, WriteTimeout: 4 * time.Second}
}
