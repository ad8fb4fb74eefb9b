package host_test

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/internal/epoch"
	"millrace/ip/host"
	"millrace/ip/neigh"
	"millrace/packet"
	"millrace/pipeline"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

type resolver struct{}

func (resolver) Target(uint16, netip.Addr) (uint16, netip.Addr, bool) { return 0, netip.Addr{}, false }
func (resolver) Ask(uint16, netip.Addr)                               {}
func (resolver) Generation() uint64                                   { return 0 }

// road is a router with one port of memory, and the station on its far side.
type road struct {
	*testing.T
	solo  *pipeline.Solo
	cache *packet.Cache
	far   pmd.Queue
	got   [][]byte
}

func newRoad(t *testing.T) *road {
	pool, err := packet.NewPool("host-road", 1024)
	if err != nil {
		t.Fatal(err)
	}
	tables, err := graph.NewTables()
	if err != nil {
		t.Fatal(err)
	}
	d := epoch.NewDomain()
	f, err := fib.New(tables, d, fib.Reasons{Unresolved: neigh.XUnresolved})
	if err != nil {
		t.Fatal(err)
	}
	// Link-local addresses are published like all others, and are routes of their own.
	own := netip.MustParsePrefix("fe80::211:22ff:fe33:4456/64")
	tables.Addrs.Store(&graph.Addresses{By: map[uint16][]netip.Prefix{1: {own}}, Is: map[netip.Addr]uint16{own.Addr(): 1}})
	if err := f.Update([]fib.Route{{Prefix: netip.PrefixFrom(own.Addr(), 128), Type: fib.Local, Source: fib.SourceConnected}}, nil); err != nil {
		t.Fatal(err)
	}
	r := &road{T: t, cache: pool.NewCache()}
	r.solo, err = pipeline.NewSolo(pipeline.Options{Pool: pool, Tables: tables, Epoch: d,
		Path: pipeline.Default(pipeline.Parts{FIB: f, Multicast: mcast.New(f, d), Neighbour: resolver{}, Host: host.New(host.Config{NoReports: true})})})
	if err != nil {
		t.Fatal(err)
	}
	near, far := mem.Pair("near", "far", mem.Options{})
	tables.Ifaces[1] = graph.Iface{MAC: pipeline.MACWord(pmd.MAC{0x00, 0x11, 0x22, 0x33, 0x44, 0x56}), MTU: 1500, Flags: graph.IfUp}
	if _, err := r.solo.AddPort(near, 1); err != nil {
		t.Fatal(err)
	}
	r.far = far.Queue(0)
	if err := r.far.Start(r.cache); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.run(time.Millisecond, nil)
		if a := r.solo.Account(); a.Missing() != 0 {
			t.Errorf("%d packets unaccounted for: %+v", a.Missing(), a)
		}
		r.solo.Close()
		r.far.Stop()
		near.Close()
		far.Close()
		r.cache.Close()
		f.Close()
		tables.Close()
		if pool.Free() != pool.Size() {
			t.Errorf("%d buffers are lost", pool.Size()-pool.Free())
		}
		pool.Close()
	})
	return r
}

func (r *road) send(frame []byte) {
	m := r.cache.Alloc1()
	copy(m.Append(len(frame)), frame)
	b := [1]uint32{m.Index()}
	if r.far.Tx(b[:]) != 1 {
		r.Fatal("the ring is full")
	}
}

// run drives the router until something is so, or the time is over.
func (r *road) run(d time.Duration, until func() bool) bool {
	var b [64]uint32
	for end := time.Now().Add(d); ; {
		r.solo.Round()
		n := r.far.Rx(b[:])
		for _, i := range b[:n] {
			m := packet.At(i)
			f := make([]byte, m.PktLen)
			m.CopyOut(0, f)
			r.got = append(r.got, f)
		}
		r.cache.Free(b[:n])
		if until != nil && until() {
			return true
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// TestSequencesOnRoad replays the conformance sequences through the whole router. What waits for
// a repeated solicitation is left to TestSequences, whose time is its own.
func TestSequencesOnRoad(t *testing.T) {
	for _, s := range host.Sequences(t) {
		t.Run(s.Name, func(t *testing.T) {
			r := newRoad(t)
			asked := map[string]bool{}
			for k, x := range s.Steps {
				var b []byte
				if x.Pkt != nil {
					b, _ = hex.DecodeString(*x.Pkt)
				}
				switch x.Cmd {
				case "CLEANUP":
					return
				case "INJECT":
					r.send(b)
					r.run(0, nil)
				case "DUMP":
					r.got = nil
				case "N_CHECK":
					r.run(3*time.Millisecond, nil)
					for _, f := range r.got {
						if f[20] == 58 && f[54] == host.Unwanted(x.Arg) {
							t.Fatalf("step %d: %x was sent", k, f)
						}
					}
				case "CHECK":
					want := host.Normal(b[14:])
					if want[6] == 58 && want[40] == 135 {
						if asked[string(want)] {
							t.Skip("waits for a second solicitation")
						}
						asked[string(want)] = true
					}
					if !r.run(500*time.Millisecond, func() bool {
						for j, f := range r.got {
							if bytes.Equal(host.Normal(f[14:]), want) && bytes.Equal(f[:14], b[:14]) {
								r.got = r.got[j+1:]
								return true
							}
						}
						return false
					}) {
						t.Fatalf("step %d: %x was not sent but %x", k, want, r.got)
					}
				}
			}
		})
	}
}
