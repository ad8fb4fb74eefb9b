package bench

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"runtime/debug"

	"millrace/bench/bgp"
	"millrace/bench/result"
	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/internal/clock"
	"millrace/internal/epoch"
	"millrace/ip/host"
	"millrace/ip/neigh"
	"millrace/packet"
	"millrace/pipeline"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
)

// RoadOptions of the benchmark of the road.
type RoadOptions struct {
	Runs   int       // of each case; 0 for 9
	Filter string    // only cases whose name contains it
	Data   bgp.Files // of the full tables; what is not there is made
	Source string    // of the data, for the report
	Report func(done, total int)
}

// fullTables has the tables of the cases with full tables, read or made once.
type fullTables struct {
	files  bgp.Files
	source string
	rep    *Report
	have   map[string][]netip.Prefix
}

func (f *fullTables) get(family string) (t []netip.Prefix, err error) {
	if t := f.have[family]; t != nil {
		return t, nil
	}
	path, make := f.files.V4, bgp.Make4
	if family == "ipv6" {
		path, make = f.files.V6, bgp.Make6
	}
	from := made
	if path == "" {
		t = make(1 << 20)
	} else if t, err = bgp.ReadTable(path); err != nil {
		return nil, err
	} else {
		from = path
	}
	if f.have == nil {
		f.have = map[string][]netip.Prefix{}
		f.rep.Source(f.source)
	}
	f.have[family] = t
	f.rep.Data = append(f.rep.Data, fmt.Sprintf("%s: %d routes, %s", family, len(t), from))
	return t, nil
}

// traffic makes one frame of a kind.
type traffic func(b *roadBed, r *rand.Rand) []byte

type roadCase struct {
	name    string
	make    traffic
	pool    int // packets in flight: 4096 stay in the cache, 65536 do not
	vec     int
	ports   int // of the router; 0 for four
	full    bool
	stages  bool // report clocks of each stage too
	prepare func(p *pipeline.Path)
}

const (
	hotPool  = 4096
	coldPool = 65536
)

func roadCases() []roadCase {
	c := []roadCase{
		{name: "ipv4/64B/hot", make: plain4, stages: true},
		{name: "ipv4/64B/cold", make: plain4, pool: coldPool, stages: true},
		{name: "ipv6/64B/hot", make: plain6, stages: true},
		{name: "ipv6/64B/cold", make: plain6, pool: coldPool},
		{name: "mix/64B/hot", make: mixed},
		{name: "imix/hot", make: imix},
		{name: "exits/64B/hot", make: exits},
		{name: "overhead", make: plain4, prepare: func(p *pipeline.Path) {
			for range emptyStages {
				p.Stages = append([]*graph.Stage{p.Stages[0], emptyStage}, p.Stages[1:]...)
			}
		}},
		{name: "ipv4/64B/full-table", make: full4, full: true, stages: true},
		{name: "ipv4/64B/full-table/cold", make: full4, full: true, pool: coldPool},
		{name: "ipv6/64B/full-table", make: full6, full: true, stages: true},
		{name: "ipv6/64B/full-table/cold", make: full6, full: true, pool: coldPool},
	}
	for _, n := range []int{1, 4, 16, 64} {
		c = append(c, roadCase{name: fmt.Sprintf("ipv4/64B/vector-%d", n), make: plain4, vec: n, ports: 1})
	}
	for i := range c {
		if c[i].pool == 0 {
			c[i].pool = hotPool
		}
		if c[i].vec == 0 {
			c[i].vec = graph.VectorSize
		}
		if c[i].ports == 0 {
			c[i].ports = 4
		}
	}
	return c
}

// emptyStages are put into one road, to tell the price of one.
const emptyStages = 16

var emptyStage = &graph.Stage{Name: "empty", Doc: "does nothing", Lane: graph.Any,
	New: func(*graph.Worker) graph.Runner { return empty{} }}

type empty struct{}

func (empty) Run(*graph.Vector) {}

// roadBed is a router between ports in memory whose neighbours have the router's own MAC address: what
// it sends comes in again. TTLs last for 250 laps; then all frames are restored.
type roadBed struct {
	c      roadCase
	pool   *packet.Pool
	cache  *packet.Cache
	tables *graph.Tables
	epoch  *epoch.Domain
	fib    *fib.FIB
	solo   *pipeline.Solo
	replay *mem.Replay
	idx    []uint32
	frames [][]byte
	mac    pmd.MAC
	table  []netip.Prefix // the full table
	home   []bool         // scratch of refetch
}

type noResolver struct{}

func (noResolver) Target(uint16, netip.Addr) (uint16, netip.Addr, bool) {
	return 0, netip.Addr{}, false
}
func (noResolver) Ask(uint16, netip.Addr) {}
func (noResolver) Generation() uint64     { return 0 }

func newRoadBed(c roadCase, table []netip.Prefix) (b *roadBed, err error) {
	b = &roadBed{c: c, table: table, epoch: epoch.NewDomain()}
	if b.pool, err = packet.NewPool("bench", c.pool+1024); err != nil {
		return nil, err
	}
	b.cache = b.pool.NewCache()
	b.idx = make([]uint32, c.pool)
	if b.cache.Alloc(b.idx) != c.pool {
		return nil, fmt.Errorf("bench: pool too small")
	}
	if b.tables, err = graph.NewTables(); err != nil {
		return nil, err
	}
	if b.fib, err = fib.New(b.tables, b.epoch, fib.Reasons{Unresolved: neigh.XUnresolved}); err != nil {
		return nil, err
	}
	path := pipeline.Default(pipeline.Parts{FIB: b.fib, Multicast: mcast.New(b.fib, b.epoch), Neighbour: noResolver{}, Host: host.New(host.Config{})})
	if c.prepare != nil {
		c.prepare(&path)
	}
	if b.solo, err = pipeline.NewSolo(pipeline.Options{Pool: b.pool, Tables: b.tables, Epoch: b.epoch, Path: path, Burst: c.vec}); err != nil {
		return nil, err
	}
	if err = b.ports(); err != nil {
		return nil, err
	}
	if err = b.routes(); err != nil {
		return nil, err
	}
	r := rand.New(rand.NewPCG(1, 2))
	b.frames = make([][]byte, c.pool)
	for i := range b.frames {
		b.frames[i] = c.make(b, r)
	}
	r.Shuffle(len(b.idx), func(i, j int) { b.idx[i], b.idx[j] = b.idx[j], b.idx[i] })
	b.restore(0)
	return b, nil
}

func (b *roadBed) ports() error {
	b.replay = mem.NewReplay("p1", b.idx)
	b.mac = b.replay.Link().MAC
	ports := []pmd.Port{b.replay}
	for i := 2; i <= b.c.ports; i++ {
		ports = append(ports, b.replay.NewOut(fmt.Sprint("p", i)))
	}
	names := map[uint16]string{}
	for i, p := range ports {
		id := uint16(i + 1)
		names[id] = p.Name()
		b.tables.Ifaces[id] = graph.Iface{MAC: pipeline.MACWord(p.Link().MAC), MTU: 1500, Flags: graph.IfUp}
		if _, err := b.solo.AddPort(p, id); err != nil {
			return err
		}
		if err := b.fib.SetIface(id, fib.IfaceOptions{}); err != nil {
			return err
		}
	}
	b.tables.Names.Store(&names)
	return nil
}

// routes: neighbours n.0.0.1 on each port, 256 of them for the full table; one IPv4 and one IPv6 route,
// beside 500 random IPv6 ones so that the tree is not a single path.
func (b *roadBed) routes() error {
	r := rand.New(rand.NewPCG(3, 4))
	var via, via6 []fib.NextHop
	for i := range 256 {
		id := uint16(i%b.c.ports + 1)
		a := netip.AddrFrom4([4]byte{100, 64, byte(id), byte(i)})
		a6 := netip.AddrFrom16([16]byte{0xfd, 0, 14: byte(id), 15: byte(i)})
		via, via6 = append(via, fib.NextHop{Via: a, Iface: id}), append(via6, fib.NextHop{Via: a6, Iface: id})
		for _, n := range []netip.Addr{a, a6} {
			if err := b.fib.SetNeighbour(id, n, b.mac); err != nil {
				return err
			}
		}
	}
	rs := []fib.Route{
		{Prefix: netip.MustParsePrefix("10.1.2.0/24"), NextHops: via[1:2], Source: fib.SourceConfig},
		{Prefix: netip.MustParsePrefix("2001:db8:1::/48"), NextHops: via6[2:3], Source: fib.SourceConfig},
	}
	for range 500 {
		var a [16]byte
		a[0] = 0x20 + byte(r.IntN(16))
		for k := 1; k < 6; k++ {
			a[k] = byte(r.Uint32())
		}
		rs = append(rs, fib.Route{Prefix: netip.PrefixFrom(netip.AddrFrom16(a), 32+8*r.IntN(3)).Masked(), NextHops: via6[:1], Source: fib.SourceConfig})
	}
	for _, p := range b.table {
		n := bgp.Value(p, 0, len(via))
		hops := via[n-1 : n]
		if !p.Addr().Is4() {
			hops = via6[n-1 : n]
		}
		rs = append(rs, fib.Route{Prefix: p, NextHops: hops, Source: fib.SourceKernel})
	}
	return b.fib.Update(rs, nil)
}

// restore gives all packets their frames back, for some laps.
func (b *roadBed) restore(laps int) {
	if lost := b.c.pool - b.onBoard(); lost > 0 {
		// What the road dropped went back to the worker's cache: take as many again.
		b.refetch()
	}
	for k, x := range b.idx {
		m := packet.At(x)
		m.DataOff, m.Next, m.NbSegs = packet.Headroom, 0, 1
		f := b.frames[k]
		m.PktLen, m.DataLen = uint32(len(f)), uint16(len(f))
		copy(m.Bytes(), f)
	}
	for i := 1; i <= b.c.ports; i++ {
		if o, ok := b.tables.Ports[i].(*mem.Out); ok {
			o.Forget()
		}
	}
	b.replay.Reset(laps)
}

func (b *roadBed) onBoard() int { return b.c.pool - b.replay.Missing() }

// refetch replaces packets that were dropped.
func (b *roadBed) refetch() {
	slot := func(x uint32) uint32 { return (x - b.pool.First()) / (packet.Stride / 64) }
	if b.home == nil {
		b.home = make([]bool, b.pool.Size())
	}
	clear(b.home)
	for _, o := range b.outs() {
		for _, x := range o {
			b.home[slot(x)] = true
		}
	}
	for k, x := range b.idx {
		if !b.home[slot(x)] {
			b.solo.Cache.Alloc(b.idx[k : k+1])
		}
	}
}

func (b *roadBed) outs() (l [][]uint32) {
	for i := 1; i <= b.c.ports; i++ {
		switch p := b.tables.Ports[i].(type) {
		case *mem.Replay:
			l = append(l, p.Sent())
		case *mem.Out:
			l = append(l, p.Sent())
		}
	}
	return l
}

// measure takes all packets round some laps and returns clocks per packet.
func (b *roadBed) measure() float64 {
	laps := max(1, 1<<18/b.c.pool)
	if laps > 200 {
		laps = 200
	}
	lossy := false
	b.restore(1)
	for b.solo.Round() > 0 {
	}
	if lossy = b.replay.Missing() > 0; lossy {
		// A packet that was dropped is missing in the next lap: one lap at a time.
		var sum float64
		n := 0
		for range 64 {
			b.restore(1)
			n += b.c.pool
			sum += b.timed()
		}
		return sum / float64(n)
	}
	b.restore(laps)
	return b.timed() / float64(laps*b.c.pool)
}

func (b *roadBed) timed() float64 { return b.timedBy(b.solo.Round) }

func (b *roadBed) timedBy(round func() int) float64 {
	t := clock.Ticks()
	for round() > 0 {
	}
	return float64(clock.Ticks() - t)
}

// overhead measures, on the same packets in turn, the road with empty stages and without, and without all that
// surrounds the stages in a worker: counters, hooks that are off, clock, epoch.
func (b *roadBed) overhead(rep *Report, runs int) {
	const laps = 100
	lap := func(round func() int) float64 {
		b.restore(1)
		b.timedBy(round)
		b.restore(laps)
		return b.timedBy(round) / float64(laps*b.c.pool)
	}
	plain := func(stage string) bool { return stage != emptyStage.Name }
	for _, vec := range []int{graph.VectorSize, 1} {
		b.solo.SetBurst(vec)
		var empty, around []float64
		for range runs {
			b.solo.Use(plain)
			a := lap(b.solo.Round)
			bare := lap(b.solo.RoundBare)
			b.solo.Use(func(string) bool { return true })
			e := lap(b.solo.Round)
			empty = append(empty, (e-a)/emptyStages)
			around = append(around, a-bare)
		}
		rep.Add(fmt.Sprintf("overhead/empty-stage/vector-%d", vec), "added_clocks_per_packet", "clocks", false, empty)
		rep.Add(fmt.Sprintf("overhead/counters-and-hooks-off/vector-%d", vec), "added_clocks_per_packet", "clocks", false, around)
	}
	b.solo.SetBurst(graph.VectorSize)
}

func (b *roadBed) close() {
	b.solo.Close()
	b.fib.Close()
	b.tables.Close()
	b.pool.Close()
}

// Road measures the whole path between ports in memory.
func Road(o RoadOptions) (*Report, error) {
	if o.Runs == 0 {
		o.Runs = 9
	}
	rep := result.New("road")
	tables := fullTables{files: o.Data, rep: rep, source: o.Source}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	var beds []*roadBed
	for _, c := range roadCases() {
		if !match(c.name, o.Filter) {
			continue
		}
		var table []netip.Prefix
		if c.full {
			var err error
			if table, err = tables.get(c.name[:4]); err != nil {
				return nil, fmt.Errorf("bench road: %w", err)
			}
		}
		b, err := newRoadBed(c, table)
		if err != nil {
			return nil, fmt.Errorf("bench road: %s: %w", c.name, err)
		}
		defer b.close()
		beds = append(beds, b)
		rep.Machine.Pages = b.pool.Pages().String()
	}
	if len(beds) == 0 {
		return nil, fmt.Errorf("bench road: no case contains %q", o.Filter)
	}
	runtime.GC()
	jobs := result.Jobs(len(beds), func(i int) string { return beds[i].c.name }, func(i int) float64 { return beds[i].measure() })
	turns := result.Turns{Rounds: o.Runs, WarmUp: true, Report: o.Report, Note: rep.Note}
	if err := turns.Run(context.Background(), jobs); err != nil {
		return nil, fmt.Errorf("bench road: %w", err)
	}
	ghz := float64(clock.Hz()) / 1e9
	for i, b := range beds {
		if b.c.name == "overhead" {
			b.overhead(rep, o.Runs)
			continue
		}
		rep.Add(b.c.name, "clocks_per_packet", "clocks", false, jobs[i].Values)
		rep.Add(b.c.name, "ns_per_packet", "ns", false, scale(jobs[i].Values, 1/ghz))
		if b.c.stages {
			b.stages(rep, o.Runs)
		}
	}
	return rep, nil
}

// stages measures each stage by itself: the clock reads between them are in the figures.
func (b *roadBed) stages(rep *Report, runs int) {
	b.solo.SetMeasure(true)
	defer b.solo.SetMeasure(false)
	names := b.solo.Stages()
	per := make([][]float64, len(names))
	for range runs {
		before := b.solo.C.Stage
		b.measure()
		for s := range names {
			if n := b.solo.C.Stage[s].Measured - before[s].Measured; n > 0 {
				per[s] = append(per[s], float64(b.solo.C.Stage[s].Clocks-before[s].Clocks)/float64(n))
			}
		}
	}
	for s, n := range names {
		rep.Add(b.c.name+"/"+n, "clocks_per_packet", "clocks", false, per[s])
	}
}
