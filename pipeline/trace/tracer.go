package trace

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"

	"millrace/packet"
	"millrace/pipeline/graph"
)

// Packet is one packet's way down the road.
type Packet struct {
	At      time.Time
	Worker  int
	Summary string // what it is, in the style of tcpdump
	From    string // the port it came in by, or the stage that put it on the road
	Length  int    // bytes of the frame
	Steps   []Step
	Reason  graph.Reason // why it left the road; 0 where it was sent
}

// Fate is one word for what became of the packet.
func (p *Packet) Fate() string {
	if p.Reason == 0 {
		return "sent"
	}
	return [...]string{"dropped", "host", "held", "noted"}[p.Reason.Info().Kind]
}

// Step is what one stage did.
type Step struct{ Stage, Text string }

// Tracer is a hook that follows packets and tells their way.
type Tracer struct {
	o    TraceOptions
	left atomic.Int64
	out  func(Packet)
	mu   sync.Mutex // guards calls of out and the map
	by   map[*graph.Worker]*followed
}

// followed is a worker's packets under trace, by position.
type followed struct {
	n      int
	at     [graph.VectorSize]*Packet
	left   [graph.VectorSize]bool
	seenNX int
	seenNA int
}

// TraceOptions say which packets to follow.
type TraceOptions struct {
	Filter *Filter
	Count  int
	Drops  bool     // only packets that end up dropped
	Ports  []string // only packets that came in by these; nil for any
}

// NewTracer gives the first packets selected to out, each when it has left the road. out is
// called on a worker's thread and must not block.
func NewTracer(o TraceOptions, out func(Packet)) *Tracer {
	t := &Tracer{o: o, out: out, by: map[*graph.Worker]*followed{}}
	t.left.Store(int64(o.Count))
	return t
}

// Done reports whether all packets asked for have been given out.
func (t *Tracer) Done() bool { return t.left.Load() <= 0 }

func (t *Tracer) state(w *graph.Worker) *followed {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.by[w]
	if s == nil {
		s = &followed{}
		t.by[w] = s
	}
	return s
}

// Begin picks the packets to follow.
func (t *Tracer) Begin(w *graph.Worker, v *graph.Vector, from string) {
	s := t.state(w)
	*s = followed{}
	if t.Done() || len(t.o.Ports) > 0 && !slices.Contains(t.o.Ports, from) {
		return
	}
	for i := range v.N {
		m := v.Mbuf(uint8(i))
		l3 := -1
		if v.N4+v.N6 > 0 { // from a Source: the header is known
			l3 = v.L3Off(uint8(i))
		}
		if !t.o.Filter.Match(m, l3) || !t.o.Drops && t.left.Add(-1) < 0 {
			continue
		}
		s.at[i] = &Packet{At: time.Now(), Worker: w.ID, Summary: Summary(m, l3), From: from, Length: int(m.PktLen)}
		s.n++
	}
}

// After notes what a stage did to the packets followed.
func (t *Tracer) After(w *graph.Worker, v *graph.Vector, st *graph.Stage) {
	s := t.state(w)
	if s.n == 0 {
		return
	}
	for ; s.seenNX < v.NX; s.seenNX++ {
		i := v.XPos[uint8(s.seenNX)]
		s.left[i] = true
		if p := s.at[i]; p != nil {
			p.Reason = v.XCode[uint8(s.seenNX)]
			p.Steps = append(p.Steps, Step{st.Name, fate(p.Reason)})
		}
	}
	for ; s.seenNA < v.NA; s.seenNA++ {
		i := v.APos[uint8(s.seenNA)]
		s.left[i] = true
		if p := s.at[i]; p != nil {
			p.Steps = append(p.Steps, Step{st.Name, "decapsulated: the inner packet goes down the road again"})
		}
	}
	if st.Lane != graph.IPv6 {
		t.tell(w, v, st, s, v.Lane4[:v.N4])
	}
	if st.Lane != graph.IPv4 && st.Lane != graph.Options {
		t.tell(w, v, st, s, v.Lane6[:v.N6])
	}
}

func (t *Tracer) tell(w *graph.Worker, v *graph.Vector, st *graph.Stage, s *followed, lane []uint8) {
	for _, i := range lane {
		p := s.at[i]
		if p == nil || s.left[i] {
			continue
		}
		text := st.Doc
		if st.Trace != nil {
			text = st.Trace(&graph.Look{Worker: w, Vector: v, Pos: i})
		}
		if text != "" {
			p.Steps = append(p.Steps, Step{st.Name, text})
		}
	}
}

// fate tells in a word what became of a packet that left; its reason's Doc says why.
func fate(why graph.Reason) string {
	x := why.Info()
	switch {
	case x.Kind == graph.Host:
		return "leaves for the host: " + why.String()
	case x.Kind == graph.Hold:
		return "held by " + x.To + ": " + why.String()
	case x.ICMP4.Owed || x.ICMP6.Owed:
		return "dropped, the sender is told by ICMP: " + why.String()
	}
	return "dropped: " + why.String()
}

// End gives out what was followed.
func (t *Tracer) End(w *graph.Worker, v *graph.Vector) {
	s := t.state(w)
	if s.n == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, p := range s.at {
		if p == nil || goesAgain(v, uint8(i)) {
			continue
		}
		if !t.o.Drops || p.Reason != 0 && p.Reason.Info().Kind == graph.Drop && t.left.Add(-1) >= 0 {
			t.out(*p)
		}
		s.at[i] = nil
		s.n--
	}
	s.seenNX, s.seenNA = 0, 0
	s.left = [graph.VectorSize]bool{}
}

func goesAgain(v *graph.Vector, i uint8) bool {
	for _, a := range v.APos[:v.NA] {
		if a == i {
			return true
		}
	}
	return false
}

// Summary is one line about a packet, in the style of tcpdump. l3 is the offset of its L3 header
// where the packet has no Ethernet header before it, else -1.
func Summary(m *packet.Mbuf, l3 int) string {
	b := make([]byte, min(int(m.PktLen), 256))
	b = b[:m.CopyOut(0, b)]
	first := gopacket.LayerType(layers.LayerTypeEthernet)
	if l3 >= 0 && l3 < len(b) {
		b = b[l3:]
		first = layers.LayerTypeIPv4
		if b[0]>>4 == 6 {
			first = layers.LayerTypeIPv6
		}
	}
	p := gopacket.NewPacket(b, first, gopacket.DecodeOptions{Lazy: true, NoCopy: true})
	s := ""
	for _, l := range p.Layers() {
		s += words(l)
	}
	if s == "" {
		s = "not understood"
	}
	return fmt.Sprintf("%s, %d bytes", s, m.PktLen)
}

func words(l gopacket.Layer) string {
	switch x := l.(type) {
	case *layers.Ethernet:
		if x.EthernetType == layers.EthernetTypeIPv4 || x.EthernetType == layers.EthernetTypeIPv6 || x.EthernetType == layers.EthernetTypeDot1Q {
			return ""
		}
		return fmt.Sprintf("%s > %s %s", x.SrcMAC, x.DstMAC, x.EthernetType)
	case *layers.Dot1Q:
		return fmt.Sprintf("vlan %d, ", x.VLANIdentifier)
	case *layers.ARP:
		from, to := net.IP(x.SourceProtAddress), net.IP(x.DstProtAddress)
		if x.Operation == layers.ARPRequest {
			return fmt.Sprintf(", who has %s? tell %s", to, from)
		}
		return fmt.Sprintf(", %s is at %s", from, net.HardwareAddr(x.SourceHwAddress))
	case *layers.IPv4:
		s := fmt.Sprintf("IP %s > %s, ttl %d", x.SrcIP, x.DstIP, x.TTL)
		if x.FragOffset != 0 || x.Flags&layers.IPv4MoreFragments != 0 {
			s += fmt.Sprintf(", fragment at %d", int(x.FragOffset)*8)
		}
		if x.Flags&layers.IPv4DontFragment != 0 {
			s += ", DF"
		}
		return s
	case *layers.IPv6:
		return fmt.Sprintf("IP6 %s > %s, hlim %d", x.SrcIP, x.DstIP, x.HopLimit)
	case *layers.ICMPv4:
		return fmt.Sprintf(", ICMP %s id %d seq %d", x.TypeCode, x.Id, x.Seq)
	case *layers.ICMPv6:
		return fmt.Sprintf(", ICMP6 %s", x.TypeCode)
	case *layers.TCP:
		fl := ""
		for _, f := range []struct {
			on bool
			c  string
		}{{x.SYN, "S"}, {x.FIN, "F"}, {x.RST, "R"}, {x.PSH, "P"}, {x.ACK, "."}} {
			if f.on {
				fl += f.c
			}
		}
		return fmt.Sprintf(", TCP %d > %d [%s] seq %d", x.SrcPort, x.DstPort, fl, x.Seq)
	case *layers.UDP:
		return fmt.Sprintf(", UDP %d > %d", x.SrcPort, x.DstPort)
	}
	return ""
}
