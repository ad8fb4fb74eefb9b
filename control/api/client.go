package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"

	"connectrpc.com/connect"

	v1 "millrace/control/api/v1"
)

// ErrUnavailable: no router answers.
var ErrUnavailable = errors.New("no router answers")

// patience is how long a client waits for the answer to a single call whose context has no deadline.
const patience = time.Minute

// Client calls a router through its socket. It is a Backend itself: what works on a
// router works on a client. Safe for concurrent use.
type Client struct {
	v1.RouterClient
	v1.AuditorClient
	v1.ExplainerClient
	v1.MulticastClient
	v1.PolicyClient
	v1.SourcesClient
	path string
	http *http.Client
}

var _ Backend = (*Client)(nil)

// Dial returns a client for the router at a socket. It connects with the first call.
func Dial(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	c := &Client{path: path, http: &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}}
	opts := connect.WithClientOptions(
		connect.WithAcceptCompression("gzip", nil, nil), // it does not leave the machine
		connect.WithInterceptors(connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
			return func(ctx context.Context, r connect.AnyRequest) (connect.AnyResponse, error) {
				if _, ok := ctx.Deadline(); !ok {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, patience)
					defer cancel()
				}
				resp, err := next(ctx, r)
				return resp, c.fromWire(err)
			}
		})))
	const base = "http://millrace"
	c.RouterClient = v1.NewRouterClient(c.http, base, opts)
	c.AuditorClient = v1.NewAuditorClient(c.http, base, opts)
	c.ExplainerClient = v1.NewExplainerClient(c.http, base, opts)
	c.MulticastClient = v1.NewMulticastClient(c.http, base, opts)
	c.PolicyClient = v1.NewPolicyClient(c.http, base, opts)
	c.SourcesClient = v1.NewSourcesClient(c.http, base, opts)
	return c
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Path is the socket's path.
func (c *Client) Path() string { return c.path }

// Trace calls got for each packet of the stream.
func (c *Client) Trace(ctx context.Context, r *v1.TraceRequest, got func(*v1.TracedPacket) error) error {
	s, err := c.RouterClient.Trace(ctx, r)
	if err != nil {
		return c.fromWire(err)
	}
	return receive(c, s, got)
}

// Capture calls got for each chunk of the stream.
func (c *Client) Capture(ctx context.Context, r *v1.CaptureRequest, got func(*v1.CaptureChunk) error) error {
	s, err := c.RouterClient.Capture(ctx, r)
	if err != nil {
		return c.fromWire(err)
	}
	return receive(c, s, got)
}

func receive[T any](c *Client, s *connect.ServerStreamForClient[T], got func(*T) error) error {
	defer s.Close()
	for s.Receive() {
		if err := got(s.Msg()); err != nil {
			return err
		}
	}
	return c.fromWire(s.Err())
}

// Error is an error that the router returned, or that reaching it gave.
type Error struct {
	meaning error
	text    string
}

func (e *Error) Error() string { return e.text }

// Unwrap is the meaning: one of the package's Err variables, or nil.
func (e *Error) Unwrap() error { return e.meaning }

func (c *Client) fromWire(err error) error {
	var ce *connect.Error
	if !errors.As(err, &ce) {
		return err
	}
	if ce.Code() == connect.CodeCanceled {
		return context.Canceled
	}
	if ce.Code() == connect.CodeDeadlineExceeded {
		return &Error{ErrUnavailable, fmt.Sprintf("the router on %s did not answer in time", c.path)}
	}
	for _, k := range codes {
		if ce.Code() == k.code && connect.IsWireError(ce) {
			return &Error{k.err, ce.Message()}
		}
	}
	var op *net.OpError
	if ce.Code() == connect.CodeUnavailable && errors.As(ce, &op) {
		switch {
		case errors.Is(op, os.ErrPermission):
			return &Error{ErrUnavailable, fmt.Sprintf("no permission for %s: run this as root, or as a member of the socket's group", c.path)}
		case errors.Is(op, syscall.ENOENT), errors.Is(op, syscall.ECONNREFUSED):
			return &Error{ErrUnavailable, fmt.Sprintf("no router answers on %s; is it running? Start it with `millrace run eth0 eth1`, or name its socket with --socket", c.path)}
		}
		return &Error{ErrUnavailable, fmt.Sprintf("no router answers on %s: %v", c.path, op.Err)}
	}
	if ce.Code() == connect.CodeUnavailable {
		return &Error{ErrUnavailable, fmt.Sprintf("the router on %s went away: %s", c.path, ce.Message())}
	}
	return &Error{nil, ce.Message()}
}
