package kernel

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"
)

// Dump is what the kernel has at one moment, as far as the kernel can say.
type Dump struct {
	Links  []Link
	Addrs  []Addr
	Neighs []Neigh // those whose link-layer address can be used
	// Unsettled: something changed each time that the kernel was asked.
	Unsettled bool
}

// dumpTries is how often a dump that changes interrupted is repeated, once for each kind.
const dumpTries = 5

// Dumper reads what the kernel has, apart from any Follower. It is for one goroutine at a time.
type Dumper struct{ s *socket }

// NewDumper opens a dumper in the network namespace of the calling thread.
func NewDumper() (*Dumper, error) {
	s, err := open()
	return &Dumper{s}, err
}

// Close closes the dumper.
func (r *Dumper) Close() { r.s.close() }

// Read reads everything anew. Routes of the tables that
// wanted names are given to routes in batches, each key once, as RouteBatch would get them; again is called
// before they are given once more from the first, because the dump was interrupted.
func (r *Dumper) Read(wanted func(table uint32) bool, routes func([]Route), again func()) (*Dump, error) {
	s := r.s
	// The parsing of routes needs the next-hop objects, and nothing else of a follower.
	f := &Follower{dumps: s, objects: map[uint32]object{}}
	d := &Dump{}
	steady := func(read func() error) error {
		for try := 1; ; try++ {
			err := read()
			if !errors.Is(err, errInterrupted) {
				return err
			}
			if try == dumpTries {
				d.Unsettled = true
				return nil
			}
			time.Sleep(time.Duration(try) * quiet)
		}
	}
	if err := steady(func() error {
		d.Links = d.Links[:0]
		return s.dump(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(m message) {
			if l, ok := parseLink(m.body); ok && m.typ == unix.RTM_NEWLINK {
				d.Links = append(d.Links, l)
			}
		})
	}); err != nil {
		return nil, err
	}
	if err := steady(func() error {
		d.Addrs = d.Addrs[:0]
		return s.dump(unix.RTM_GETADDR, make([]byte, unix.SizeofIfAddrmsg), func(m message) {
			if a, ok := parseAddr(m.body); ok && m.typ == unix.RTM_NEWADDR {
				d.Addrs = append(d.Addrs, a)
			}
		})
	}); err != nil {
		return nil, err
	}
	if err := steady(func() error {
		d.Neighs = d.Neighs[:0]
		return s.dump(unix.RTM_GETNEIGH, make([]byte, unix.SizeofNdMsg), func(m message) {
			if n, usable, ok := parseNeigh(m.body); ok && usable && m.typ == unix.RTM_NEWNEIGH {
				d.Neighs = append(d.Neighs, n)
			}
		})
	}); err != nil {
		return nil, err
	}
	if err := steady(f.dumpObjects); err != nil {
		return nil, err
	}
	first := true
	err := steady(func() error {
		if !first {
			again()
		}
		first = false
		return f.eachRoute(wanted, routes)
	})
	return d, err
}

// eachRoute dumps routes. Those of one key come behind one another, the one in use first.
func (f *Follower) eachRoute(wanted func(table uint32) bool, give func([]Route)) error {
	batch := make([]Route, 0, batchSize)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = family
		var last RouteKey
		if err := f.dumps.dump(unix.RTM_GETROUTE, body, func(m message) {
			r, ok := parseRoute(m.body, f.expand)
			if !ok || m.typ != unix.RTM_NEWROUTE || !wanted(r.Table) || r.RouteKey == last {
				return
			}
			last = r.RouteKey
			f.share(&r)
			if batch = append(batch, r); len(batch) == batchSize {
				give(batch)
				batch = batch[:0]
			}
		}); err != nil {
			return err
		}
	}
	give(batch)
	return nil
}
