// Package config is Millrace's configuration file: one YAML document, decoded
// strictly. Every mistake is reported with file, line, column and key, and with
// what would have been right.
//
// A Config is passive data. The router converts it at its border; nothing in
// the data plane knows these types.
package config

import (
	"net/netip"
	"time"
)

// DefaultPath is where `millrace run` looks for a configuration when it is given
// neither a file nor interfaces.
const DefaultPath = "/etc/millrace.yaml"

// Config is the whole file. The zero value of a field means "not said", and
// Default says what holds then.
type Config struct {
	Ports      []Port      `yaml:"ports"`
	Pool       Pool        `yaml:"pool,omitzero"`
	Workers    Workers     `yaml:"workers"`
	VRFs       []VRF       `yaml:"vrfs,omitempty"`
	Rules      []string    `yaml:"rules,omitempty"` // in the words of `ip rule`; see ParsedRules
	Routes     []Route     `yaml:"routes,omitempty"`
	Files      []RouteFile `yaml:"route-files,omitempty"`
	Neighbours []Neighbour `yaml:"neighbours,omitempty"`
	Multicast  Multicast   `yaml:"multicast,omitzero"`
	ICMP       ICMP        `yaml:"icmp"`
	Multipath  Multipath   `yaml:"multipath"`
	Kernel     Kernel      `yaml:"kernel"`
	FPM        FPM         `yaml:"fpm"`
	API        API         `yaml:"api,omitzero"`
	Metrics    Metrics     `yaml:"metrics,omitzero"`
	Log        Log         `yaml:"log,omitzero"`

	src source // where it was read from
}

// Port is a network port. Name alone is enough for a kernel interface.
type Port struct {
	Name      string         `yaml:"name"`
	Driver    string         `yaml:"driver,omitempty"` // "" finds one for the kernel interface Name
	Queues    int            `yaml:"queues,omitempty"` // 0: chosen
	Ring      int            `yaml:"ring,omitempty"`   // descriptors; 0: chosen
	MTU       int            `yaml:"mtu,omitempty"`    // bytes; 0: left alone
	MAC       MAC            `yaml:"mac,omitzero"`     // zero: chosen
	Addresses []netip.Prefix `yaml:"addresses,omitempty"`
	VRF       string         `yaml:"vrf,omitempty"`       // "": the kernel's, or none
	RPFilter  string         `yaml:"rp_filter,omitempty"` // "off", "loose", "strict"; "": IPv4 by the kernel's, IPv6 off
	Host      string         `yaml:"host,omitempty"`      // "kernel", "tap", "builtin"; "": by driver, see HostFor
	Mode      string         `yaml:"mode,omitempty"`      // afxdp: "zero-copy", "native", "generic"; "": the best that works
	Socket    string         `yaml:"socket,omitempty"`
	Role      string         `yaml:"role,omitempty"` // memif: "server" or "client"
	ID        uint32         `yaml:"id,omitempty"`
	Secret    string         `yaml:"secret,omitempty"`
	Read      string         `yaml:"read,omitempty"`
	Write     string         `yaml:"write,omitempty"`
	Loop      Loop           `yaml:"loop,omitempty"`
	Rate      Rate           `yaml:"rate,omitempty"`
	Vlans     []Vlan         `yaml:"vlans,omitempty"`
}

// Vlan is an interface for the tagged frames of a port.
type Vlan struct {
	ID        uint16         `yaml:"id"`                  // outer or only tag, 1 to 4094
	Inner     uint16         `yaml:"inner,omitempty"`     // inner tag of QinQ; 0 for a single tag
	Name      string         `yaml:"name,omitempty"`      // never empty after Load: port.id or port.id.inner
	VRF       string         `yaml:"vrf,omitempty"`       // as Port's, which does not hold for VLANs
	RPFilter  string         `yaml:"rp_filter,omitempty"` // the same
	Addresses []netip.Prefix `yaml:"addresses,omitempty"`
}

// Pool is the memory for packets.
type Pool struct {
	Buffers int `yaml:"buffers,omitempty"` // 0: chosen from the ports' rings
}

// Workers are the threads that move packets.
type Workers struct {
	Cores Cores         `yaml:"cores,omitempty"` // none: chosen
	Poll  string        `yaml:"poll,omitempty"`  // "busy" or "adaptive"
	Spin  time.Duration `yaml:"spin"`            // adaptive: time of empty polls before a worker sleeps
	Sleep time.Duration `yaml:"sleep"`           // adaptive: longest sleep
}

// Route is a static route.
type Route struct {
	To     netip.Prefix `yaml:"to" form:"dest"` // masked
	Via    []NextHop    `yaml:"via,omitempty"`
	Dev    string       `yaml:"dev,omitempty"` // without Via: directly connected
	Metric uint32       `yaml:"metric,omitempty"`
	Table  string       `yaml:"table,omitempty"` // see TableOf
	MTU    int          `yaml:"mtu,omitempty"`   // of the path, bytes; 0: the port's
	Type   string       `yaml:"type,omitempty"`  // "unicast", "blackhole", "unreachable", "prohibit", "throw"; "" is unicast
}

// NextHop is a gateway, written `[inet6] ADDR [dev NAME] [weight N]`.
type NextHop struct {
	Addr   netip.Addr
	Dev    string // "" lets the connected prefixes decide
	Weight int    // at least 1
	Inet6  bool   // it says that an IPv6 gateway is meant, for the IPv4 default route too (RFC 8950)
}

// RouteFile is a file of routes: an MRT dump, or a list of prefixes.
type RouteFile struct {
	File string    `yaml:"file"`
	Via  []NextHop `yaml:"via,omitempty"`  // each prefix by one of these; none: the file's own next hops
	Peer string    `yaml:"peer,omitempty"` // of an MRT file: only what this peer said
}

// Neighbour is a static neighbour.
type Neighbour struct {
	Address netip.Addr `yaml:"address"`
	MAC     MAC        `yaml:"mac"`
	Port    string     `yaml:"port"` // a port or VLAN
}

// Multicast is what is forwarded to groups beside the kernel's multicast routes.
type Multicast struct {
	Routes     []Mroute   `yaml:"routes,omitempty"`
	Boundaries []Boundary `yaml:"boundaries,omitempty"`
}

// Mroute is a static multicast route.
type Mroute struct {
	Group  netip.Addr  `yaml:"group"`
	Source Source      `yaml:"source,omitzero"` // invalid for any
	From   string      `yaml:"from"`            // port or VLAN
	To     []MrouteOut `yaml:"to,omitempty"`
}

// MrouteOut is an outgoing interface, written `NAME [ttl N]`.
type MrouteOut struct {
	Dev string
	TTL uint8 // packets with a larger TTL are sent
}

// Boundary is an interface that packets to some groups do not cross, in neither direction (RFC 2365).
type Boundary struct {
	Port   string       `yaml:"port"`               // a port or VLAN
	Groups netip.Prefix `yaml:"groups" form:"dest"` // masked
}

// ICMP limits the errors that the router sends.
type ICMP struct {
	Rate      int  `yaml:"rate"`      // errors a second, of all kinds together; 0: none are sent
	Burst     int  `yaml:"burst"`     // errors at once
	Redirects bool `yaml:"redirects"` // send redirects
}

// Multipath says how flows are spread over the next hops of a route.
type Multipath struct {
	Hash      string `yaml:"hash,omitempty"` // what names a flow: "l4", "l3", "inner"
	Symmetric bool   `yaml:"symmetric"`      // both directions of a flow hash alike
	Seed      uint32 `yaml:"seed,omitempty"` // of the hash; 0: chosen at the start
}

// Kernel is what is taken from the Linux kernel.
type Kernel struct {
	Follow bool `yaml:"follow"` // links, addresses, neighbours and routes by netlink
}

// FPM is the server for routes of FRR's zebra.
type FPM struct {
	Listen   string        `yaml:"listen,omitempty"`   // host:port; "": off
	Insecure bool          `yaml:"insecure,omitempty"` // Listen may be another address than one of loopback
	Stale    time.Duration `yaml:"stale"`              // how long routes stay when their connection ended
	Quiet    time.Duration `yaml:"quiet"`              // or, once a connection confirms them, until it confirmed none for so long
}

// API is the control interface.
type API struct {
	Socket string `yaml:"socket,omitempty"` // "": api.DefaultSocket
}

// Metrics is Prometheus over TCP.
type Metrics struct {
	Listen string `yaml:"listen,omitempty"` // host:port; "": off
}

// Log is what goes to standard error.
type Log struct {
	Level string `yaml:"level,omitempty"` // "debug", "info", "warn", "error"
}

// Default is the configuration of an empty file: no ports, and a value for everything that has one.
func Default() *Config {
	return &Config{
		Workers:   Workers{Poll: "adaptive", Spin: 100 * time.Microsecond, Sleep: 10 * time.Millisecond},
		ICMP:      ICMP{Rate: 1000, Burst: 50, Redirects: true},
		Multipath: Multipath{Hash: "l4"},
		Kernel:    Kernel{Follow: true},
		FPM:       FPM{Stale: 2 * time.Minute, Quiet: 30 * time.Second},
		Log:       Log{Level: "info"},
	}
}

// FromInterfaces is Default with a port for each kernel interface named.
func FromInterfaces(names []string) (*Config, error) {
	c := Default()
	for _, n := range names {
		c.Ports = append(c.Ports, Port{Name: n})
	}
	c.src.file = "command line"
	return c, c.Check()
}

// HostFor says who answers for a port's own addresses, given the driver that was chosen.
func (p *Port) HostFor(driver string) string {
	switch {
	case p.Host != "":
		return p.Host
	case driver == "afxdp" || driver == "afpacket":
		return "kernel"
	case driver == "mem" || driver == "pcap":
		return "builtin"
	}
	return "tap"
}

// File is the path that the configuration was loaded from, or "".
func (c *Config) File() string { return c.src.file }

// At is the position of a key, such as "ports[1].mtu", as "file:line:col" for
// messages; "file" where the key is not in the file.
func (c *Config) At(key string) string {
	if p, ok := c.src.find(key); ok {
		return p.In(c.src.file)
	}
	return c.src.file
}
