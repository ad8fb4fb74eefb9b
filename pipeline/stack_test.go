package pipeline

import (
	"testing"

	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/internal/epoch"
	"millrace/ip/host"
	"millrace/ip/neigh"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// stack is what the default road stands on.
type stack struct {
	pool   *packet.Pool
	tables *graph.Tables
	epoch  *epoch.Domain
	fib    *fib.FIB
	mcast  *mcast.Table
}

func newStack(t testing.TB, buffers int) *stack {
	t.Helper()
	s := &stack{epoch: epoch.NewDomain()}
	var err error
	if s.pool, err = packet.NewPool(t.Name(), buffers); err != nil {
		t.Fatal(err)
	}
	if s.tables, err = graph.NewTables(); err != nil {
		t.Fatal(err)
	}
	if s.fib, err = fib.New(s.tables, s.epoch, fib.Reasons{Unresolved: neigh.XUnresolved}); err != nil {
		t.Fatal(err)
	}
	s.mcast = mcast.New(s.fib, s.epoch)
	return s
}

// options are those of a pipeline with the default path.
func (s *stack) options(r neigh.Resolver, h host.Config) Options {
	return Options{Pool: s.pool, Tables: s.tables, Epoch: s.epoch,
		Path: Default(Parts{FIB: s.fib, Multicast: s.mcast, Neighbour: r, Host: host.New(h)})}
}

// close checks that all buffers came back.
func (s *stack) close(t testing.TB) {
	t.Helper()
	s.mcast.Close()
	s.fib.Close()
	s.tables.Close()
	if s.pool.Free() != s.pool.Size() {
		t.Errorf("%d of %d buffers came back", s.pool.Free(), s.pool.Size())
	}
	s.pool.Close()
}
