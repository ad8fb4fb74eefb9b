package config

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"millrace/internal/yamltree"
)

func TestErrors(t *testing.T) {
	const lan = "ports:\n  - {name: lan1, driver: memif, socket: /s, host: builtin, addresses: [192.0.2.1/24, \"2001:db8::1/64\"]}\n"
	for _, tc := range []struct{ name, yaml, want string }{
		{"empty", "", "f.yaml: ports: no ports: name at least one"},
		{"syntax", "ports:\n  - {name: eth0\n", "f.yaml:2:5: "},
		{"two documents", "ports: [{name: a}]\n---\nports: [{name: b}]\n", "f.yaml:3:1: a second document"},
		{"unknown section", "ports: [{name: eth0}]\nworker: {}\n", `f.yaml:2:1: worker: unknown key; did you mean "workers"?`},
		{"unknown key", "ports:\n  - name: eth0\n    drivr: afxdp\n", `f.yaml:3:5: ports[0].drivr: unknown key; did you mean "driver"?`},
		{"unknown far", "ports: [{name: eth0}]\nlog: {colour: red}\n", "f.yaml:2:7: log.colour: unknown key; there are level"},
		{"twice", "ports: [{name: eth0}]\nports: []\n", "f.yaml:2:1: "},
		{"not a list", "ports: eth0\n", "f.yaml:1:8: ports: a list is wanted here, not a single value"},
		{"not a mapping", "ports: [eth0]\n", "f.yaml:1:9: ports[0]: keys with values are wanted here (name, driver,"},
		{"not a scalar", "ports:\n  - name: [a]\n", "f.yaml:2:11: ports[0].name: one value is wanted here, not a list"},
		{"number", "ports: [{name: eth0, mtu: big}]\n", `f.yaml:1:27: ports[0].mtu: "big" is not a whole number`},
		{"range", "ports: [{name: eth0, mtu: 12}]\n", "f.yaml:1:27: ports[0].mtu: 12 is not between 68 and 65535"},
		{"negative id", "ports: [{name: m, driver: memif, socket: /s, id: -1}]\n", "f.yaml:1:50: ports[0].id: -1 is not between 0 and 4294967295"},
		{"unquoted IPv6 in brackets", "ports: [{name: eth0, addresses: [2001:db8::1/64]}]\n", "ports[0].addresses[0]: one value is wanted here, not keys with values; a value with colons inside brackets needs quotes"},
		{"bool", "ports: [{name: eth0}]\nkernel: {follow: maybe}\n", `f.yaml:2:18: kernel.follow: "maybe" is neither true nor false`},
		{"duration", "ports: [{name: eth0}]\nworkers: {spin: 5}\n", `f.yaml:2:17: workers.spin: "5" is not a time such as 50us, 10ms or 1s`},
		{"cores", "ports: [{name: eth0}]\nworkers: {cores: 3-2}\n", `f.yaml:2:18: workers.cores: "3-2" is not a list of CPUs such as 2-5,8`},
		{"cores twice", "ports: [{name: eth0}]\nworkers: {cores: \"1-3,2\"}\n", "f.yaml:2:18: workers.cores: CPU 2 is there twice"},
		{"poll", "ports: [{name: eth0}]\nworkers: {poll: bussy}\n", `f.yaml:2:17: workers.poll: "bussy" is none of adaptive, busy; did you mean "busy"?`},
		{"mac", "ports: [{name: eth0, mac: 02:00}]\n", `f.yaml:1:27: ports[0].mac: "02:00" is not a MAC address`},
		{"group mac", "ports: [{name: eth0, mac: 01:00:00:00:00:01}]\n", "f.yaml:1:27: ports[0].mac: 01:00:00:00:00:01 is a group address"},
		{"no name", "ports:\n  - {mtu: 1500}\n", `f.yaml:2:5: ports[0]: "name" is missing`},
		{"bad name", "ports: [{name: a-name-that-is-long}]\n", "f.yaml:1:16: ports[0].name: \"a-name-that-is-long\" cannot be"},
		{"same name", "ports:\n  - name: eth0\n  - name: eth0\n", `f.yaml:3:11: ports[1].name: "eth0" is the name of ports[0] already`},
		{"driver", "ports: [{name: eth0, driver: afxpd}]\n", `f.yaml:1:30: ports[0].driver: "afxpd" is none of afpacket, afxdp, mem, memif, pcap, tap; did you mean "afxdp"?`},
		{"ring", "ports: [{name: eth0, ring: 1000}]\n", "f.yaml:1:28: ports[0].ring: 1000 is not a power of two"},
		{"other driver's key", "ports: [{name: eth0, socket: /s}]\n", "f.yaml:1:30: ports[0].socket: only ports with `driver: memif` or `driver: mem` have this"},
		{"memif's key", "ports: [{name: eth0, role: server}]\n", "f.yaml:1:28: ports[0].role: only ports with `driver: memif` have this"},
		{"mem without wire", "ports:\n  - {name: m, driver: mem}\n", `f.yaml:2:5: ports[0]: "socket" is missing`},
		{"three ends", "ports:\n  - {name: a, driver: mem, socket: w}\n  - {name: b, driver: mem, socket: w}\n  - {name: c, driver: mem, socket: w}\n", "f.yaml:4:36: ports[2].socket: ports[0] and ports[1] are the two ends of the wire w already"},
		{"long ring", "ports: [{name: eth0, driver: afxdp, ring: 16384}]\n", "ports[0].ring: 16384 is more than the 8192 of driver afxdp"},
		{"rings of the pool", "ports: [{name: eth0, ring: 1024}, {name: eth1, ring: 1024}]\npool: {buffers: 1024}\n", "f.yaml:2:17: pool.buffers: 1024 are too few: the receive rings of 2 ports alone hold 2048; leave the key out, or write 3072 or more"},
		{"memif socket", "ports:\n  - {name: m, driver: memif}\n", `f.yaml:2:5: ports[0]: "socket" is missing`},
		{"memif twice", "ports:\n  - {name: m, driver: memif, socket: /s}\n  - {name: n, driver: memif, socket: /s}\n", "f.yaml:3:5: ports[1].id: ports[0] has socket /s and id 0 already"},
		{"role", "ports: [{name: m, driver: memif, socket: /s, role: master}]\n", `ports[0].role: "master" is none of server, client`},
		{"pcap", "ports:\n  - {name: p, driver: pcap}\n", `f.yaml:2:5: ports[0]: "read" or "write" is missing`},
		{"rate", "ports: [{name: p, driver: pcap, read: f, rate: quick}]\n", "ports[0].rate: \"quick\" is not a number of packets a second, `recorded` or `max`"},
		{"host of kernel port", "ports: [{name: eth0, host: tap}]\n", `ports[0].host: "tap": the kernel has this interface`},
		{"host of memif", "ports: [{name: m, driver: memif, socket: /s, host: kernel}]\n", "ports[0].host: the kernel cannot see a port of driver memif: use tap or builtin"},
		{"no length", "ports: [{name: eth0, addresses: [192.0.2.1]}]\n", "f.yaml:1:34: ports[0].addresses[0]: 192.0.2.1 has no prefix length: write 192.0.2.1/32 for a host, or the subnet's, such as /24"},
		{"bad address", "ports: [{name: eth0, addresses: [192.0.2.256/24]}]\n", `ports[0].addresses[0]: "192.0.2.256/24" is not an address with a prefix length`},
		{"subnet", "ports: [{name: eth0, addresses: [192.0.2.0/24]}]\n", "ports[0].addresses[0]: 192.0.2.0/24 is the subnet itself"},
		{"multicast", "ports: [{name: eth0, addresses: [224.0.0.5/24]}]\n", "224.0.0.5 is not a unicast address"},
		{"address twice", "ports:\n  - {name: a, addresses: [10.0.0.1/8]}\n  - {name: b, addresses: [10.0.0.1/8]}\n", "f.yaml:3:27: ports[1].addresses[0]: 10.0.0.1 is there already, as ports[0].addresses[0]"},
		{"small mtu", "ports: [{name: a, mtu: 1000, addresses: [\"2001:db8::1/64\"]}]\n", "IPv6 needs an MTU of at least 1280, and the port has 1000"},
		{"vlan id", "ports:\n  - name: eth0\n    vlans:\n      - {id: 4095}\n", "f.yaml:4:14: ports[0].vlans[0].id: 4095 is not between 1 and 4094"},
		{"vlan twice", "ports:\n  - name: eth0\n    vlans:\n      - {id: 5}\n      - {id: 5, name: x}\n", "f.yaml:5:9: ports[0].vlans[1]: ports[0].vlans[0] has these tags already"},
		{"pool", "ports: [{name: eth0}]\npool: {buffers: 10}\n", "f.yaml:2:17: pool.buffers: 10 is not between 1024 and 67108864"},
		{"route to", lan + "routes:\n  - {via: 192.0.2.9}\n", `f.yaml:4:5: routes[0]: "to" is missing`},
		{"route host bits", lan + "routes:\n  - {to: 198.51.100.1/24, via: 192.0.2.9}\n", "f.yaml:4:10: routes[0].to: 198.51.100.1/24 has bits behind its length: write 198.51.100.0/24"},
		{"route nowhere", lan + "routes:\n  - {to: 198.51.100.0/24}\n", `f.yaml:4:5: routes[0]: "via" is missing`},
		{"unreachable via", lan + "routes:\n  - to: 198.51.100.0/24\n    via: [192.0.2.9, 192.0.3.9]\n", "f.yaml:5:22: routes[0].via[1]: 192.0.3.9 is not reachable"},
		{"own via", lan + "routes:\n  - {to: 198.51.100.0/24, via: 192.0.2.1}\n", "f.yaml:4:32: routes[0].via[0]: 192.0.2.1 is the router itself (ports[0].addresses[0])"},
		{"IPv6 gateway for a default route", lan + "routes:\n  - {to: default, via: \"2001:db8::1 dev lan\"}\n", "write `to: ::/0`, for IPv4 packets by this gateway `via: inet6"},
		{"inet6 of IPv4", lan + "routes:\n  - {to: default, via: inet6 192.0.2.9}\n", "is not a gateway"},
		{"hash", lan + "multipath: {hash: l5}\n", "multipath.hash"},
		{"families", lan + "routes:\n  - {to: \"2001:db8:9::/48\", via: 192.0.2.9}\n", "an IPv4 gateway for the IPv6 prefix 2001:db8:9::/48"},
		{"default of IPv6", lan + "routes:\n  - {to: default, via: \"2001:db8::9\"}\n", "for the default route of IPv6 write `to: ::/0`"},
		{"link-local", lan + "routes:\n  - {to: \"2001:db8:9::/48\", via: \"fe80::1\"}\n", "fe80::1 is link-local: write `fe80::1 dev NAME`"},
		{"via dev", lan + "routes:\n  - {to: 198.51.100.0/24, via: 192.0.3.9 dev lan2}\n", `routes[0].via[0]: there is no port or VLAN "lan2"; did you mean "lan1"?`},
		{"via words", lan + "routes:\n  - {to: 198.51.100.0/24, via: 192.0.2.9 on lan1}\n", "\"on\" after the gateway: only `dev NAME` and `weight N` can follow"},
		{"blackhole via", lan + "routes:\n  - {to: 198.51.100.0/24, via: 192.0.2.9, type: blackhole}\n", "routes[0]: a route of type blackhole drops packets"},
		{"route type", lan + "routes:\n  - {to: 198.51.100.0/24, type: blackhol}\n", `did you mean "blackhole"?`},
		{"route twice", lan + "routes:\n  - {to: 198.51.100.0/24, via: 192.0.2.9}\n  - {to: 198.51.100.0/24, via: 192.0.2.8}\n", "f.yaml:5:5: routes[1]: routes[0] goes to 198.51.100.0/24 with metric 0 already"},
		{"neighbour", lan + "neighbours:\n  - {address: 192.0.2.7, port: lan1}\n", `f.yaml:4:5: neighbours[0]: "mac" is missing`},
		{"neighbour port", lan + "neighbours:\n  - {address: 192.0.2.7, mac: 02:00:00:00:00:01, port: uplink}\n", `neighbours[0].port: there is no port or VLAN "uplink"; there are lan1`},
		{"multicast group", lan + "multicast: {routes: [{group: 10.0.0.1, from: lan1}]}\n", "multicast.routes[0]: 10.0.0.1 is not a group"},
		{"multicast link-local", lan + "multicast: {routes: [{group: 224.0.0.5, from: lan1}]}\n", "packets to 224.0.0.5 never leave their link"},
		{"multicast families", lan + "multicast: {routes: [{group: 239.0.0.1, source: \"2001:db8::7\", from: lan1}]}\n", "source 2001:db8::7 and group 239.0.0.1 are of different families"},
		{"multicast source", lan + "multicast: {routes: [{group: 239.0.0.1, source: sender, from: lan1}]}\n", `"sender" is not an IP address`},
		{"multicast from", lan + "multicast: {routes: [{group: 239.0.0.1}]}\n", `"from" is missing`},
		{"multicast to", lan + "multicast: {routes: [{group: 239.0.0.1, from: lan1, to: lan2 ttl 300}]}\n", `ttl "300": a number from 0 to 254`},
		{"multicast back", lan + "multicast: {routes: [{group: 239.0.0.1, from: lan1, to: lan1}]}\n", "lan1 is there twice"},
		{"multicast twice", lan + "multicast: {routes: [{group: 239.0.0.1, from: lan1}, {group: 239.0.0.1, from: lan1}]}\n", "multicast.routes[0] has this source and group already"},
		{"boundary", lan + "multicast: {boundaries: [{port: lan1, groups: 10.0.0.0/8}]}\n", "10.0.0.0/8 are no groups"},
		{"icmp", lan + "icmp: {rate: -5}\n", "f.yaml:3:14: icmp.rate: -5 is negative"},
		{"metrics", lan + "metrics: {listen: 9101}\n", `f.yaml:3:19: metrics.listen: "9101" is not an address with a port such as 127.0.0.1:9101`},
		{"metrics everywhere", lan + "metrics: {listen: \":9101\"}\n", "say where: 127.0.0.1:9101 for this machine only, [::]:9101 for everybody"},
		{"log", lan + "log: {level: warning}\n", `f.yaml:3:14: log.level: "warning" is none of debug, info, warn, error; did you mean "warn"?`},
		{"alias", "ports: *x\n", "*x: there is no &x before it"},
		{"tag", "ports: [{name: !!binary aGk=}]\n", "not a YAML tag"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse("f.yaml", []byte(tc.yaml))
			if err == nil {
				t.Fatalf("no error; got %+v", c)
			}
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("not an Error: %T", err)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("\n got %s\nwant %s", err, tc.want)
			}
		})
	}
}

func TestAllErrorsInOrder(t *testing.T) {
	_, err := Parse("f", []byte("ports:\n  - {name: eth0, mtu: x}\npol: {}\nlog: {levl: info}\n"))
	var es Errors
	if !errors.As(err, &es) || len(es) != 3 || es[0].Line != 2 || es[1].Line != 3 || es[2].Line != 4 {
		t.Fatalf("got %v", err)
	}
}

func TestAccepts(t *testing.T) {
	for _, tc := range []struct {
		name, yaml string
		check      func(*Config) bool
	}{
		{"shortest", "ports: [{name: eth0}]", func(c *Config) bool {
			return c.Ports[0].Name == "eth0" && c.Kernel.Follow && c.Workers.Poll == "adaptive"
		}},
		{"IPv6 in lines of its own", "ports:\n  - name: eth0\n    addresses:\n      - 192.0.2.1/24\n      - 2001:db8::1/64\n", func(c *Config) bool {
			return len(c.Ports[0].Addresses) == 2 && c.Ports[0].Addresses[1].String() == "2001:db8::1/64"
		}},
		{"one address without brackets", "ports: [{name: eth0, addresses: 192.0.2.1/24}]", func(c *Config) bool { return len(c.Ports[0].Addresses) == 1 }},
		{"MAC of digits", "ports: [{name: eth0, mac: 10:20:30:40:50:10}]", func(c *Config) bool { return c.Ports[0].MAC.String() == "10:20:30:40:50:10" }},
		{"one core", "ports: [{name: eth0}]\nworkers: {cores: 2}", func(c *Config) bool { return slices.Equal(c.Workers.Cores, Cores{2}) }},
		{"cores", "ports: [{name: eth0}]\nworkers: {cores: \"8,2-4\"}", func(c *Config) bool { return c.Workers.Cores.String() == "2-4,8" }},
		{"VLAN names", "ports: [{name: eth0, vlans: [{id: 7}, {id: 7, inner: 9}]}]\nroutes: [{to: 10.0.0.0/8, dev: eth0.7.9}]", func(c *Config) bool {
			return c.Ports[0].Vlans[0].Name == "eth0.7" && c.Ports[0].Vlans[1].Name == "eth0.7.9"
		}},
		{"null keeps defaults", "ports: [{name: eth0}]\nicmp:\nworkers: {poll: }\n", func(c *Config) bool { return c.ICMP.Rate == 1000 && c.Workers.Poll == "adaptive" }},
		{"anchors", "ports:\n  - {name: &n eth0}\nroutes: [{to: default, dev: *n}]", func(c *Config) bool { return c.Routes[0].Dev == "eth0" && c.Routes[0].To.String() == "0.0.0.0/0" }},
		{"host route", "ports: [{name: eth0}]\nroutes: [{to: 198.51.100.7, via: 192.0.2.9}]", func(c *Config) bool { return c.Routes[0].To.String() == "198.51.100.7/32" }},
		{"gateway unknown to the file", "ports: [{name: eth0}]\nroutes: [{to: 10.0.0.0/8, via: 192.0.2.9}]", func(c *Config) bool {
			return c.Routes[0].Via[0] == NextHop{Addr: netip.MustParseAddr("192.0.2.9"), Weight: 1}
		}},
		{"IPv4 by an IPv6 gateway", "ports: [{name: eth0}]\nroutes: [{to: 10.0.0.0/8, via: fe80::1 dev eth0}]", func(c *Config) bool { return c.Routes[0].Via[0].Addr.Is6() }},
		{"IPv4 default by an IPv6 gateway", "ports: [{name: eth0}]\nroutes: [{to: default, via: inet6 fe80::1 dev eth0}]", func(c *Config) bool {
			return c.Routes[0].To.Addr().Is4() && c.Routes[0].Via[0] == NextHop{netip.MustParseAddr("fe80::1"), "eth0", 1, true}
		}},
		{"spread", "ports: [{name: eth0}]\nmultipath: {hash: inner, symmetric: true, seed: 4294967295}", func(c *Config) bool { return c.Multipath == Multipath{"inner", true, 1<<32 - 1} }},
		{"spread by default", "ports: [{name: eth0}]", func(c *Config) bool { return c.Multipath == Multipath{"l4", false, 0} }},
		{"no ICMP errors", "ports: [{name: eth0}]\nicmp: {rate: 0, redirects: off}", func(c *Config) bool { return c.ICMP.Rate == 0 && !c.ICMP.Redirects }},
		{"all of a section off", "ports: [{name: eth0}]\nicmp: {rate: 0, burst: 0, redirects: off}\nworkers: {spin: 0s, sleep: 0s}", func(c *Config) bool {
			return c.ICMP == ICMP{} && c.Workers.Spin == 0 && c.Workers.Sleep == 0
		}},
		{"same link-local address on two ports", "ports: [{name: a, addresses: [\"fe80::1/64\"]}, {name: b, addresses: [\"fe80::1/64\"]}]", func(c *Config) bool { return len(c.Ports) == 2 }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c, err := Parse("f.yaml", []byte(tc.yaml))
			if err != nil {
				t.Fatal(err)
			}
			if !tc.check(c) {
				t.Errorf("got\n%s", c.YAML())
			}
			again, err := Parse("again", c.YAML())
			if err != nil {
				t.Fatalf("%v\n%s", err, c.YAML())
			}
			if d := Diff(c, again); len(d) != 0 {
				t.Errorf("YAML does not read back: %v", d)
			}
		})
	}
}

func TestFromInterfaces(t *testing.T) {
	c, err := FromInterfaces([]string{"eth0", "eth1"})
	if err != nil || len(c.Ports) != 2 || c.Ports[1].Name != "eth1" {
		t.Fatalf("%+v, %v", c, err)
	}
	if y := string(c.YAML()); strings.Contains(y, "mac") || !strings.HasPrefix(y, "ports:\n  - name: eth0\n  - name: eth1\n") {
		t.Errorf("YAML says what nobody set:\n%s", y)
	}
	if _, err = FromInterfaces([]string{"eth0", "eth0"}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("same name twice: %v", err)
	}
}

func TestLoad(t *testing.T) {
	f := filepath.Join(t.TempDir(), "m.yaml")
	if _, err := Load(f); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
	if err := os.WriteFile(f, []byte("ports:\n  - name: eth0\n    mtu: 9000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := Load(f)
	if err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]string{"ports[0].mtu": f + ":3:10", "ports[0].ring": f + ":2:5", "routes": f} {
		if got := c.At(key); got != want {
			t.Errorf("At(%s) = %s, want %s", key, got, want)
		}
	}
}

// The sample has every key, each with a comment on its line, and shows the defaults.
func TestSample(t *testing.T) {
	c, err := Parse("sample.yaml", []byte(Sample()))
	if err != nil {
		t.Fatal(err)
	}
	again, err := Parse("again", c.YAML())
	if err != nil {
		t.Fatalf("%v\n%s", err, c.YAML())
	}
	if d := Diff(c, again); len(d) != 0 {
		t.Errorf("does not read back: %v", d)
	}
	lines := strings.Split(Sample(), "\n")
	for _, path := range keyPaths(reflect.TypeFor[Config](), "") {
		found := false
		for key, pos := range c.src.pos {
			if strip(key) != path {
				continue
			}
			found = true
			_, doc, _ := strings.Cut(lines[pos.Line-1], " # ")
			if above := lines[max(pos.Line-2, 0)]; doc == "" && !strings.Contains(above, " # ") {
				t.Errorf("%s, line %d: no comment", key, pos.Line)
			}
		}
		if !found {
			t.Errorf("sample.yaml lacks %s", path)
		}
	}
	def := Default()
	for name, pair := range map[string][2]any{"icmp": {def.ICMP, c.ICMP}, "kernel": {def.Kernel, c.Kernel}, "log": {def.Log, c.Log}} {
		if pair[0] != pair[1] {
			t.Errorf("%s: default %+v, sample %+v", name, pair[0], pair[1])
		}
	}
	w := c.Workers
	w.Cores = nil
	if !reflect.DeepEqual(w, def.Workers) {
		t.Errorf("workers: default %+v, sample %+v", def.Workers, w)
	}
}

// keyPaths lists all keys below a type, lists without their index.
func keyPaths(t reflect.Type, prefix string) []string {
	var out []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("yaml"), ",")
		if name == "" {
			continue
		}
		ft := t.Field(i).Type
		if ft.Kind() == reflect.Slice {
			ft = ft.Elem()
		}
		out = append(out, yamltree.Join(prefix, name))
		if ft.Kind() == reflect.Struct && !isValue(ft) {
			out = append(out, keyPaths(ft, yamltree.Join(prefix, name))...)
		}
	}
	return out
}

func strip(key string) string {
	var b strings.Builder
	in := false
	for _, r := range key {
		switch {
		case r == '[':
			in = true
		case r == ']':
			in = false
		case !in:
			b.WriteRune(r)
		}
	}
	return b.String()
}

func TestDiff(t *testing.T) {
	const base = `
ports:
  - {name: eth0, mtu: 1500, addresses: [192.0.2.1/24]}
  - {name: m, driver: memif, socket: /s, secret: a}
  - {name: old, vlans: [{id: 5}]}
routes:
  - {to: 10.0.0.0/8, via: 192.0.2.9}
  - {to: 10.1.0.0/16, type: blackhole}
neighbours: [{address: 192.0.2.7, mac: 02:00:00:00:00:01, port: old}]
`
	const changed = `
ports:
  - {name: m, driver: memif, socket: /s, secret: b}
  - {name: eth0, mtu: 9000, addresses: [192.0.2.1/24, "2001:db8::1/64"], vlans: [{id: 9, addresses: [10.9.0.1/16]}]}
routes:
  - {to: 10.0.0.0/8, via: [192.0.2.9, 192.0.2.10 dev eth0]}
  - {to: 10.0.0.0/8, metric: 5, type: unreachable}
icmp: {rate: 0}
workers: {poll: busy}
kernel: {follow: false}
`
	want := []string{
		"neighbour 192.0.2.7 on old removed: mac 02:00:00:00:00:01, port old",
		"route 10.1.0.0/16 removed: type blackhole",
		"vlan old.5 removed: port old, id 5",
		"port old removed",
		"port m: secret (secret) -> (secret)",
		"port eth0: mtu 1500 -> 9000",
		"port eth0: addresses 192.0.2.1/24 -> [192.0.2.1/24, 2001:db8::1/64]",
		"vlan eth0.9 added: port eth0, id 9, addresses 10.9.0.1/16",
		"route 10.0.0.0/8: via 192.0.2.9 -> [192.0.2.9, 192.0.2.10 dev eth0]",
		"route 10.0.0.0/8 metric 5 added: type unreachable",
		"workers: poll adaptive -> busy",
		"icmp: rate 1000 -> 0",
		"kernel: follow true -> false",
	}
	a, err := Parse("a", []byte(base))
	if err != nil {
		t.Fatal(err)
	}
	b, err := Parse("b", []byte(changed))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, c := range Diff(a, b) {
		got = append(got, c.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if d := Diff(a, a); len(d) != 0 {
		t.Errorf("a file differs from itself: %v", d)
	}
}

// Whatever the bytes, Parse returns, and what it accepts reads back.
func FuzzParse(f *testing.F) {
	f.Add(Sample())
	f.Add("ports: [{name: eth0, addresses: [2001:db8::1/64]}]")
	f.Add("a: &a [*a]\nports: *a")
	f.Fuzz(func(t *testing.T, s string) {
		c, err := Parse("f", []byte(s))
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("%T", err)
			}
			return
		}
		again, err := Parse("again", c.YAML())
		if err != nil {
			t.Fatalf("%v\n%s", err, c.YAML())
		}
		if d := Diff(c, again); len(d) != 0 {
			t.Fatalf("%v\n%s", d, c.YAML())
		}
	})
}
