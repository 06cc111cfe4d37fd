// Command chat is the chat of the tutorial renamsingla/WebSockets, in Go.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// chatData is the data of a "chat" or "broadcast" event: the page sends { data: msg.value }.
type chatData struct{ Data string }

// newChat is the tutorial's server. Each line of the tutorial stands as a comment above its Go line.
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
		socket.On("disconnect", func(reason json.RawMessage) error { // the tutorial's server has no such handler
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
	host, port, err := net.SplitHostPort(*addr)
	if err != nil || port == "" || flag.NArg() > 0 {
		log.Fatalf(`cannot use %q; write -addr host:port, as in -addr localhost:3000 or -addr "[::1]:3000"`, os.Args[1:])
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
	context.AfterFunc(stopped, func() { stop(); server.Close() }) // after stop, a signal ends the program at once
	address := listener.Addr().(*net.TCPAddr)
	if address.IP.IsUnspecified() { // it listens on every address
		host = "localhost"
	}
	log.Printf("listening on http://%s", net.JoinHostPort(host, fmt.Sprint(address.Port)))
	if err := server.Serve(listener); err != http.ErrServerClosed {
		log.Fatalf("serving failed: %v", err)
	}
	time.AfterFunc(closeWait+time.Second, func() { os.Exit(0) }) // io.Close would wait for a handler that hangs
	io.Close()
}

// newServer routes WebSocket handshakes, on any path, to the hub. Any other GET or HEAD gets a file.
func newServer(io *Hub) *http.Server {
	return &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method != http.MethodGet && r.Method != http.MethodHead:
				w.Header().Set("Allow", "GET, HEAD")
				http.Error(w, "only GET and HEAD are allowed", http.StatusMethodNotAllowed)
			case r.Method == http.MethodGet && findToken(r.Header["Upgrade"], "websocket") != "":
				handshake := r.WithContext(r.Context()) // a copy, with the headers
				r.Header = nil                          // net/http keeps r as long as the socket lives: this saves memory
				io.ServeHTTP(w, handshake)
			default:
				serveFile(w, r)
			}
		}),
		DisableGeneralOptionsHandler: true,            // so that OPTIONS * gets 405, too
		MaxHeaderBytes:               12 << 10,        // net/http adds 4 KB; a request with more gets 431
		ReadTimeout:                  4 * time.Second, // for a request; a socket sets its own deadlines
		WriteTimeout:                 4 * time.Second, // for an answer that is no file
	}
}

// serveFile serves a file of public/, or the index.html of a folder. It never lists a folder.
func serveFile(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-cache") // a browser asks each time, so a reload shows an edit
	name := strings.TrimPrefix(r.URL.Path, "/")
	if name == "" || strings.HasSuffix(name, "/") {
		name += "index.html"
	}
	// app.use(express.static(path.join(__dirname, 'public')))
	file, err := openPublic(name)
	var info os.FileInfo
	if err == nil {
		http.NewResponseController(w).SetWriteDeadline(time.Now().Add(10 * time.Minute)) // 600 MB at 1 MB a second
		defer file.Close()
		info, err = file.Stat()
	}
	switch {
	case errors.Is(err, os.ErrPermission), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		log.Printf("cannot open %q in public/: %q", name, err)
		http.Error(w, "the server cannot open this file", http.StatusInternalServerError)
	case err == nil && info.IsDir() && !strings.HasSuffix(r.URL.Path, "/"):
		http.Redirect(w, r, r.URL.JoinPath("/").RequestURI(), http.StatusMovedPermanently) // RequestURI has no host
	case err != nil || !info.Mode().IsRegular():
		http.NotFound(w, r)
	default:
		w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
		http.ServeContent(w, r, name, time.Time{}, file) // no date: it would show no edit within the same second
	}
}

// openPublic opens a file or folder of public/, but none whose name begins with a dot.
func openPublic(name string) (*os.File, error) {
	if strings.Contains("/"+name, "/.") || strings.Contains(name, `\.`) { // on Windows, \ is a slash, too
		return nil, os.ErrNotExist
	}
	public, err := os.OpenRoot("public") // a Root opens nothing outside, not even through .. or a symbolic link
	if err != nil {
		return nil, err
	}
	defer public.Close()
	return public.OpenFile(name, os.O_RDONLY|syscall.O_NONBLOCK, 0) // O_NONBLOCK: do not wait for a pipe's writer
}
