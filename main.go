// Command chat is the chat of the tutorial renamsingla/WebSockets, in Go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// chatData is the data of a "chat" or "broadcast" event: the page sends { data: msg.value }.
type chatData struct{ Data string }

// newChat is the tutorial's server. A comment with the tutorial's line stands above the Go line
// that does the same.
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
		// In the tutorial, broadcast takes the place of emit in 'chat'. Here it has its own event.
		socket.On("broadcast", withChatData(func(chatdata chatData) error {
			// socket.broadcast.emit('grpchat', chatdata.data)
			return socket.Broadcast("grpchat", chatdata.Data)
		}))
		// The tutorial's server has no handler of "disconnect". This one only logs the reason.
		socket.On("disconnect", func(reason json.RawMessage) error {
			log.Println("client disconnected", socket.ID, string(reason))
			return nil
		})
	})
	return io
}

// withChatData returns a Handler that decodes the data for handle. It refuses data without a text.
func withChatData(handle func(chatData) error) Handler {
	return func(data json.RawMessage) error {
		var chatdata chatData
		if json.Unmarshal(data, &chatdata) != nil || chatdata.Data == "" {
			return errors.New(`the text is missing; send it as {"data":"hello"}`)
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
	host, port, err := net.SplitHostPort(*addr)
	if err != nil || port == "" {
		log.Fatalf("the address %q must be host:port, as in -addr localhost:3000", *addr)
	}
	if _, err := os.ReadDir("public"); err != nil {
		log.Fatalf("cannot open public/; run this from the project's folder: %v", err)
	}
	signal.Ignore(syscall.SIGPIPE) // or the program would end when it logs and nobody reads the log
	io := newChat()
	server := newServer(io)
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
	address := listener.Addr().(*net.TCPAddr)
	if address.IP.IsUnspecified() { // it listens on every address
		host = "localhost"
	}
	log.Printf("listening on http://%s", net.JoinHostPort(host, strconv.Itoa(address.Port)))
	if err := server.Serve(listener); stopped.Err() == nil {
		log.Fatalf("serving failed: %v", err)
	}
	io.Close()
}

// newServer routes WebSocket handshakes, on any path, to the hub. All else gets a file.
func newServer(io *Hub) *http.Server {
	var handler http.HandlerFunc = func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD are allowed", http.StatusMethodNotAllowed)
		case r.Method == http.MethodGet && findToken(r.Header["Upgrade"], "websocket") != "":
			io.ServeHTTP(w, r)
		default:
			serveFile(w, r)
		}
	}
	return &http.Server{
		Handler:                      handler,
		DisableGeneralOptionsHandler: true,            // or net/http would answer OPTIONS * by itself
		ReadTimeout:                  4 * time.Second, // for a request; a socket sets its own deadlines
		WriteTimeout:                 4 * time.Second, // for an answer that is no file
	}
}

// serveFile serves a file of public/. For a folder it serves the folder's index.html; it never
// lists one. OpenInRoot opens nothing outside public/, not even through .. or a symbolic link.
func serveFile(w http.ResponseWriter, r *http.Request) {
	name := strings.TrimPrefix(r.URL.Path, "/")
	if name == "" || strings.HasSuffix(name, "/") {
		name += "index.html"
	}
	// app.use(express.static(path.join(__dirname, 'public')))
	file, err := os.OpenInRoot("public", name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() {
		http.NotFound(w, r)
		return
	}
	// Enough for 600 MB at 1 MB a second.
	http.NewResponseController(w).SetWriteDeadline(time.Now().Add(10 * time.Minute))
	w.Header().Set("Cache-Control", "no-cache") // so that a reload shows an edit
	http.ServeContent(w, r, name, info.ModTime(), file)
}
