package api

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "millrace/control/api/v1"
)

// DefaultSocket is where the router listens and tools look for it: for root
// /run/millrace.sock, for others millrace.sock in $XDG_RUNTIME_DIR or, where that is not set, in
// the directory for temporary files.
func DefaultSocket() string {
	if os.Geteuid() == 0 {
		return "/run/millrace.sock"
	}
	if d := os.Getenv("XDG_RUNTIME_DIR"); d != "" {
		return filepath.Join(d, "millrace.sock")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("millrace-%d.sock", os.Geteuid()))
}

// Listener is a bound control socket. It is bound before the router gives up its
// privileges, and served afterwards.
type Listener struct {
	path string
	lock *os.File // locked while the router lives: a second one fails, a crashed one leaves nothing behind
	l    net.Listener
}

// Listen binds the socket with mode 0660. What a crashed router left is replaced; a
// router that lives is an error.
func Listen(path string) (*Listener, error) {
	if len(path) > 107 {
		return nil, fmt.Errorf("api: socket path %s is longer than the 107 bytes that Linux allows", path)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("api: %w; choose another place with --socket", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		pid, _ := io.ReadAll(lock)
		lock.Close()
		return nil, fmt.Errorf("api: another router has %s (process %s): stop it, or give this one its own --socket", path, strings.TrimSpace(string(pid)))
	}
	if err = removeStale(path); err == nil {
		if err = lock.Truncate(0); err == nil {
			_, err = fmt.Fprintln(lock, os.Getpid())
		}
	}
	var l net.Listener
	if err == nil {
		// The socket never exists with wider permission: its mode is set before it has a name.
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) (err error) {
			if cerr := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), 0o660) }); cerr != nil {
				return cerr
			}
			return err
		}}
		l, err = lc.Listen(context.Background(), "unix", path)
	}
	if err == nil {
		err = os.Chmod(path, 0o660) // the umask took away from it
	}
	if err != nil {
		if l != nil {
			l.Close()
		}
		lock.Close()
		return nil, fmt.Errorf("api: %w", err)
	}
	return &Listener{path, lock, l}, nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != os.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket: remove it, or give another --socket", path)
	}
	if c, err := net.Dial("unix", path); err == nil {
		c.Close()
		return fmt.Errorf("another program listens on %s: stop it, or give another --socket", path)
	}
	return os.Remove(path)
}

// Path is the socket's path.
func (l *Listener) Path() string { return l.path }

// Close removes the socket. Serve does it at its end.
func (l *Listener) Close() error {
	err := l.l.Close()
	l.lock.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Serve answers until ctx ends, then waits up to a second for calls in progress,
// ends streams and removes the socket.
func (l *Listener) Serve(ctx context.Context, b Backend) error {
	defer l.Close()
	return serve(ctx, l.l, Handler(b))
}

// Serve binds the socket and answers until ctx ends.
func Serve(ctx context.Context, path string, b Backend) error {
	l, err := Listen(path)
	if err != nil {
		return err
	}
	return l.Serve(ctx, b)
}

// ServeMetrics answers GET /metrics on a TCP address until ctx ends.
func ServeMetrics(ctx context.Context, addr string, b Backend) error {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return fmt.Errorf("api: metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", Metrics(b))
	return serve(ctx, l, mux)
}

func serve(ctx context.Context, l net.Listener, h http.Handler) error {
	var p http.Protocols
	p.SetHTTP1(true)
	p.SetUnencryptedHTTP2(true) // gRPC
	s := &http.Server{
		Handler: h, Protocols: &p, ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx },
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if s.Shutdown(grace) != nil {
			s.Close()
		}
	})
	err := s.Serve(l)
	if !stop() {
		<-ended
		return nil
	}
	return fmt.Errorf("api: %w", err)
}

// maxRequest bounds a request, in bytes: the largest is a configuration.
const maxRequest = 64 << 20

// Handler is everything that the UNIX socket serves: the services of package v1, /metrics
// and /debug/pprof/.
func Handler(b Backend) http.Handler {
	mux := http.NewServeMux()
	h := handler{b}
	opts := connect.WithHandlerOptions(connect.WithReadMaxBytes(maxRequest), connect.WithInterceptors(connect.UnaryInterceptorFunc(
		func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
				resp, err := next(ctx, r)
				return resp, toWire(err)
			}
		})))
	mux.Handle(v1.NewRouterHandler(h, opts))
	mux.Handle(v1.NewAuditorHandler(h, opts))
	mux.Handle(v1.NewExplainerHandler(h, opts))
	mux.Handle(v1.NewMulticastHandler(h, opts))
	mux.Handle(v1.NewPolicyHandler(h, opts))
	mux.Handle(v1.NewSourcesHandler(h, opts))
	mux.Handle("GET /metrics", Metrics(b))
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	return mux
}

// handler is a Backend with Connect's streams.
type handler struct{ Backend }

func (h handler) Trace(ctx context.Context, r *v1.TraceRequest, s *connect.ServerStream[v1.TracedPacket]) error {
	return toWire(h.Backend.Trace(ctx, r, s.Send))
}

func (h handler) Capture(ctx context.Context, r *v1.CaptureRequest, s *connect.ServerStream[v1.CaptureChunk]) error {
	return toWire(h.Backend.Capture(ctx, r, s.Send))
}

var codes = []struct {
	err  error
	code connect.Code
}{
	{ErrInvalid, connect.CodeInvalidArgument},
	{ErrNotFound, connect.CodeNotFound},
	{ErrExists, connect.CodeAlreadyExists},
	{ErrConflict, connect.CodeFailedPrecondition},
	{ErrNotSupported, connect.CodeUnimplemented},
	{context.Canceled, connect.CodeCanceled},
	{context.DeadlineExceeded, connect.CodeDeadlineExceeded},
}

// toWire gives an error the code of its meaning.
func toWire(err error) error {
	var ce *connect.Error
	if err == nil || errors.As(err, &ce) {
		return err
	}
	for _, c := range codes {
		if errors.Is(err, c.err) {
			return connect.NewError(c.code, err)
		}
	}
	return connect.NewError(connect.CodeInternal, err)
}
