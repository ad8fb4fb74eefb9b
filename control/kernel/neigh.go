package kernel

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// neighbours follows neighbours, by sockets and on a goroutine of its own: packets wait for them, and must not wait for a
// million routes that the kernel announced before.
type neighbours struct {
	sink   Sink
	log    *zap.Logger
	keep   func(Neigh) bool
	ask    *asker
	events *socket
	dumps  *socket
	known  map[neighKey]Neigh

	checked map[neighKey]time.Time // when the kernel was asked to check a stale one
	nextAge time.Time

	mu      sync.Mutex
	waiting []chan struct{} // closed when everything was told once more
	ended   chan struct{}
}

func newNeighbours(sink Sink, o *Options, log *zap.Logger, ask *asker) (*neighbours, error) {
	n := &neighbours{sink: sink, log: log, keep: o.KeepAlive, ask: ask, known: map[neighKey]Neigh{}, checked: map[neighKey]time.Time{}, ended: make(chan struct{})}
	var err error
	if n.events, err = open(false, unix.RTNLGRP_NEIGH); err != nil {
		return nil, err
	}
	if n.dumps, err = open(false); err != nil {
		n.events.close()
		return nil, err
	}
	return n, nil
}

func (n *neighbours) close() {
	n.events.close()
	n.dumps.close()
}

// again has everything read and told once more, as new. The channel is closed when it is done, or when run has ended.
func (n *neighbours) again() <-chan struct{} {
	c := make(chan struct{})
	n.mu.Lock()
	defer n.mu.Unlock()
	select {
	case <-n.ended:
		close(c)
		return c
	default:
	}
	n.waiting = append(n.waiting, c)
	_ = n.events.f.SetReadDeadline(time.Unix(1, 0))
	return c
}

// run follows until ctx ends.
func (n *neighbours) run(ctx context.Context) {
	stop := context.AfterFunc(ctx, func() { _ = n.events.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var wait []chan struct{}
	release := func() {
		for _, c := range wait {
			close(c)
		}
		wait = nil
	}
	defer func() {
		n.mu.Lock()
		close(n.ended)
		wait = append(wait, n.waiting...)
		n.mu.Unlock()
		release()
	}()
	due := time.Time{} // of a dump; zero for none
	for ctx.Err() == nil {
		now := time.Now()
		n.mu.Lock()
		wait = append(wait, n.waiting...)
		n.waiting = nil
		n.mu.Unlock()
		if len(wait) != 0 || !due.IsZero() && !now.Before(due) {
			due = time.Time{}
			if err := n.dump(); err == nil {
				release()
			} else {
				if !errors.Is(err, errInterrupted) {
					n.log.Error("reading the kernel's neighbours", zap.Error(err))
				}
				select {
				case <-ctx.Done():
				case <-time.After(quiet):
				}
				due = time.Now()
				continue
			}
		}
		if !now.Before(n.nextAge) {
			n.keepAlive(now)
			n.nextAge = now.Add(keepAlivePeriod / 10)
		}
		until := now.Add(wakePeriod)
		b, err := n.events.receive(true, until)
		for err == nil {
			for m := range messages(b) {
				n.event(m)
			}
			b, err = n.events.receive(false, time.Time{})
		}
		switch {
		case errors.Is(err, errEmpty), errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, os.ErrClosed):
			return
		default: // ENOBUFS, mostly
			due = time.Now()
		}
	}
}

func (n *neighbours) event(m message) {
	if m.typ != unix.RTM_NEWNEIGH && m.typ != unix.RTM_DELNEIGH {
		return
	}
	x, usable, ok := parseNeigh(m.body)
	if ok && usable && m.typ == unix.RTM_NEWNEIGH {
		n.set(x, false)
	} else if ok {
		n.del(neighKey{x.Index, x.Addr})
	}
}

// dump reads all neighbours and tells them, known or not.
func (n *neighbours) dump() error {
	all, err := readNeighs(n.dumps)
	if err != nil {
		return err
	}
	there := map[neighKey]bool{}
	for _, x := range all {
		there[neighKey{x.Index, x.Addr}] = true
	}
	for k := range n.known {
		if !there[k] {
			n.del(k)
		}
	}
	for _, x := range all {
		n.set(x, true)
	}
	return nil
}

func (n *neighbours) set(x Neigh, again bool) {
	k := neighKey{x.Index, x.Addr}
	if old, known := n.known[k]; known && old == x && !again {
		return
	}
	n.known[k] = x
	n.sink.NeighChanged(x)
}

func (n *neighbours) del(k neighKey) {
	x, known := n.known[k]
	if !known {
		return
	}
	delete(n.known, k)
	delete(n.checked, k)
	n.sink.NeighRemoved(x)
}

// keepAlive has the kernel check stale neighbours that Options.KeepAlive names.
func (n *neighbours) keepAlive(now time.Time) {
	if n.keep == nil {
		return
	}
	asked := 0
	for k, x := range n.known {
		if x.State != "stale" || now.Sub(n.checked[k]) < keepAlivePeriod || !n.keep(x) {
			continue
		}
		n.checked[k] = now
		n.ask.ask(k, now)
		if asked++; asked == keepAliveMost {
			return
		}
	}
}
