package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"millrace/bench/bgp"
	"millrace/bench/pin"
	"millrace/bench/result"
	"millrace/internal/clock"
	"millrace/internal/mem"
)

// FIBOptions of the benchmark of the forwarding tables.
type FIBOptions struct {
	Runs   int       // of each case; 0 for 9
	Filter string    // only cases whose name contains it
	Data   bgp.Files // tables and streams; what is not there is made
	Routes int       // of a made IPv4 table, and four times those of an IPv6 one; 0 for a million
	Source string    // of the data, for the report
	Note   func(format string, a ...any)
	Report func(done, total int)
}

const (
	fibBatch  = 256     // destinations of one call, as many as a full vector
	fibHops   = 500     // next hops
	hostCount = 500_000 // host routes of the case with host routes
	ringBytes = 64 << 20
)

// lengths of the traces: 4 MiB and 8 MiB, more than a core's own caches, so that what is measured is not
// a trace learned by heart.
const (
	trace4 = 1 << 20
	trace6 = 1 << 19
)

// fibTable is a forwarding table under measurement. Its batches are of fibBatch destinations, and lists of
// destinations are a multiple of that.
type fibTable[A bgp.Addr] interface {
	// Load puts the routes of a table into it, which is empty.
	Load([]bgp.Route[A]) error
	// Find writes the values of destinations: to compare contenders.
	Find(dst []A, out []uint16)
	// Pass looks all destinations up, and leaves the answers in one batch's room.
	Pass(dst []A)
	// Polluted is Pass with packets touched before each batch. It writes the ticks that each batch took, without that.
	Polluted(dst []A, ring *fibRing, ticks []uint64)
	// Bytes is the memory that lookups read, and what only changes need. A contender that cannot tell them
	// apart gives it all as the first.
	Bytes() (hot, shadow int)
	Close()
}

// fibUpdater is a table that can be changed while another thread looks up in it.
type fibUpdater[A bgp.Addr] interface {
	fibTable[A]
	// Update makes changes in order, each visible to lookups when the next begins. A withdrawal of what is not there does nothing.
	Update([]bgp.Route[A]) error
	// Poll looks destinations up, again and again, until *stop is not 0, and returns how many.
	Poll(dst []A, stop *uint32) int
}

// contender makes an empty table that has room for n routes.
type contender[A bgp.Addr] struct {
	kind string // Millrace's own have variants: "" or "compact"
	peer string
	make func(n int) (fibTable[A], error)
	// filled: its tables are filled directly, so that the time to load them is not the peer's own.
	filled bool
}

// name is a case's name: "ipv4/prefixes", with the kind or peer of the contender.
func (c *contender[A]) name(family, rest string) string {
	if c.kind != "" {
		family += "/" + c.kind
	}
	if c.peer != "" {
		rest += "@" + c.peer
	}
	return family + "/" + rest
}

// peers4 and peers6 are contenders of other projects. A build with more of them adds them in an init.
var (
	peers4 = []contender[uint32]{{peer: "bart", make: newBart4}}
	peers6 = []contender[[16]byte]{{peer: "bart", make: newBart6}}
)

// fibRing is memory that stands for packets on their way through the router: batches of 2 KiB buffers, of which
// four lines are read and written, in a ring larger than the caches. C code has the same.
type fibRing struct {
	words []uint64
	at    int // of words
}

func newFIBRing() (*fibRing, error) {
	w, err := mem.Of[uint64](ringBytes / 8)
	return &fibRing{words: w}, err
}

// touch takes the next batch of packets through the caches.
func (r *fibRing) touch() {
	s := uint64(0)
	for range fibBatch {
		p := r.words[r.at:][:32]
		for l := 0; l < 32; l += 8 {
			s += p[l]
			p[l] = s
		}
		if r.at += 2048 / 8; r.at == len(r.words) {
			r.at = 0
		}
	}
}

// fibFamily is one address family's benchmark.
type fibFamily[A bgp.Addr] struct {
	name    string
	o       *FIBOptions
	rep     *Report
	own     []contender[A]
	peers   []contender[A]
	table   []netip.Prefix
	updates []bgp.Update
	trace   int // destinations of a trace
	traces  func(t []netip.Prefix, r *rand.Rand) []fibTrace
	ring    *fibRing
}

// fibTrace is a way to choose destinations.
type fibTrace struct {
	name string
	next func() netip.Addr
}

func traces4(t []netip.Prefix, r *rand.Rand) []fibTrace {
	return []fibTrace{{"prefixes", bgp.Prefixes(t, r)}, {"zipf", bgp.Zipf(t, r)}, {"uniform", bgp.Uniform(r)}}
}

func traces6(t []netip.Prefix, r *rand.Rand) []fibTrace {
	return []fibTrace{{"prefixes", bgp.Prefixes(t, r)}, {"zipf", bgp.Zipf(t, r)}, {"intervals", bgp.Intervals(t, r)}}
}

// FIB measures the forwarding tables and their peers.
func FIB(o FIBOptions) (*Report, error) {
	if o.Runs == 0 {
		o.Runs = 9
	}
	if o.Routes == 0 {
		o.Routes = 1 << 20
	}
	if o.Note == nil {
		o.Note = func(string, ...any) {}
	}
	rep := result.New("fib")
	rep.Source(o.Source)
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer pin.Prefer()()
	ring, err := newFIBRing()
	if err != nil {
		return nil, fmt.Errorf("bench fib: %w", err)
	}
	defer mem.Free(ring.words)
	f4 := &fibFamily[uint32]{name: "ipv4", o: &o, rep: rep, own: own4, peers: peers4, trace: trace4, traces: traces4, ring: ring}
	f6 := &fibFamily[[16]byte]{name: "ipv6", o: &o, rep: rep, own: own6, peers: peers6, trace: trace6, traces: traces6, ring: ring}
	if err := f4.read(o.Data.V4, o.Data.Updates4, func() []netip.Prefix { return bgp.Make4(o.Routes) }); err != nil {
		return nil, fmt.Errorf("bench fib: %w", err)
	}
	if err := f6.read(o.Data.V6, o.Data.Updates6, func() []netip.Prefix { return bgp.Make6(o.Routes / 4) }); err != nil {
		return nil, fmt.Errorf("bench fib: %w", err)
	}
	if err := f4.run(); err != nil {
		return nil, fmt.Errorf("bench fib: %w", err)
	}
	if err := f6.run(); err != nil {
		return nil, fmt.Errorf("bench fib: %w", err)
	}
	if len(rep.Results) == 0 {
		return nil, fmt.Errorf("bench fib: no case contains %q", o.Filter)
	}
	return rep, nil
}

// made is where a table is from that is read from no file.
const made = "made, with the structure of the Internet's"

// read takes the family's data from files, or makes it.
func (f *fibFamily[A]) read(table, updates string, gen func() []netip.Prefix) (err error) {
	from := made
	if table == "" {
		f.table = gen()
	} else if f.table, err = bgp.ReadTable(table); err != nil {
		return err
	} else {
		from = table
	}
	if len(f.table) == 0 || f.table[0].Addr().Is4() != (f.name == "ipv4") {
		return fmt.Errorf("%s has no %s routes", table, f.name)
	}
	f.rep.Data = append(f.rep.Data, fmt.Sprintf("%s: %d routes, %s", f.name, len(f.table), from))
	from = "made"
	if updates == "" {
		f.updates = bgp.MakeUpdates(f.table, len(f.table))
	} else if f.updates, err = bgp.ReadUpdates(updates); err != nil {
		return err
	} else {
		from = updates
	}
	f.rep.Data = append(f.rep.Data, fmt.Sprintf("%s: %d updates, %s", f.name, len(f.updates), from))
	return nil
}

// entrant is a contender with its table.
type entrant[A bgp.Addr] struct {
	*contender[A]
	t fibTable[A]
}

// enter makes the contenders' tables with the routes. One that cannot hold them is left out and noted.
func (f *fibFamily[A]) enter(cs []contender[A], routes []bgp.Route[A]) (es []entrant[A], leave func(), err error) {
	leave = func() {
		for _, e := range es {
			e.t.Close()
		}
	}
	for i := range cs {
		c := &cs[i]
		t, err := c.make(len(routes))
		if err != nil {
			leave()
			return nil, nil, fmt.Errorf("%s: %w", c.name(f.name, "table"), err)
		}
		if err := t.Load(routes); err != nil {
			f.o.Note("%s with %d routes: %v", c.name(f.name, "table"), len(routes), err)
			t.Close()
			continue
		}
		es = append(es, entrant[A]{c, t})
	}
	return es, leave, nil
}

// contenders are all of the family's, Millrace's first.
func (f *fibFamily[A]) contenders() []contender[A] { return append(slices.Clone(f.own), f.peers...) }

func (f *fibFamily[A]) run() error {
	for _, part := range []func() error{f.full, f.sizes, f.hosts, f.build, f.changes, f.router} {
		if err := part(); err != nil {
			return err
		}
		runtime.GC()
	}
	return nil
}

// wants reports whether the filter selects one of the cases, for any contender.
func (f *fibFamily[A]) wants(cases ...string) bool {
	for _, c := range f.contenders() {
		for _, n := range cases {
			if match(c.name(f.name, n), f.o.Filter) {
				return true
			}
		}
	}
	return false
}

// full measures lookups in the full table, with the caches to themselves and polluted.
func (f *fibFamily[A]) full() error {
	ts := f.traces(f.table, rand.New(rand.NewPCG(1, 2)))
	var names []string
	for _, t := range ts {
		names = append(names, t.name, t.name+"/polluted")
	}
	if !f.wants(append(names, "memory")...) {
		return nil
	}
	es, leave, err := f.enter(f.contenders(), bgp.Routes[A](f.table, fibHops))
	if err != nil {
		return err
	}
	defer leave()
	for _, e := range es {
		hot, shadow := e.t.Bytes()
		f.add(e.name(f.name, "memory"), "mebibytes", "MiB", false, []float64{float64(hot+shadow) / (1 << 20)})
		if e.peer == "" {
			f.add(e.name(f.name, "memory/table"), "mebibytes", "MiB", false, []float64{float64(hot) / (1 << 20)})
			f.add(e.name(f.name, "memory/shadow"), "mebibytes", "MiB", false, []float64{float64(shadow) / (1 << 20)})
		}
	}
	return f.measure(es, ts, "", true)
}

// sizes measures lookups in parts of the table.
func (f *fibFamily[A]) sizes() error {
	r := rand.New(rand.NewPCG(3, 4))
	shuffled := bgp.Sample(f.table, r, len(f.table))
	for _, s := range []struct {
		n    int
		name string
	}{{1e3, "1k"}, {1e4, "10k"}, {1e5, "100k"}, {1e6, "1M"}} {
		if s.n > len(f.table) {
			break
		}
		part := shuffled[:s.n]
		ts := f.traces(part, r)[:1]
		if !f.wants(ts[0].name + "/" + s.name) {
			continue
		}
		es, leave, err := f.enter(f.own, bgp.Routes[A](part, fibHops))
		if err != nil {
			return err
		}
		err = f.measure(es, ts, "/"+s.name, false)
		leave()
		if err != nil {
			return err
		}
	}
	return nil
}

// hosts measures lookups of host routes beside the full table.
func (f *fibFamily[A]) hosts() error {
	if !f.wants("hosts") {
		return nil
	}
	hosts := bgp.Hosts(f.table, min(hostCount, len(f.table)))
	es, leave, err := f.enter(f.contenders(), bgp.Routes[A](slices.Concat(f.table, hosts), fibHops))
	if err != nil {
		return err
	}
	defer leave()
	r := rand.New(rand.NewPCG(5, 6))
	return f.measure(es, []fibTrace{{"hosts", bgp.Prefixes(hosts, r)}}, "", false)
}

// measure lets the contenders look up each trace in turn, round by round.
func (f *fibFamily[A]) measure(es []entrant[A], ts []fibTrace, variant string, polluted bool) error {
	var jobs []*result.Job
	for _, t := range ts {
		dst, err := mem.Of[A](f.trace)
		if err != nil {
			return err
		}
		defer mem.Free(dst)
		bgp.Trace(dst, t.next)
		if err := f.agree(es, dst); err != nil {
			return fmt.Errorf("%s/%s%s: %w", f.name, t.name, variant, err)
		}
		for _, e := range es {
			if n := e.name(f.name, t.name+variant); match(n, f.o.Filter) {
				jobs = append(jobs, &result.Job{Name: n, Measure: func() (float64, error) { return clean(e.t, dst), nil }})
			}
			if n := e.name(f.name, t.name+"/polluted"); polluted && match(n, f.o.Filter) {
				part := dst[:f.trace/8]
				jobs = append(jobs, &result.Job{Name: n, Measure: func() (float64, error) { return f.polluted(e.t, part), nil }})
			}
		}
	}
	if err := f.turns(f.o.Runs).Run(context.Background(), jobs); err != nil {
		return err
	}
	for _, j := range jobs {
		f.add(j.Name, "lookups_per_second", "lookups/s", true, j.Values)
	}
	return nil
}

func (f *fibFamily[A]) turns(rounds int) result.Turns {
	return result.Turns{Rounds: rounds, Report: f.o.Report, Note: f.rep.Note}
}

// clean is the rate of lookups after a pass that warms the caches.
func clean[A bgp.Addr](t fibTable[A], dst []A) float64 {
	t.Pass(dst)
	begin := threadTime()
	t.Pass(dst)
	return float64(len(dst)) / (threadTime() - begin).Seconds()
}

// polluted is the rate of lookups without the time that the packets between them take. Batches that took
// four times the median were interrupted: they do not count, for any contender.
func (f *fibFamily[A]) polluted(t fibTable[A], dst []A) float64 {
	t.Pass(dst) // warms the caches
	ticks := make([]uint64, len(dst)/fibBatch)
	t.Polluted(dst, f.ring, ticks)
	slices.Sort(ticks)
	sum, n := uint64(0), 0
	for _, d := range ticks {
		if d <= 4*ticks[len(ticks)/2] {
			sum += d
			n++
		}
	}
	return float64(n*fibBatch) / clock.Duration(sum).Seconds()
}

// agree checks that all contenders give the same answers: a wrong one has no speed.
func (f *fibFamily[A]) agree(es []entrant[A], dst []A) error {
	var first, out []uint16
	for _, e := range es {
		out = make([]uint16, len(dst))
		e.t.Find(dst, out)
		if first == nil {
			first = out
			continue
		}
		for i := range out {
			if out[i] != first[i] {
				return fmt.Errorf("%s and %s disagree about %v: %d and %d", es[0].name(f.name, "table"), e.name(f.name, "table"),
					bgp.Netip(dst[i]), first[i], out[i])
			}
		}
	}
	return nil
}

func (f *fibFamily[A]) add(name, metric, unit string, higher bool, runs []float64) {
	if match(name, f.o.Filter) {
		f.rep.Add(name, metric, unit, higher, runs)
	}
}

// threadTime is the CPU time of the calling thread: what else runs on the machine does not count.
func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // cannot fail for one's own thread
	return time.Duration(t.Nano())
}
