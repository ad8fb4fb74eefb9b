package routefile

import (
	"bufio"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"millrace/internal/testnet"
)

// bird starts a BIRD in a namespace and returns what asks it. Both end with the test.
func bird(t *testing.T, ns *testnet.NS, conf string) (ask func(command string) string) {
	t.Helper()
	dir := t.TempDir()
	file, ctl := filepath.Join(dir, "bird.conf"), filepath.Join(dir, "ctl")
	if err := os.WriteFile(file, []byte("log stderr all;\nprotocol device {}\n"+conf), 0o600); err != nil {
		t.Fatal(err)
	}
	c := ns.Command("bird", "-f", "-c", file, "-s", ctl, "-P", filepath.Join(dir, "pid"))
	var log strings.Builder
	c.Stdout, c.Stderr = &log, &log
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.Process.Kill()
		c.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	})
	return func(command string) string {
		out, _ := exec.Command("birdc", append([]string{"-r", "-s", ctl}, strings.Fields(command)...)...).CombinedOutput()
		return string(out)
	}
}

// birdTable reads what `show route all` prints: next hops by prefix.
func birdTable(t *testing.T, out string) map[netip.Prefix]netip.Addr {
	t.Helper()
	m := map[netip.Prefix]netip.Addr{}
	var at netip.Prefix
	s := bufio.NewScanner(strings.NewReader(out))
	for s.Scan() {
		w := strings.Fields(s.Text())
		if len(w) == 0 {
			continue
		}
		if p, err := netip.ParsePrefix(w[0]); err == nil {
			at = p
		}
		if w[0] == "BGP.next_hop:" {
			if _, ok := m[at]; ok {
				t.Fatalf("BIRD shows %v twice", at)
			}
			m[at] = netip.MustParseAddr(w[1])
		}
	}
	return m
}

// TestBIRD: dumps of BIRD's tables of two peers, which share some prefixes and are better for some, hold what BIRD itself says.
func TestBIRD(t *testing.T) {
	if _, err := exec.LookPath("birdc"); err != nil {
		t.Skip("needs BIRD (apt install bird2)")
	}
	const each = 3000
	rnd := rand.New(rand.NewPCG(7, 7))
	all := map[bool][]netip.Prefix{false: {netip.MustParsePrefix("0.0.0.0/0")}, true: {netip.MustParsePrefix("::/0")}}
	seen := map[netip.Prefix]bool{}
	for is6, l := range all {
		for len(l) < each {
			var a [16]byte
			for i := range a {
				a[i] = byte(rnd.Uint32())
			}
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{1 + a[0]%100, a[1], a[2], a[3]}), 8+rnd.IntN(25)).Masked()
			if is6 {
				a[0], a[1] = 0x24, a[1]&0xf
				p = netip.PrefixFrom(netip.AddrFrom16(a), 16+rnd.IntN(113)).Masked()
			}
			if !p.Addr().IsLoopback() && !seen[p] {
				seen[p] = true
				l = append(l, p)
			}
		}
		all[is6] = l
	}
	collector := testnet.New(t)
	conf := "router id 10.0.0.1;\n"
	dir := t.TempDir()
	for k := range 2 {
		peer, name := testnet.New(t), fmt.Sprint("c", k)
		testnet.Veth(t, collector, name, peer, "p0")
		collector.Run(t, "ip", "addr", "add", fmt.Sprintf("10.0.%d.1/24", k), "dev", name)
		collector.Run(t, "ip", "addr", "add", fmt.Sprintf("2001:db8:%d::1/64", k), "dev", name)
		peer.Run(t, "ip", "addr", "add", fmt.Sprintf("10.0.%d.2/24", k), "dev", "p0")
		peer.Run(t, "ip", "addr", "add", fmt.Sprintf("2001:db8:%d::2/64", k), "dev", "p0")
		var s strings.Builder
		// The first peer's way is shorter to short prefixes, the second's to long ones.
		fmt.Fprintf(&s, "router id 10.0.%d.2;\n", k)
		for n, is6 := range []bool{false, true} {
			family, middle, net := "ipv4", 20, fmt.Sprintf("10.0.%d.", k)
			if is6 {
				family, middle, net = "ipv6", 64, fmt.Sprintf("2001:db8:%d::", k)
			}
			fmt.Fprintf(&s, "protocol static s%d { %s;\n", n, family)
			for i, p := range all[is6] {
				if i%3 != 2*k { // a third only one of them has, a third both
					fmt.Fprintf(&s, "route %v blackhole;\n", p)
				}
			}
			farther := map[int]string{0: ">", 1: "<="}[k]
			fmt.Fprintf(&s, "}\nprotocol bgp b%d { local %s2 as %d; neighbor %[2]s1 as 65000; connect delay time 1;\n"+
				"%[4]s { import none; next hop self; export filter { if net.len %s %d then bgp_path.prepend(%[3]d); accept; }; }; }\n",
				n, net, 65001+k, family, farther, middle)
			conf += fmt.Sprintf("protocol bgp peer%d_%d { local %s1 as 65000; neighbor %[3]s2 as %d; connect delay time 1; %s { import all; export none; }; }\n",
				k, n, net, 65001+k, family)
		}
		bird(t, peer, s.String())
	}
	// By `protocol mrt`, each second; the name is that of the last.
	ask := bird(t, collector, conf+fmt.Sprintf("protocol mrt { table \"master*\"; filename \"%s/%%N\"; period 1; }\n", dir))
	want := 2 * 2 * (each - each/3)
	end := time.Now().Add(60 * time.Second)
	for !strings.Contains(ask("show route count"), fmt.Sprintf("Total: %d of %[1]d routes for %d networks", want, 2*each)) {
		if time.Now().After(end) {
			t.Fatalf("not all routes came: %s%s", ask("show route count"), ask("show protocols"))
		}
		time.Sleep(100 * time.Millisecond)
	}
	for n, table := range []string{"master4", "master6"} {
		for k, peer := range []netip.Addr{{}, netip.MustParseAddr([]string{"10.0.0.2", "2001:db8::2"}[n]), netip.MustParseAddr([]string{"10.0.1.2", "2001:db8:1::2"}[n])} {
			show := "show route primary all table " + table
			if k > 0 {
				show = fmt.Sprintf("show route all protocol peer%d_%d", k-1, n)
			}
			truth := birdTable(t, ask(show))
			if k == 0 && len(truth) != each || k > 0 && len(truth) != each-each/3 {
				t.Fatalf("%s: BIRD has %d routes", table, len(truth))
			}
			end := time.Now().Add(20 * time.Second)
			for {
				routes, err := Load(filepath.Join(dir, table), peer)
				got := map[netip.Prefix]netip.Addr{}
				for _, r := range routes {
					got[r.Prefix] = r.Via
				}
				if err == nil && maps.Equal(got, truth) && len(routes) == len(got) {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%s, peer %v: %d routes, BIRD has %d, %v", table, peer, len(routes), len(truth), err)
				}
				time.Sleep(100 * time.Millisecond) // until a dump begun after the last route is whole
			}
		}
	}
}
