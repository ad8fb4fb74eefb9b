package kernel

import (
	"errors"
	"time"

	"golang.org/x/sys/unix"

	"millrace/control/rule"
)

// Dump is what the kernel has at one moment, as far as the kernel can say.
type Dump struct {
	Links  []Link
	Addrs  []Addr
	Neighs []Neigh // those whose link-layer address can be used
	Rules  []rule.Rule
	// Mroutes are the multicast routes of both families' default tables.
	Mroutes []Mroute
	// Unsettled: something changed each time that the kernel was asked.
	Unsettled bool
}

// dumpTries is how often a dump that changes interrupted is repeated, once for each kind.
const dumpTries = 5

// Dumper reads what the kernel has, apart from any Follower. It is for one goroutine at a time.
type Dumper struct{ s *socket }

// NewDumper opens a dumper in the network namespace of the calling thread.
func NewDumper() (*Dumper, error) {
	s, err := open(true)
	return &Dumper{s}, err
}

// Close closes the dumper.
func (r *Dumper) Close() { r.s.close() }

// Read reads everything anew. Routes of tables are given to routes in batches, each key once, as RouteBatch would get them; again is called
// before they are given once more from the first, because the dump was interrupted.
func (r *Dumper) Read(tables []uint32, routes func([]Route), again func()) (*Dump, error) {
	s := r.s
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
	// The parsing of routes needs a mirror that knows the next-hop objects, and nothing else of it.
	x := newMirror(nil)
	var links map[int]Link
	var filters map[int]uint8
	for _, read := range []func() error{
		func() (err error) { links, err = readLinks(s); return err },
		func() (err error) { filters, err = readFilters(s); return err },
		func() (err error) { d.Addrs, err = readAddrs(s); return err },
		func() (err error) { d.Neighs, err = readNeighs(s); return err },
		func() (err error) { x.objects, err = readObjects(s); return err },
		func() (err error) { d.Rules, err = readRules(s); return err },
		func() (err error) { d.Mroutes, err = readMroutes(s); return err },
	} {
		if err := steady(read); err != nil {
			return nil, err
		}
	}
	for _, l := range byIndex(links) {
		d.Links = append(d.Links, l.with(links, filters))
	}
	first := true
	err := steady(func() error {
		if !first {
			again()
		}
		first = false
		return eachRoute(s, x, tables, routes)
	})
	return d, err
}

// eachRoute dumps routes, each key once.
func eachRoute(s *socket, x *mirror, tables []uint32, give func([]Route)) error {
	batch := make([]Route, 0, batchSize)
	var k key
	var l []uint32 // the routes of k
	flush := func(least int) {
		if len(batch) >= least {
			give(batch)
			batch = batch[:0]
		}
	}
	next := func() {
		if len(l) != 0 {
			batch = append(batch, x.route(k, x.best(l)))
			flush(batchSize)
		}
		l = l[:0]
	}
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		for _, t := range tables {
			if err := s.routes(family, t, func(b []byte) {
				if !x.parse(b) || x.scratch.key.table != t {
					return
				}
				if x.scratch.key != k {
					next()
					k = x.scratch.key
				}
				l = append(l, x.intern(&x.scratch))
			}); err != nil {
				return err
			}
			next()
		}
	}
	flush(1)
	return nil
}
