package neigh

import (
	"fmt"
	"net/netip"
	"testing"

	"millrace/internal/clock"
	"millrace/ip/icmp"
	"millrace/ip/internal/rig"
	"millrace/packet"
	"millrace/pipeline/graph"
)

// table is a Resolver whose groups are: 1, connected on interface 2; 2, by gateway
// 198.51.100.254; 3, by 2001:db8:2::fe. Anything else is no group.
type table struct {
	asked []string
	gen   uint64
}

func (x *table) Target(group uint16, dst netip.Addr) (uint16, netip.Addr, bool) {
	switch group {
	case 1:
		return 2, dst, true
	case 2:
		return 2, netip.AddrFrom4([4]byte{198, 51, 100, 254}), true
	case 3:
		return 2, netip.MustParseAddr("2001:db8:2::fe"), true
	}
	return 0, netip.Addr{}, false
}
func (x *table) Ask(iface uint16, nh netip.Addr) {
	x.asked = append(x.asked, fmt.Sprint(iface, " ", nh))
}
func (x *table) Generation() uint64 { return x.gen }

type bench struct {
	*rig.Rig
	table *table
	h     *hold
}

func newBench(t testing.TB, buffers int) *bench {
	x := &table{}
	r := rig.New(t, buffers, Stage(x), icmp.Stage(icmp.Limits{}))
	return &bench{r, x, r.W.Instances["neighbour"].(*hold)}
}

// arrive lets a packet leave for XUnresolved.
func (b *bench) arrive(group uint16, dst string, tag int) {
	b.V.Reset()
	src := "203.0.113.5"
	p := []byte(nil)
	if netip.MustParseAddr(dst).Is4() {
		h := rig.UDP4(src, dst, nil, 8)
		h.SetID(uint16(tag))
		h.SetSum()
		p = h
	} else {
		p = rig.IP6("2001:db8:1::5", dst, 17, make([]byte, 8))
	}
	i := b.Add(p, 0)
	b.V.NH[i] = group
	b.Leave(XUnresolved)
}

// again lets what the stage refills come back unresolved, and says what that was.
func (b *bench) again(back bool) (tags []int) {
	for {
		b.V.Reset()
		if b.h.Refill(&b.V) == 0 {
			return tags
		}
		for i := range b.V.N {
			tags = append(tags, int(packet.IPv4(b.L3(uint8(i))).ID()))
		}
		if back {
			b.Leave(XUnresolved)
		} else {
			b.FreeAll()
		}
	}
}

func (b *bench) pass(seconds float64) {
	b.W.Now += uint64(seconds * float64(clock.Hz()))
	b.h.Tick()
}

func TestFirstPacket(t *testing.T) {
	b := newBench(t, 128)
	b.arrive(1, "198.51.100.7", 1)
	b.arrive(1, "198.51.100.7", 2)
	if got := fmt.Sprint(b.table.asked); got != "[2 198.51.100.7]" {
		t.Errorf("asked for %s", got)
	}
	if n := len(b.again(false)); n != 0 || b.h.Held() != 2 {
		t.Errorf("%d packets went on before anything changed, %d are held", n, b.h.Held())
	}
	b.table.gen++
	if got := fmt.Sprint(b.again(false)); got != "[1 2]" || b.h.Held() != 0 {
		t.Errorf("went on: %s, held: %d", got, b.h.Held())
	}
	b.pass(0.1)
	if b.h.nActive != 0 {
		t.Error("the empty queue was not forgotten")
	}
}

// TestClock: a packet that comes back from a try does not start to wait anew.
func TestClock(t *testing.T) {
	b := newBench(t, 128)
	b.arrive(1, "198.51.100.7", 1)
	for range 28 {
		b.pass(0.1)
		b.table.gen++
		if n := len(b.again(true)); n != 1 {
			t.Fatalf("%d packets tried again", n)
		}
	}
	b.arrive(1, "198.51.100.7", 2)
	if b.h.Held() != 2 || b.h.nActive != 1 || len(b.table.asked) != 3 {
		t.Errorf("%d held in %d queues, asked %d times", b.h.Held(), b.h.nActive, len(b.table.asked))
	}
	b.pass(0.3)
	if b.h.Held() != 0 || b.h.nActive != 0 || b.Note(XUnreachable) != 2 {
		t.Errorf("%d held, %d unreachable", b.h.Held(), b.Note(XUnreachable))
	}
	l := b.Refill("icmp")
	if len(l) != 2 || b.W.C.Created != 2 {
		t.Fatalf("%d errors", len(l))
	}
	h := packet.IPv4(l[0])
	if c := l[0][20:]; h.Dst() != [4]byte{203, 0, 113, 5} || h.Src() != [4]byte{192, 0, 2, 1} || c[0] != 3 || c[1] != 1 {
		t.Errorf("error % x", l[0])
	}
}

func TestUnreachable6(t *testing.T) {
	b := newBench(t, 128)
	b.arrive(3, "2001:db8:99::1", 0)
	if got := fmt.Sprint(b.table.asked); got != "[2 2001:db8:2::fe]" {
		t.Errorf("asked for %s", got)
	}
	b.pass(3.1)
	l := b.Refill("icmp")
	if len(l) != 1 || l[0][40] != 1 || l[0][41] != 3 {
		t.Errorf("errors % x", l)
	}
}

// TestGateway: all destinations behind a gateway wait together, apart from its own.
func TestGateway(t *testing.T) {
	b := newBench(t, 128)
	b.arrive(2, "10.0.0.1", 1)
	b.arrive(2, "10.0.0.2", 2)
	b.arrive(1, "198.51.100.254", 3)
	b.arrive(1, "198.51.100.253", 4)
	if b.h.nActive != 2 || len(b.table.asked) != 2 {
		t.Errorf("%d queues, asked for %v", b.h.nActive, b.table.asked)
	}
}

func TestOldestGivesWay(t *testing.T) {
	b := newBench(t, 128)
	for i := range PerNeighbour + 3 {
		b.arrive(1, "198.51.100.7", i)
	}
	if b.Note(XQueueFull) != 3 || b.h.Held() != PerNeighbour {
		t.Errorf("%d dropped, %d held", b.Note(XQueueFull), b.h.Held())
	}
	b.table.gen++
	got := b.again(false)
	for i, tag := range got {
		if tag != i+3 {
			t.Fatalf("went on: %v", got)
		}
	}
}

func TestScan(t *testing.T) {
	b := newBench(t, 2048)
	for i := range MaxNeighbours + 10 {
		b.arrive(1, fmt.Sprintf("10.0.%d.%d", i>>8, i&255), i)
	}
	if b.Note(XTableFull) != 10 || b.h.Held() != MaxNeighbours {
		t.Errorf("%d dropped, %d held", b.Note(XTableFull), b.h.Held())
	}
	b.pass(3.1)
	if b.Note(XUnreachable) != MaxNeighbours || b.h.nActive != 0 {
		t.Errorf("%d unreachable, %d queues", b.Note(XUnreachable), b.h.nActive)
	}
	for _, q := range b.h.heads {
		if q != none {
			t.Fatal("the hash table is not empty")
		}
	}
	b.arrive(1, "10.9.9.9", 0)
	if b.h.Held() != 1 {
		t.Error("no packet is held after a scan")
	}
}

func TestMaxHeld(t *testing.T) {
	b := newBench(t, 8192)
	for i := range 100 * PerNeighbour {
		b.arrive(1, fmt.Sprintf("10.0.0.%d", i/PerNeighbour), i)
	}
	if b.h.Held() != MaxHeld || b.Note(XTableFull) != 100*PerNeighbour-MaxHeld {
		t.Errorf("%d held, %d dropped", b.h.Held(), b.Note(XTableFull))
	}
	b.table.gen++
	if n := len(b.again(true)); n != MaxHeld || b.h.Held() != MaxHeld {
		t.Errorf("%d tried again, %d held", n, b.h.Held())
	}
}

// TestTries: the more packets are held, the less often they try again.
func TestTries(t *testing.T) {
	b := newBench(t, 2048)
	for i := range 1000 {
		b.arrive(1, fmt.Sprintf("10.0.%d.%d", i>>8, i&255), i)
	}
	tries := 0
	for range 1000 {
		b.table.gen++
		tries += len(b.again(true))
		b.pass(0.001)
	}
	if tries < 200000 || tries > 251000 {
		t.Errorf("%d packets tried again within a second", tries)
	}
}

func TestGone(t *testing.T) {
	b := newBench(t, 128)
	b.arrive(9, "198.51.100.7", 1)
	if b.Note(XGone) != 1 || b.h.Held() != 0 {
		t.Errorf("%d dropped, %d held", b.Note(XGone), b.h.Held())
	}
}

func TestFlush(t *testing.T) {
	b := newBench(t, 256)
	for i := range 100 {
		b.arrive(1, fmt.Sprintf("10.0.0.%d", i), i)
	}
	b.table.gen++
	b.V.Reset()
	b.h.retry()
	b.arrive(1, "10.0.0.1", 0)
	b.h.Flush()
	if b.Note(graph.XClosing) != 101 || b.h.Held() != 0 || b.Pool.Free() != b.Pool.Size() {
		t.Errorf("%d dropped, %d held", b.Note(graph.XClosing), b.h.Held())
	}
}

type quiet struct{ table }

func (q *quiet) Ask(uint16, netip.Addr) {}

func TestNoAllocs(t *testing.T) {
	x := &quiet{}
	r := rig.New(t, 256, Stage(x))
	h := r.W.Instances["neighbour"].(*hold)
	p := rig.UDP4("203.0.113.5", "198.51.100.9", nil, 8)
	n := testing.AllocsPerRun(100, func() {
		m := r.W.Cache.Alloc1()
		copy(m.Append(len(p)), p)
		k := graph.ParkNew(m, 0)
		k.NH = 1
		r.W.Leave(k, XUnresolved)
		x.gen++
		r.V.Reset()
		h.Refill(&r.V)
		r.FreeAll()
		r.W.Now += clock.Hz()
		h.Tick()
	})
	if n != 0 {
		t.Errorf("%v allocations a packet", n)
	}
}

// FuzzHold drives the stage by a script against a model that counts.
func FuzzHold(f *testing.F) {
	f.Add([]byte{0, 1, 2, 0x80, 0x40, 3, 0xc0, 0x41})
	b := newBench(f, 8192)
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) > 4000 {
			return
		}
		base := dropped(b)
		in, out := 0, 0
		for _, op := range script {
			switch op >> 6 {
			case 0, 1:
				b.arrive(1, fmt.Sprintf("10.0.0.%d", op&127), 1)
				in++
			case 2:
				b.table.gen++
				if op&1 == 0 {
					out += len(b.again(false))
				} else {
					b.again(true)
				}
			default:
				b.pass(float64(op&63) / 16)
			}
			for range b.Refill("icmp") {
			}
			if lost := in - out - b.h.Held() - int(dropped(b)-base); lost != 0 {
				t.Fatalf("%d packets unaccounted for", lost)
			}
		}
		b.h.Flush()
		b.pass(4)
		b.pass(4)
		if b.h.nActive != 0 || b.Pool.Free() != b.Pool.Size() {
			t.Fatalf("%d queues left, %d buffers lost", b.h.nActive, b.Pool.Size()-b.Pool.Free())
		}
	})
}

func dropped(b *bench) uint64 {
	return b.Note(XUnreachable) + b.Note(XQueueFull) + b.Note(XTableFull) + b.Note(XGone) + b.Note(graph.XClosing)
}
