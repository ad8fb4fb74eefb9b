package traffic

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"millrace/internal/testnet"
)

// due is a frame with its time.
type due struct {
	at   time.Duration
	side Side
	conn uint64
	b    []byte
}

// unrolled are the frames of the first n connections in the order of time.
func unrolled(p *Profile, n uint64) (l []due) {
	for i := range p.Streams {
		s := &p.Streams[i]
		for k := range n {
			l = append(l, due{s.Start + time.Duration(float64(k)/s.Rate.Value*1e9), s.Side, k, s.Frame(k, s.Size(k))})
		}
	}
	slices.SortStableFunc(l, func(a, b due) int { return int(a.at - b.at) })
	return l
}

const web = `conversations:
  - name: web
    rate: 500
    client: {ADDR port: 1024-1030}
    request: 3000
    response: 20001
    rounds: 2
    think: 3ms
    close: CLOSE
`

func webText(close, addr string) string {
	return strings.NewReplacer("CLOSE", close, "ADDR", addr).Replace(web)
}

// TestConversation follows each connection as two TCP stacks would: nothing is acknowledged that has not come,
// nothing is missing, both sides begin and end.
func TestConversation(t *testing.T) {
	for _, addr := range []string{"", "ipv4: 10.0.0.1-10.0.0.3,", "ipv6: 2001:db8::1-2001:db8::4,"} {
		p := parsed(t, webText("server", addr))
		check(t, p, 5)
		type side struct {
			next, acked uint32
			syn, fin    bool
		}
		conns := map[uint64]*[2]side{}
		tuples := map[string]uint64{}
		for _, d := range unrolled(p, 20) {
			pkt := gopacket.NewPacket(d.b, layers.LayerTypeEthernet, gopacket.Default)
			tcp := pkt.Layer(layers.LayerTypeTCP).(*layers.TCP)
			c := conns[d.conn]
			if c == nil {
				c = &[2]side{}
				conns[d.conn] = c
			}
			me, you := &c[d.side], &c[1-d.side]
			if tcp.SYN {
				me.next, me.syn = tcp.Seq, true
				if d.side == Left {
					flow := pkt.NetworkLayer().NetworkFlow().String() + tcp.SrcPort.String()
					if old, ok := tuples[flow]; ok && old+7 > d.conn {
						t.Errorf("%s: connections %d and %d have equal ends", addr, old, d.conn)
					}
					tuples[flow] = d.conn
				}
			}
			if tcp.Seq != me.next {
				t.Fatalf("%s: connection %d at %v: sequence %d, want %d", addr, d.conn, d.at, tcp.Seq, me.next)
			}
			me.next += uint32(len(tcp.Payload))
			if tcp.SYN || tcp.FIN {
				me.next++
			}
			me.fin = me.fin || tcp.FIN
			if tcp.ACK {
				if int32(tcp.Ack-you.next) > 0 || int32(tcp.Ack-you.acked) < 0 && you.acked != 0 {
					t.Fatalf("%s: connection %d at %v: acknowledges %d of %d", addr, d.conn, d.at, tcp.Ack, you.next)
				}
				you.acked = tcp.Ack
			}
		}
		for k, c := range conns {
			for s, e := range c {
				if !e.syn || !e.fin || e.acked != e.next {
					t.Errorf("%s: connection %d, side %d: SYN %v, FIN %v, %d of %d acknowledged", addr, k, s, e.syn, e.fin, e.acked, e.next)
				}
			}
		}
		if len(conns) != 20 {
			t.Errorf("%d connections", len(conns))
		}
	}
}

// TestConversationTshark: Wireshark sees complete connections and finds nothing to remark.
func TestConversationTshark(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skip("needs tshark")
	}
	if testing.Short() {
		t.Skip("-short: tshark takes a second to start")
	}
	name := filepath.Join(t.TempDir(), "web.pcap")
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	w := pcapgo.NewWriter(f)
	if err := w.WriteFileHeader(65535, layers.LinkTypeEthernet); err != nil {
		t.Fatal(err)
	}
	const n = 7
	for _, d := range unrolled(parsed(t, webText("client", "")), n) {
		if err := w.WritePacket(gopacket.CaptureInfo{Timestamp: time.Unix(1, 0).Add(d.at), CaptureLength: len(d.b), Length: len(d.b)}, d.b); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	tshark := func(filter string) []string {
		c := exec.Command("tshark", "-r", name, "-o", "tcp.check_checksum:TRUE", "-o", "ip.check_checksum:TRUE", "-Y", filter, "-T", "fields", "-e", "tcp.stream")
		var errs bytes.Buffer
		c.Stderr = &errs
		out, err := c.Output()
		if err != nil {
			t.Fatalf("tshark: %v: %s", err, errs.String())
		}
		l := strings.Fields(string(out))
		slices.Sort(l)
		return slices.Compact(l)
	}
	if l := tshark("tcp.analysis.flags || tcp.checksum.status == 0 || ip.checksum.status == 0"); len(l) != 0 {
		t.Errorf("remarks on connections %v", l)
	}
	// SYN, SYN-ACK, ACK, data, FIN
	if l := tshark("tcp.completeness == 31"); len(l) != n {
		t.Errorf("complete are connections %v, want %d", l, n)
	}
}

// TestConversationConntrack: a Linux router with a stateful firewall forwards all of a conversation, sees it
// established, and sees it closed.
func TestConversationConntrack(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a router in a network namespace")
	}
	if _, err := exec.LookPath("nft"); err != nil {
		t.Skip("needs nft")
	}
	gen, router := testnet.New(t), testnet.New(t)
	testnet.Veth(t, gen, "l0", router, "l1")
	testnet.Veth(t, gen, "r0", router, "r1")
	var raw [2]*testnet.Raw
	env := DefaultEnv()
	gen.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1")
	for i, name := range []string{"l0", "r0"} {
		raw[i] = gen.Raw(t, name)
		peer := router.Raw(t, []string{"l1", "r1"}[i])
		e := env.at(Side(i))
		e.MAC, e.Peer = [6]byte(raw[i].MAC), [6]byte(peer.MAC)
	}
	router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1")
	for i, dev := range []string{"l1", "r1"} {
		router.Run(t, "ip", "addr", "add", []string{"198.18.0.1/24", "198.19.0.1/24"}[i], "dev", dev)
		router.Run(t, "ip", "neigh", "add", env.at(Side(i)).V4.String(), "lladdr", raw[i].MAC.String(), "dev", dev)
	}
	rules := filepath.Join(t.TempDir(), "rules.nft")
	if err := os.WriteFile(rules, []byte(`table ip t {
	chain f {
		type filter hook forward priority 0; policy drop;
		ct state established accept
		ct state new tcp flags & (fin|syn|rst|ack) == syn accept
		ct state new meta l4proto udp accept
	}
}
`), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := router.Command("nft", "-f", rules).CombinedOutput(); err != nil {
		if !bytes.Contains(out, []byte("Could not process rule")) {
			t.Fatalf("%v: %s", err, out)
		}
		t.Skipf("the kernel has no connection tracking: %s", out)
	}
	p, err := Parse("p.yaml", []byte(webText("client", "")+"  - {name: dns, protocol: udp, rate: 500, client: {port: 5000-5010}}\n"), env)
	if err != nil {
		t.Fatal(err)
	}
	const n = 5
	all := unrolled(p, n)
	states := map[string]bool{}
	passed := 0
	for i, d := range all {
		if err := raw[d.side].Send(d.b); err != nil {
			t.Fatal(err)
		}
		got := raw[d.side.Other()].RecvMatch(time.Second, func(b []byte) bool { return len(b) > 34 && b[12] == 8 && string(b[26:34]) == string(d.b[26:34]) })
		if got == nil {
			t.Fatalf("packet %d, at %v from the %v: dropped by the firewall: %x", i, d.at, d.side, d.b)
		}
		passed++
		if i%8 == 0 || i == len(all)-1 {
			for l := range strings.Lines(router.Run(t, "cat", "/proc/net/nf_conntrack")) {
				if w := strings.Fields(l); len(w) > 5 {
					states[w[5]] = true
					if i == len(all)-1 && w[2] == "tcp" && w[5] != "TIME_WAIT" && w[5] != "CLOSE" {
						t.Errorf("at the end: %s", l)
					}
				}
			}
		}
	}
	if !states["ESTABLISHED"] || !states["TIME_WAIT"] {
		t.Errorf("states seen: %v", states)
	}
	if passed != len(all) || passed < 100 {
		t.Errorf("%d of %d passed", passed, len(all))
	}
}
