package pipeline

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"millrace/fib"
	"millrace/fib/mcast"
	"millrace/ip/host"
	"millrace/packet"
	"millrace/pipeline/graph"
	"millrace/pmd"
	"millrace/pmd/mem"
	_ "millrace/pmd/memif"
	_ "millrace/pmd/pcap"
)

// The same traffic through the same router under many configurations must give the same
// packets flow by flow and the same drops: vector sizes, numbers of workers, ways of
// polling, kinds of ports. ICMP errors are left out, since their rate limit depends on time.

// trafficMix is a deterministic mix of everything the road tells apart.
func trafficMix(mac pmd.MAC) (frames [][]byte) {
	r := rand.New(rand.NewPCG(7, 8))
	build := func(l ...gopacket.SerializableLayer) []byte {
		b := gopacket.NewSerializeBuffer()
		if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, l...); err != nil {
			panic(err)
		}
		return bytes.Clone(b.Bytes())
	}
	eth := func(t layers.EthernetType) *layers.Ethernet {
		return &layers.Ethernet{DstMAC: mac[:], SrcMAC: []byte{2, 0, 0, 0, 0, 9}, EthernetType: t}
	}
	payload := func(n int) gopacket.Payload {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	ip4 := func(flow int) *layers.IPv4 {
		return &layers.IPv4{Version: 4, TTL: 64, Id: uint16(r.Uint32()), Protocol: layers.IPProtocolUDP,
			SrcIP: []byte{10, 1, byte(flow >> 8), byte(flow)}, DstIP: []byte{10, 2, byte(flow % 3), 7}}
	}
	udp := func(flow int) *layers.UDP { return &layers.UDP{SrcPort: layers.UDPPort(1000 + flow), DstPort: 53} }
	for n := range 3000 {
		flow, k := r.IntN(60), r.IntN(40)
		h, u := ip4(flow), udp(flow)
		if k >= 30 { // the kinds do not mix within a flow
			h.SrcIP[0] = byte(100 + k)
		}
		u.SetNetworkLayerForChecksum(h)
		size := []int{18, 200, 1400}[r.IntN(3)]
		switch {
		case k < 18:
			frames = append(frames, build(eth(layers.EthernetTypeIPv4), h, u, payload(size)))
		case k < 30:
			h6 := &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP,
				SrcIP: netip.MustParseAddr(fmt.Sprintf("2001:db8:1::%x", flow+1)).AsSlice(),
				DstIP: netip.MustParseAddr(fmt.Sprintf("2001:db8:2:%x::9", flow%3)).AsSlice()}
			u.SetNetworkLayerForChecksum(h6)
			frames = append(frames, build(eth(layers.EthernetTypeIPv6), h6, u, payload(min(size, 1200))))
		case k < 33: // does not fit into the way out of 10.2.2.0/24: fragmented
			h.DstIP = []byte{10, 2, 2, 7}
			frames = append(frames, build(eth(layers.EthernetTypeIPv4), h, u, payload(1400)))
		case k < 34: // bad checksum
			f := build(eth(layers.EthernetTypeIPv4), h, u, payload(30))
			f[24] ^= 0x5a
			frames = append(frames, f)
		case k < 35: // no route, from a multicast source: no ICMP error is owed for it
			h.SrcIP, h.DstIP = []byte{224, 0, 0, byte(n)}, []byte{203, 0, 113, 1}
			frames = append(frames, build(eth(layers.EthernetTypeIPv4), h, u, payload(30)))
		case k < 36: // another station's
			e := eth(layers.EthernetTypeIPv4)
			e.DstMAC = []byte{2, 9, 9, 9, 9, 9}
			frames = append(frames, build(e, h, u, payload(30)))
		case k < 37: // an unknown VLAN
			frames = append(frames, build(eth(layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 77, Type: layers.EthernetTypeIPv4}, h, u, payload(30)))
		case k < 38: // a known one
			frames = append(frames, build(eth(layers.EthernetTypeDot1Q), &layers.Dot1Q{VLANIdentifier: 5, Type: layers.EthernetTypeIPv4}, h, u, payload(30)))
		case k < 39: // padded
			f := build(eth(layers.EthernetTypeIPv4), h, u, payload(4))
			frames = append(frames, append(f, make([]byte, 14)...))
		case n%3 == 0: // for a group, to two interfaces of one port
			h.DstIP = []byte{239, 1, 0, byte(flow % 3)}
			e := eth(layers.EthernetTypeIPv4)
			e.DstMAC = []byte{1, 0, 0x5e, 1, 0, byte(flow % 3)}
			frames = append(frames, build(e, h, u, payload(min(size, 500))))
		default: // record route
			h.Options = []layers.IPv4Option{{OptionType: 7, OptionLength: 7, OptionData: []byte{4, 0, 0, 0, 0}}, {OptionType: 0}}
			frames = append(frames, build(eth(layers.EthernetTypeIPv4), h, u, payload(30)))
		}
	}
	return frames
}

// captured reads frames of shared captures, where they are, and turns them to the router.
func captured(t *testing.T, mac pmd.MAC, most int) (frames [][]byte) {
	for _, name := range []string{"tcpdump.pcap", "zeek.pcap"} {
		f, err := os.Open(filepath.Join("..", "..", "shared", "data", "captures", name))
		if err != nil {
			continue
		}
		defer f.Close()
		r, err := pcapgo.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		for n := 0; n < most/2; n++ {
			b, _, err := r.ReadPacketData()
			if err != nil {
				break
			}
			if len(b) < 60 || len(b) > 1514 {
				continue
			}
			copy(b, mac[:])
			frames = append(frames, b)
		}
	}
	return frames
}

// outcome is what must not depend on the configuration.
type outcome struct {
	flows map[string][]string // packets of each flow, sorted where they were fragmented
	drops map[string]uint64
	fate  map[string]uint64 // the accounts
}

// way is one configuration.
type way struct {
	name    string
	burst   int
	workers int
	poll    Poll
	ports   string
}

func TestMetamorphic(t *testing.T) {
	ways := []way{
		{"plain", 256, 1, Busy, "mem"},
		{"burst 1", 1, 1, Busy, "mem"},
		{"burst 32, adaptive", 32, 1, Adaptive, "mem"},
		{"two workers", 256, 2, Adaptive, "mem"},
		{"two workers, burst 1", 1, 2, Adaptive, "mem"},
		{"memif", 256, 1, Adaptive, "memif"},
		{"pcap", 256, 1, Adaptive, "pcap"},
	}
	for _, in := range []string{"mix", "captures"} {
		t.Run(in, func(t *testing.T) {
			var first outcome
			for i, w := range ways {
				o := w.run(t, in)
				if i == 0 {
					first = o
					if len(o.flows) < 20 || len(o.drops) < 3 {
						t.Fatalf("%d flows and drops %v: too little to compare", len(o.flows), o.drops)
					}
					continue
				}
				compare(t, ways[0].name, first, w.name, o)
			}
		})
	}
}

func compare(t *testing.T, aName string, a outcome, bName string, b outcome) {
	t.Helper()
	for f, p := range a.flows {
		if !slices.Equal(p, b.flows[f]) {
			t.Errorf("flow %s: %d packets with %s, %d with %s, or others", f, len(p), aName, len(b.flows[f]), bName)
		}
	}
	if len(a.flows) != len(b.flows) {
		t.Errorf("%d flows with %s, %d with %s", len(a.flows), aName, len(b.flows), bName)
	}
	for _, m := range []struct{ a, b map[string]uint64 }{{a.drops, b.drops}, {b.drops, a.drops}, {a.fate, b.fate}} {
		for k, n := range m.a {
			if m.b[k] != n {
				t.Errorf("%s: %d with %s, %d with %s", k, a.drops[k]+a.fate[k], aName, b.drops[k]+b.fate[k], bName)
			}
		}
	}
}

// bed is a router with two ports and what is behind them.
type bed struct {
	pool  *packet.Pool
	cache *packet.Cache
	in    []pmd.Queue // by queue
	out   []pmd.Queue
	ports [2]pmd.Port
	far   []pmd.Port
	file  string
}

var metaMAC = pmd.MAC{2, 0, 0, 0, 0, 1}

func (w way) run(t *testing.T, input string) outcome {
	t.Helper()
	frames := trafficMix(metaMAC)
	if input == "captures" {
		if frames = captured(t, metaMAC, 8000); len(frames) == 0 {
			t.Skip("no captures in ../shared/data")
		}
	}
	st := newStack(t, 16384)
	pool, tables, f := st.pool, st.tables, st.fib
	o := st.options(noResolver{}, host.Config{NoReset: true, NoReports: true})
	o.Burst, o.Poll = w.burst, w.poll
	o.Path.Exits = slices.DeleteFunc(o.Path.Exits, func(st *graph.Stage) bool { return st.Name == "icmp" })
	for range w.workers {
		o.Cores = append(o.Cores, -1)
	}
	p, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	b := &bed{pool: pool, cache: pool.NewCache()}
	b.open(t, w, frames)
	tables.Vlans.Store(&map[uint64]uint16{VlanKey(2, 5, 0): 3})
	// The way out first, then what leads there, then the way in. Interfaces are up once they have their
	// port, or the host would speak to nobody.
	for i := range b.ports {
		if n, err := p.AddPort(b.ports[1-i], uint16(2-i)); err != nil || int(n) != i+1 {
			t.Fatal(n, err)
		}
		if i == 0 {
			b.tables(t, f, tables)
			for g := range 2 { // and none for the third group
				if err := st.mcast.Set(mcast.Route{Key: mcast.Key{Group: netip.AddrFrom4([4]byte{239, 1, 0, byte(g)})}, In: 1,
					Out: []mcast.Out{{Iface: 2}, {Iface: 4, TTL: uint8(g)}}}); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	tables.Ifaces[1].Flags, tables.Ifaces[3].Flags = graph.IfUp, graph.IfUp

	got := b.exchange(t, p, frames)
	acc := p.Account()
	if acc.Leaks() {
		t.Errorf("%s: packets unaccounted for: %+v", w.name, acc)
	}
	res := outcome{flows: got, drops: map[string]uint64{}, fate: map[string]uint64{
		"received": acc.Received, "dropped": acc.Dropped, "to host": acc.ToHost}}
	for x, n := range p.Drops() {
		if info := graph.Reasons()[x]; n != 0 && info.Kind == graph.Drop {
			res.drops[graph.Reason(x).String()] = n
		}
	}
	p.Close()
	b.close(t)
	st.close(t)
	return res
}

func (b *bed) open(t *testing.T, w way, frames [][]byte) {
	queues := w.workers
	open := func(driver string, c pmd.Config) pmd.Port {
		t.Helper()
		d, err := pmd.Lookup(driver)
		if err != nil {
			t.Fatal(err)
		}
		c.Pool = b.pool
		port, err := d.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		return port
	}
	switch w.ports {
	case "mem":
		a, af := mem.Pair("in", "in-far", mem.Options{Queues: queues})
		c, cf := mem.Pair("out", "out-far", mem.Options{Queues: queues})
		b.ports, b.far = [2]pmd.Port{a, c}, []pmd.Port{af, cf}
	case "memif":
		dir := t.TempDir()
		end := func(name, role string) pmd.Port {
			return open("memif", pmd.Config{Name: name, Socket: filepath.Join(dir, name), Role: role})
		}
		b.ports = [2]pmd.Port{end("in", "server"), end("out", "server")}
		b.far = []pmd.Port{end("in", "client"), end("out", "client")}
	case "pcap":
		dir := t.TempDir()
		b.file = filepath.Join(dir, "out.pcapng")
		in := filepath.Join(dir, "in.pcap")
		var buf bytes.Buffer
		pw := pcapgo.NewWriter(&buf)
		pw.WriteFileHeader(1<<16, layers.LinkTypeEthernet)
		for _, f := range frames {
			if err := pw.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0), CaptureLength: len(f), Length: len(f)}, f); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile(in, buf.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
		b.ports = [2]pmd.Port{
			open("pcap", pmd.Config{Name: "in", Read: in, Rate: 20000}),
			open("pcap", pmd.Config{Name: "out", Write: b.file}),
		}
		return
	}
	for _, p := range b.far {
		for q := range p.Caps().Queues {
			if err := p.Queue(q).Start(b.cache); err != nil {
				t.Fatal(err)
			}
		}
	}
	for q := range b.far[0].Caps().Queues {
		b.in = append(b.in, b.far[0].Queue(q))
	}
	for q := range b.far[1].Caps().Queues {
		b.out = append(b.out, b.far[1].Queue(q))
	}
}

// tables: routes of the mix out by port 2, one of them with a small MTU, and a default route for the
// captures' addresses but some.
func (b *bed) tables(t *testing.T, f *fib.FIB, tables *graph.Tables) {
	// The way out is the first port, the way in the second.
	tables.Ifaces[1] = graph.Iface{MAC: MACWord(metaMAC), MTU: 1500, Port: 2}
	tables.Ifaces[2] = graph.Iface{MAC: MACWord([6]byte{2, 0, 0, 0, 0, 2}), MTU: 1500, Flags: graph.IfUp, Port: 1}
	tables.Ifaces[3] = graph.Iface{MAC: MACWord(metaMAC), MTU: 1500, Port: 2, Outer: 5}
	tables.Names.Store(&map[uint16]string{1: "in", 2: "out", 3: "in.5"})
	must := func(err error) {
		if err != nil {
			t.Helper()
			t.Fatal(err)
		}
	}
	for i := range uint16(3) {
		must(f.SetIface(i+1, fib.IfaceOptions{}))
	}
	small := tables.Ifaces[2]
	small.MTU = 600
	tables.Ifaces[4] = small
	must(f.SetIface(4, fib.IfaceOptions{}))
	via := func(a string, iface uint16) []fib.NextHop {
		must(f.SetNeighbour(iface, netip.MustParseAddr(a), pmd.MAC{2, 0, 0, 0, 1, byte(iface)}))
		return []fib.NextHop{{Via: netip.MustParseAddr(a), Iface: iface}}
	}
	route := func(p string, n []fib.NextHop) fib.Route {
		return fib.Route{Prefix: netip.MustParsePrefix(p), NextHops: n, Source: fib.SourceConfig}
	}
	n4, n6 := via("172.16.0.1", 2), via("fd00::1", 2)
	two := append(slices.Clone(n4), via("172.16.0.2", 2)...)
	must(f.Update([]fib.Route{
		route("10.2.0.0/24", n4), route("10.2.1.0/24", two), route("10.2.2.0/24", via("172.16.0.3", 4)),
		route("2001:db8:2::/48", n6), route("128.0.0.0/2", n4), route("64.0.0.0/3", n4), route("2000::/4", n6), route("3ffe::/16", n6),
	}, nil))
}

// exchange sends all frames and collects what comes out, by flow.
func (b *bed) exchange(t *testing.T, p *Pipeline, frames [][]byte) map[string][]string {
	flows := map[string][]string{}
	take := func(data []byte) {
		if data[0]&1 != 0 && !bytes.HasPrefix(data, []byte{1, 0, 0x5e, 1}) {
			return // the built-in host's own, in its own time
		}
		key, frag := flowOf(data)
		if frag {
			key = "fragments of " + key
		}
		flows[key] = append(flows[key], string(mask(data)))
	}
	var idx [64]uint32
	drain := func() (n int) {
		for _, q := range b.out {
			k := q.Rx(idx[:])
			for _, x := range idx[:k] {
				m := packet.At(x)
				data := make([]byte, m.PktLen)
				m.CopyOut(0, data)
				take(data)
			}
			b.cache.Free(idx[:k])
			n += k
		}
		for _, q := range b.in { // answers and ICMP errors: not compared
			k := q.Rx(idx[:])
			b.cache.Free(idx[:k])
		}
		return n
	}
	settled := func() bool {
		a := p.Account()
		held := 0
		for _, n := range a.Held {
			held += n
		}
		return a.Received >= uint64(len(frames)) && held == 0
	}
	end := time.Now().Add(60 * time.Second)
	if b.in != nil {
		for !b.far[0].Link().Up || !b.far[1].Link().Up {
			drain()
			if time.Now().After(end) {
				t.Fatal("no link")
			}
			time.Sleep(time.Millisecond)
		}
		for i, f := range frames {
			m := b.cache.Alloc1()
			for m == nil {
				drain()
				m = b.cache.Alloc1()
			}
			copy(m.Append(len(f)), f)
			key, _ := flowOf(f)
			h := fnv.New32a()
			h.Write([]byte(key))
			q := b.in[int(h.Sum32())%len(b.in)]
			one := [1]uint32{m.Index()}
			for q.Tx(one[:]) == 0 {
				drain()
			}
			// No faster than the router takes them: a full queue on the way out is a drop.
			for n := uint64(i + 1); ; {
				drain()
				var got uint64
				for _, w := range p.Workers() {
					got += w.C.Received
				}
				if got+64 > n {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the router takes no packets")
				}
			}
		}
	}
	for quiet := 0; quiet < 3; {
		if drain() == 0 && settled() {
			quiet++
			time.Sleep(2 * time.Millisecond)
		} else {
			quiet = 0
		}
		if time.Now().After(end) {
			a := p.Account()
			t.Fatalf("not all packets got through: %+v", a)
		}
	}
	if b.file != "" {
		for _, port := range b.ports {
			for i := range p.Ports() {
				if p.Ports()[i] == port {
					p.RemovePort(i)
				}
			}
			port.Close()
		}
		f, err := os.Open(b.file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		r, err := pcapgo.NewNgReader(f, pcapgo.DefaultNgReaderOptions)
		if err != nil {
			t.Fatal(err)
		}
		for {
			data, _, err := r.ReadPacketData()
			if err != nil {
				break
			}
			take(data)
		}
	}
	for k, l := range flows {
		if len(k) > 9 && k[:9] == "fragments" {
			sort.Strings(l)
		}
	}
	return flows
}

func (b *bed) close(t *testing.T) {
	for _, q := range append(b.in, b.out...) {
		q.Stop()
	}
	for _, p := range append(b.far, b.ports[:]...) {
		p.Close()
	}
	b.cache.Close()
}

// flowOf is the flow of a frame, and whether it is a fragment.
func flowOf(data []byte) (string, bool) {
	off, et, _, _, ok := packet.ParseEther(data)
	if !ok || len(data) < off+20 {
		return "other", false
	}
	switch {
	case et == packet.EtherIPv4:
		h := packet.IPv4(data[off:])
		frag := binary.BigEndian.Uint16(h[6:])&0x3fff != 0
		k := fmt.Sprint(h.Src(), h.Dst(), h.Proto())
		if n := h.HeaderLen(); !frag && len(h) >= n+4 && n >= 20 && (h.Proto() == 17 || h.Proto() == 6) {
			k += fmt.Sprint(h[n : n+4])
		}
		return k, frag
	case et == packet.EtherIPv6 && len(data) >= off+44:
		h := packet.IPv6(data[off:])
		return fmt.Sprint(h.Src(), h.Dst(), h.Next(), []byte(h[40:44])), false
	}
	return fmt.Sprint("type ", et), false
}

// mask hides what a router may choose: nothing today.
func mask(data []byte) []byte { return data }
