package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"millrace/internal/testnet"
)

// alone is a line whose router's kernel has nothing to do with the interfaces: neither addresses nor IPv6.
func alone(t *testing.T) *line {
	t.Helper()
	l := &line{testnet.New(t), testnet.New(t), testnet.New(t)}
	l.router.Run(t, "sysctl", "-qw", "net.ipv6.conf.all.disable_ipv6=1", "net.ipv6.conf.default.disable_ipv6=1")
	testnet.Veth(t, l.router, "r0", l.client, "c0")
	testnet.Veth(t, l.router, "r1", l.server, "s0")
	return l
}

// TestBuiltinHost: the router answers for itself on kernel interfaces, in both drivers, tagged and not. Tagged
// frames are those of scapy: this kernel may have no VLAN devices.
func TestBuiltinHost(t *testing.T) {
	for _, driver := range []string{"afxdp", "afpacket"} {
		t.Run(driver, func(t *testing.T) {
			l := alone(t)
			ip(t, l.client, "addr add "+client4+"/24 dev c0", "addr add "+client6+"/64 dev c0", "route add default via "+routerC4, "route add default via "+routerC6)
			ip(t, l.server, "addr add "+server4+"/24 dev s0", "addr add "+server6+"/64 dev s0", "route add default via "+routerS4, "route add default via "+routerS6)
			run := runYAML(t, l.router, fmt.Sprintf(`
ports:
  - name: r0
    driver: %s
    host: builtin
    addresses: [10.0.1.1/24, "2001:db8:1::1/64"]
    vlans:
      - {id: 7, addresses: [10.7.0.1/24]}
      - {id: 8, inner: 9, addresses: [10.8.0.1/24]}
  - {name: r1, driver: %[1]s, host: builtin, addresses: [10.0.2.1/24, "2001:db8:2::1/64"]}
`, driver))
			for _, to := range []string{server4, server6, routerC4, routerC6, routerS4, routerS6} {
				pings(t, l.client, to)
				ping(t, l.client, to)
			}
			ping(t, l.client, server4, "-s", "4000")
			t.Run("tagged", func(t *testing.T) {
				need(t, "python3")
				out, code := command(t, l.client, "/usr/bin/python3", "-c", `
import sys
try: from scapy.all import *
except ImportError: sys.exit(77)
mac = sys.argv[1]
def answered(tags, me, to):
    head = Ether(src="02:00:00:00:00:07", dst=mac)/tags
    # The router asks who has our address before it answers.
    def host(p):
        if ARP in p and p[ARP].op == 1 and p[ARP].pdst == me:
            sendp(Ether(src="02:00:00:00:00:07", dst=p.src)/tags/ARP(op=2, hwsrc="02:00:00:00:00:07", psrc=me, hwdst=p.src, pdst=p[ARP].psrc), iface="c0", verbose=0)
        return ICMP in p and p[ICMP].type == 0 and p[IP].src == to and p[IP].dst == me
    s = AsyncSniffer(iface="c0", stop_filter=host, timeout=8, store=1); s.start(); time.sleep(0.3)
    for i in range(3): sendp(head/IP(src=me, dst=to)/ICMP(id=5, seq=i)/(b"x"*40), iface="c0", verbose=0); time.sleep(0.3)
    s.join()
    return any(ICMP in p and p[ICMP].type == 0 and p[IP].dst == me and p.haslayer(Dot1Q) for p in s.results)
one, two = Dot1Q(vlan=7), Dot1AD(vlan=8)/Dot1Q(vlan=9)
for what, tags, me in ("802.1Q", one, "10.7.0.2"), ("QinQ", two, "10.8.0.2"):
    for to in sys.argv[2:]:
        if not answered(tags, me, to): print(what, to, "no tagged answer"); sys.exit(1)
`, run.port("r0").Mac, "10.0.2.1", server4)
				if code == 77 {
					t.Skip("needs scapy")
				}
				if code != 0 {
					t.Errorf("%s", out)
				}
			})
		})
	}
}

// TestIPv6Sequences replays the conformance sequences, each at a fresh router whose MAC address they know.
func TestIPv6Sequences(t *testing.T) {
	long(t)
	need(t, "python3")
	script := shared(t, "data", "ipv6-sequences", "run_seq.py")
	b, err := os.ReadFile(filepath.Join(filepath.Dir(script), "sequences.json"))
	if err != nil {
		t.Fatal(err)
	}
	var all []struct{ Name string }
	if err := json.Unmarshal(b, &all); err != nil {
		t.Fatal(err)
	}
	for _, x := range all {
		t.Run(x.Name, func(t *testing.T) {
			t.Parallel() // they mostly wait
			l := alone(t)
			l.client.Run(t, "sysctl", "-qw", "net.ipv6.conf.c0.disable_ipv6=1")
			runYAML(t, l.router, "ports: [{name: r0, host: builtin, mac: '00:11:22:33:44:56'}]\n")
			out, code := command(t, l.client, "python3", "-B", script, "c0", x.Name)
			switch {
			case code != 0 || strings.Contains(out, "FAIL "):
				t.Errorf("exit code %d\n%s", code, out)
			case strings.Contains(out, "pass 0 "):
				t.Skip("not for a replay")
			}
		})
	}
}
