package kernel

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os/exec"
	"slices"
	"sort"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/control/rule"
	"millrace/internal/testnet"
)

// ipHop and ipRoute are what `ip -j route` prints.
type ipHop struct {
	Gateway string
	Via     struct{ Host string }
	Dev     string
	Weight  int
}

type ipRoute struct {
	ipHop
	Type, Dst string
	From      string
	Table     string
	Metric    uint32
	TOS       string
	Nexthops  []ipHop
	NHID      uint32 `json:"nhid"`
	Metrics   []struct {
		MTU json.RawMessage
	}
}

func (h ipHop) say() string {
	gw := h.Gateway + h.Via.Host
	return fmt.Sprintf(" %s>%s*%d", h.Dev, gw, max(1, h.Weight))
}

// asked is what `ip route show table all` says, one line for each key.
func asked(t *testing.T, ns *testnet.NS, tables map[string]bool) map[string]string {
	t.Helper()
	all := map[string]string{}
	for _, family := range []string{"-4", "-6"} {
		out, err := ns.Command("ip", "-j", "-N", family, "route", "show", "table", "all").Output()
		if err != nil {
			t.Fatal(err)
		}
		var rs []ipRoute
		if err := json.Unmarshal(out, &rs); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, r := range rs {
			if r.Table == "" {
				r.Table = "254"
			}
			dst := r.Dst
			switch {
			case dst == "default" && family == "-4":
				dst = "0.0.0.0/0"
			case dst == "default":
				dst = "::/0"
			case !strings.Contains(dst, "/"):
				a := netip.MustParseAddr(dst)
				dst = netip.PrefixFrom(a, a.BitLen()).String()
			}
			if !tables[r.Table] {
				continue
			}
			tos := 0
			fmt.Sscanf(r.TOS, "0x%x", &tos)
			key := fmt.Sprintf("%s table %s metric %d tos %d from %s", dst, r.Table, r.Metric, tos, r.From)
			if _, there := all[key]; there {
				continue // the kernel takes the first
			}
			if r.Type == "" {
				r.Type = "1"
			}
			var hops []string
			for _, h := range r.Nexthops {
				hops = append(hops, h.say())
			}
			if len(hops) == 0 && r.Dev != "" && r.Type < "6" {
				hops = []string{r.ipHop.say()}
			}
			sort.Strings(hops)
			all[key] = fmt.Sprintf("%s nhid %d%s", r.Type, r.NHID, strings.Join(hops, ""))
		}
	}
	return all
}

// mirrored is the same of what the sink was told.
func (v *view) mirrored() map[string]string {
	names := map[int]string{}
	for n, l := range v.links {
		names[l.Index] = n
	}
	all := map[string]string{}
	for k, r := range v.routes {
		from := ""
		if k.From.IsValid() {
			from = k.From.String()
		}
		var hops []string
		for _, h := range r.Hops {
			x := ipHop{Dev: names[h.Index], Weight: h.Weight}
			if h.Via.IsValid() {
				x.Gateway = h.Via.String()
			}
			hops = append(hops, x.say())
		}
		sort.Strings(hops)
		typ := r.Type
		if typ == Blackhole && r.Object != 0 {
			typ = Unicast // ip prints the object's hops and not its effect
			hops = nil
		}
		all[fmt.Sprintf("%s table %d metric %d tos %d from %s", k.Dst, k.Table, k.Metric, k.TOS, from)] =
			fmt.Sprintf("%d nhid %d%s", typ, r.Object, strings.Join(hops, ""))
	}
	return all
}

// same waits until the mirror is what ip says.
func (v *view) same(t *testing.T, ns *testnet.NS, tables map[string]bool, what string) {
	t.Helper()
	var diff []string
	for end := time.Now().Add(8 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		want := asked(t, ns, tables)
		var have map[string]string
		v.do(func() { have = v.mirrored() })
		diff = nil
		for k, w := range want {
			if have[k] != w {
				diff = append(diff, fmt.Sprintf("%s: %q, the kernel has %q", k, have[k], w))
			}
		}
		for k, h := range have {
			if _, there := want[k]; !there {
				diff = append(diff, fmt.Sprintf("%s: %q, the kernel has none", k, h))
			}
		}
		if len(diff) == 0 {
			return
		}
	}
	slices.Sort(diff)
	t.Fatalf("%s: %d differences:\n%s", what, len(diff), strings.Join(diff[:min(20, len(diff))], "\n"))
}

// TestMirror: whatever happens, in bursts, the mirror comes to be what `ip route` says.
func TestMirror(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	addrs := []string{"address add 192.0.2.1/24 dev a0", "address add 203.0.113.1/24 dev a1", "address add 2001:db8::1/64 dev a0 nodad",
		"address add 2001:db8:1::1/64 dev a1 nodad"}
	for _, c := range addrs {
		ip(t, ns, c)
	}
	ip(t, ns, "rule add from 10.0.0.0/8 lookup 100")
	v, _ := follow(t, ns, Options{Tables: []uint32{101}})
	tables := map[string]bool{"100": true, "101": true, "253": true, "254": true, "255": true}
	seed := uint64(time.Now().UnixNano())
	rnd := rand.New(rand.NewPCG(seed, 1))
	pick := func(s ...string) string { return s[rnd.IntN(len(s))] }
	via := func(six bool) string {
		if six {
			return pick("via 2001:db8::8 dev a0", "via 2001:db8::9 dev a0", "via 2001:db8:1::9 dev a1")
		}
		return pick("via 192.0.2.8 dev a0", "via 192.0.2.9 dev a0", "via 203.0.113.9 dev a1")
	}
	command := func() string {
		six := rnd.IntN(3) == 0
		dst := fmt.Sprintf("10.%d.0.0/16", rnd.IntN(6))
		fam := "-4"
		if six {
			dst, fam = fmt.Sprintf("2001:db8:%d::/48", 100+rnd.IntN(6)), "-6"
		}
		table := pick("", "", " table 100", " table 101", " table 102")
		metric := pick("", "", " metric 7")
		switch n := rnd.IntN(20); {
		case n < 9:
			way := via(six)
			switch rnd.IntN(6) {
			case 0:
				way = "nexthop " + via(six) + " nexthop " + via(six) + " weight 3"
			case 1:
				way = pick("nhid 1", "nhid 2", "nhid 10")
				if six {
					way = pick("nhid 3", "nhid 11")
				}
			case 2:
				return fmt.Sprintf("%s route %s %s %s%s%s", fam, pick("add", "replace"), pick("blackhole", "unreachable", "prohibit", "throw"), dst, table, metric)
			}
			tos := ""
			if !six && rnd.IntN(6) == 0 {
				tos = " tos 0x10"
			}
			return fmt.Sprintf("%s route %s %s%s %s%s%s", fam, pick("add", "replace", "append", "prepend"), dst, tos, way, table, metric)
		case n < 13:
			return fmt.Sprintf("%s route del %s%s%s", fam, dst, table, metric)
		case n < 14:
			return pick("nexthop replace id 1 via 192.0.2.5 dev a0", "nexthop replace id 1 via 192.0.2.6 dev a0", "nexthop replace id 2 via 203.0.113.5 dev a1",
				"nexthop replace id 2 blackhole", "nexthop replace id 3 via 2001:db8::5 dev a0", "nexthop replace id 4 via 2001:db8:1::5 dev a1")
		case n < 15:
			return pick("nexthop replace id 10 group 1/2", "nexthop replace id 10 group 1,4/2,9", "nexthop replace id 10 group 1", "nexthop replace id 11 group 3/4,2")
		case n < 17:
			return pick("nexthop del id 1", "nexthop del id 2", "nexthop del id 3", "nexthop del id 4", "nexthop del id 10", "nexthop del id 11")
		case n < 18:
			return "link set " + pick("a0", "a1") + " " + pick("up", "down")
		default:
			return pick(addrs...) + pick("", "\naddress del 192.0.2.1/24 dev a0", "\naddress del 203.0.113.1/24 dev a1")
		}
	}
	for round := range 25 {
		var b strings.Builder
		for range 1 + rnd.IntN(60) {
			b.WriteString(command() + "\n")
		}
		c := ns.Command("ip", "-force", "-batch", "-")
		c.Stdin = strings.NewReader(b.String())
		_, _ = c.CombinedOutput() // many make no sense
		v.same(t, ns, tables, fmt.Sprintf("seed %d, round %d, after\n%s", seed, round, b.String()))
	}
	for _, a := range []string{"a0", "a1"} {
		ip(t, ns, "link del "+a)
	}
	v.same(t, ns, tables, "without links")
}

// TestTables: a table comes into use by a rule or by name, and goes out of it.
func TestTables(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	ip(t, ns, "address add 192.0.2.1/24 dev a0")
	ip(t, ns, "route add 10.0.0.0/8 via 192.0.2.9 table 100")
	ip(t, ns, "route add 10.0.0.0/8 via 192.0.2.9 table 200")
	v, f := follow(t, ns, Options{})
	in := func(table uint32) func() bool {
		return func() bool {
			_, there := v.routes[RouteKey{Dst: netip.MustParsePrefix("10.0.0.0/8"), Table: table}]
			return there
		}
	}
	not := func(f func() bool) func() bool { return func() bool { return !f() } }
	v.do(func() {
		if in(100)() || in(200)() {
			t.Error("tables that nothing leads to are followed")
		}
	})
	ip(t, ns, "rule add iif a0 lookup 100")
	v.wait(t, "the table of a rule", in(100))
	f.Tables([]uint32{200})
	v.wait(t, "a table by name", in(200))
	ip(t, ns, "rule del iif a0 lookup 100")
	v.wait(t, "the end of the first", not(in(100)))
	f.Tables(nil)
	v.wait(t, "the end of the second", not(in(200)))
}

// TestRules: rules are told as `ip rule` tells them.
func TestRules(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	v, _ := follow(t, ns, Options{})
	v.wait(t, "the standard rules", func() bool {
		return slices.EqualFunc(v.rules, rule.Standard(), func(a, b rule.Rule) bool { a.Protocol = 0; return a == b })
	})
	for _, c := range []string{"from 10.0.0.0/8 to 192.0.2.1 lookup 100", "not fwmark 0x1/0xff table 5", "iif a0 tos 0x10 lookup 7 pref 40",
		"ipproto tcp sport 1-1023 dport 443 prohibit", "oif a1 blackhole", "pref 50 goto 60", "pref 60 nop", "uidrange 0-5 unreachable",
		"lookup main suppress_prefixlength 0", "lookup main suppress_ifgroup 3", "tun_id 7 lookup 9"} {
		for _, fam := range []string{"-4", "-6"} {
			if fam == "-6" && strings.Contains(c, "10.0.0.0") {
				c = "from 2001:db8::/32 to 2001:db8::1 lookup 100"
			}
			ip(t, ns, fam+" rule add "+c)
		}
	}
	var want []string
	for _, fam := range []string{"-4", "-6"} {
		for l := range strings.Lines(ns.Run(t, "ip", fam, "rule", "list")) {
			l = strings.Join(strings.Fields(l), " ")
			want = append(want, l)
		}
	}
	var have []string
	v.wait(t, "all rules", func() bool {
		have = have[:0]
		for _, r := range v.rules {
			have = append(have, r.String())
		}
		return len(have) == len(want)
	})
	if !slices.Equal(have, want) {
		for i := range have {
			if have[i] != want[i] {
				t.Errorf("%q, ip says %q", have[i], want[i])
			}
		}
	}
	ip(t, ns, "rule del pref 40")
	v.wait(t, "one less", func() bool { return len(v.rules) == len(want)-1 })
}

// TestParseRule reads conditions that this machine's ip may not know.
func TestParseRule(t *testing.T) {
	hdr := []byte{unix.AF_INET, 0, 0, 0, 100, 0, 0, unix.FR_ACT_TO_TBL, 0, 0, 0, 0}
	for _, c := range []struct {
		name string
		attr []byte
		want func(*rule.Rule)
	}{
		{"dscp", putAttr(nil, fraDSCP, []byte{46}), func(r *rule.Rule) { r.TOS, r.TOSMask = 46<<2, 0xfc }},
		{"dscp and mask", putAttr(putAttr(nil, fraDSCPMask, []byte{0x30}), fraDSCP, []byte{0x10}), func(r *rule.Rule) { r.TOS, r.TOSMask = 0x40, 0xc0 }},
		{"full port mask", putAttr(nil, fraDPortMask, []byte{0xff, 0xff}), func(r *rule.Rule) {}},
		{"port mask", putAttr(nil, fraDPortMask, native.AppendUint16(nil, 0xff)), func(r *rule.Rule) { r.Unknown = "port mask 0xff" }},
		{"of the future", putAttr(nil, 77, []byte{1}), func(r *rule.Rule) { r.Unknown = "attribute 77" }},
		{"wide table", putAttr(nil, unix.FRA_TABLE, native.AppendUint32(nil, 70000)), func(r *rule.Rule) { r.Table = 70000 }},
		{"l3mdev", putAttr(nil, unix.FRA_L3MDEV, []byte{1}), func(r *rule.Rule) { r.L3mdev, r.Table = true, 0 }},
		{"mark without mask", putAttr(nil, unix.FRA_FWMARK, native.AppendUint32(nil, 3)), func(r *rule.Rule) { r.Mark, r.Mask = 3, ^uint32(0) }},
	} {
		want := rule.Rule{Family: 4, Table: 100, SuppressBits: -1, SuppressGroup: -1}
		c.want(&want)
		if r, ok := parseRule(append(slices.Clone(hdr), c.attr...)); !ok || r != want {
			t.Errorf("%s: %+v, want %+v", c.name, r, want)
		}
	}
	hdr[0] = 128 // RTNL_FAMILY_IPMR
	if _, ok := parseRule(hdr); ok {
		t.Error("a rule of multicast routing is taken")
	}
}

// TestRPFilter: what the kernel checks is the larger of all's and the link's.
func TestRPFilter(t *testing.T) {
	t.Parallel()
	ns, _ := pair(t)
	set := func(name string, n int) {
		t.Helper()
		ns.Run(t, "sh", "-c", fmt.Sprintf("echo %d > /proc/sys/net/ipv4/conf/%s/rp_filter", n, name))
	}
	set("all", 0)
	set("a0", 0)
	set("a1", 2)
	v, _ := follow(t, ns, Options{})
	is := func(a0, a1 uint8) {
		t.Helper()
		v.wait(t, fmt.Sprint("filters ", a0, a1), func() bool { return v.links["a0"].RPFilter == a0 && v.links["a1"].RPFilter == a1 })
	}
	is(0, 2)
	set("a0", 1)
	is(1, 2)
	set("all", 1)
	is(1, 2)
	set("a1", 0)
	is(1, 1)
	set("all", 0)
	is(1, 0)
}

// TestVRF: what the kernel announces for VRFs, by hand, since not every kernel has them.
func TestVRF(t *testing.T) {
	v := newView()
	f := &Follower{sink: v, links: map[int]Link{}, told: map[int]Link{}, filters: map[int]uint8{}, addrs: map[addrKey]Addr{},
		tables: map[uint32]bool{}, mirror: newMirror(v.RouteBatch)}
	f.extra.Store(&[]uint32{})
	link := func(index int, name, kind string, table uint32, master int) message {
		info := putAttr(nil, unix.IFLA_INFO_KIND, []byte(kind+"\x00"))
		if table != 0 {
			info = putAttr(info, unix.IFLA_INFO_DATA|unix.NLA_F_NESTED, putAttr(nil, unix.IFLA_VRF_TABLE, native.AppendUint32(nil, table)))
		}
		b := make([]byte, unix.SizeofIfInfomsg)
		native.PutUint32(b[4:], uint32(index))
		native.PutUint32(b[8:], unix.IFF_UP|unix.IFF_RUNNING)
		b = putAttr(b, unix.IFLA_IFNAME, []byte(name+"\x00"))
		b = putAttr(b, unix.IFLA_LINKINFO|unix.NLA_F_NESTED, info)
		if master != 0 {
			b = putAttr(b, unix.IFLA_MASTER, native.AppendUint32(nil, uint32(master)))
		}
		return message{typ: unix.RTM_NEWLINK, body: b}
	}
	is := func(what string, want map[string]uint32) {
		t.Helper()
		have := map[string]uint32{}
		for n, l := range v.links {
			if l.Table != 0 {
				have[n] = l.Table
			}
		}
		if !maps.Equal(have, want) {
			t.Errorf("%s: tables %v, want %v", what, have, want)
		}
	}
	f.event(link(2, "eth0", "veth", 0, 0))
	f.event(link(3, "eth1", "veth", 0, 9)) // before its VRF is known
	is("no VRF", nil)
	f.event(link(9, "blue", "vrf", 10, 0))
	is("blue", map[string]uint32{"blue": 10, "eth1": 10})
	f.event(link(2, "eth0", "veth", 0, 9))
	is("a port joins", map[string]uint32{"blue": 10, "eth0": 10, "eth1": 10})
	f.retable()
	if !f.tables[10] {
		t.Error("its table is not followed")
	}
	f.event(link(3, "eth1", "veth", 0, 0))
	is("a port leaves", map[string]uint32{"blue": 10, "eth0": 10})
	gone := link(9, "blue", "vrf", 10, 0)
	gone.typ = unix.RTM_DELLINK
	f.event(gone)
	is("blue is gone", nil)
	f.retable()
	if f.tables[10] {
		t.Error("the table of a VRF that is gone is followed")
	}
}

// TestFlapping: links that flap under many routes, next-hop groups deleted before their routes.
func TestFlapping(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("ip"); err != nil || testing.Short() {
		t.Skip("takes seconds")
	}
	ns, _ := pair(t)
	ip(t, ns, "address add 192.0.2.1/24 dev a0")
	ip(t, ns, "address add 203.0.113.1/24 dev a1")
	v, _ := follow(t, ns, Options{})
	tables := map[string]bool{"253": true, "254": true, "255": true}
	batch(t, ns, manyRoutes("add", 5000, "192.0.2.9"))
	var b strings.Builder
	for i := range 200 {
		fmt.Fprintf(&b, "link set a1 %s\n", []string{"down", "up"}[i%2])
		fmt.Fprintf(&b, "nexthop replace id %d via 192.0.2.%d dev a0\n", 100+i%7, 10+i%9)
		fmt.Fprintf(&b, "nexthop replace id 50 group %d/%d\n", 100, 100+i%3)
		fmt.Fprintf(&b, "route replace 20.%d.0.0/16 nhid 50\n", i)
		if i%5 == 4 {
			fmt.Fprintf(&b, "nexthop del id %d\n", 100+i%3)
		}
		if i%11 == 10 {
			b.WriteString("nexthop del id 50\n")
		}
		if i == 100 {
			b.WriteString("link set a0 down\nlink set a0 up\n")
			b.WriteString(manyRoutes("replace", 3000, "192.0.2.8"))
		}
	}
	c := ns.Command("ip", "-force", "-batch", "-")
	c.Stdin = strings.NewReader(b.String())
	_, _ = c.CombinedOutput()
	v.same(t, ns, tables, "after it all")
}
