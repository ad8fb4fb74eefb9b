package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// MAC is an Ethernet address.
type MAC [6]byte

func (m MAC) String() string { return net.HardwareAddr(m[:]).String() }

// IsZero: no address is set.
func (m MAC) IsZero() bool { return m == MAC{} }

// MarshalText writes aa:bb:cc:dd:ee:ff.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText reads aa:bb:cc:dd:ee:ff.
func (m *MAC) UnmarshalText(b []byte) error {
	h, err := net.ParseMAC(string(b))
	if err != nil || len(h) != 6 {
		return fmt.Errorf("%q is not a MAC address such as 02:00:5e:10:00:01", b)
	}
	*m = MAC(h)
	return nil
}

// Cores is a set of CPUs in ascending order, written as "2-5,8".
type Cores []int

func (c Cores) String() string {
	var s []string
	for i := 0; i < len(c); {
		j := i
		for j+1 < len(c) && c[j+1] == c[j]+1 {
			j++
		}
		if j == i {
			s = append(s, strconv.Itoa(c[i]))
		} else {
			s = append(s, fmt.Sprintf("%d-%d", c[i], c[j]))
		}
		i = j + 1
	}
	return strings.Join(s, ",")
}

// MarshalText writes "2-5,8".
func (c Cores) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

const maxCore = 4095

// UnmarshalText reads "2-5,8".
func (c *Cores) UnmarshalText(b []byte) error {
	*c = nil
	bad := fmt.Errorf("%q is not a list of CPUs such as 2-5,8", b)
	for part := range strings.SplitSeq(string(b), ",") {
		from, to, isRange := strings.Cut(strings.TrimSpace(part), "-")
		a, err := strconv.Atoi(from)
		z := a
		if err == nil && isRange {
			z, err = strconv.Atoi(to)
		}
		if err != nil || a < 0 || z < a {
			return bad
		}
		if z > maxCore {
			return fmt.Errorf("CPU %d: more than %d", z, maxCore)
		}
		for n := a; n <= z; n++ {
			if slices.Contains(*c, n) {
				return fmt.Errorf("CPU %d is there twice", n)
			}
			*c = append(*c, n)
		}
	}
	slices.Sort(*c)
	return nil
}

// Loop is how often a capture is replayed: 0 for once, n for n times, -1 (`forever`) without end.
type Loop int

// MarshalText writes the number or "forever".
func (l Loop) MarshalText() ([]byte, error) {
	if l < 0 {
		return []byte("forever"), nil
	}
	return []byte(strconv.Itoa(int(l))), nil
}

// UnmarshalText reads a number or "forever".
func (l *Loop) UnmarshalText(b []byte) error {
	if string(b) == "forever" {
		*l = -1
		return nil
	}
	n, err := strconv.ParseUint(string(b), 0, 31)
	if err != nil {
		return fmt.Errorf("%q is not a number of times or `forever`", b)
	}
	*l = Loop(n)
	return nil
}

// Rate is how fast a capture is replayed, in packets a second: 0 (`recorded`) as it was
// recorded, -1 (`max`) as fast as the road takes it.
type Rate float64

// MarshalText writes the number, "recorded" or "max".
func (r Rate) MarshalText() ([]byte, error) {
	switch {
	case r < 0:
		return []byte("max"), nil
	case r == 0:
		return []byte("recorded"), nil
	}
	return []byte(strconv.FormatFloat(float64(r), 'f', -1, 64)), nil
}

// UnmarshalText reads a number, "recorded" or "max".
func (r *Rate) UnmarshalText(b []byte) error {
	switch string(b) {
	case "recorded":
		*r = 0
		return nil
	case "max":
		*r = -1
		return nil
	}
	f, err := strconv.ParseFloat(string(b), 64)
	if err != nil || !(f > 0) || f > 1e12 {
		return fmt.Errorf("%q is not a number of packets a second, `recorded` or `max`", b)
	}
	*r = Rate(f)
	return nil
}

func (n NextHop) String() string {
	s := n.Addr.String()
	if n.Inet6 {
		s = "inet6 " + s
	}
	if n.Dev != "" {
		s += " dev " + n.Dev
	}
	if n.Weight > 1 {
		s += fmt.Sprintf(" weight %d", n.Weight)
	}
	return s
}

// MarshalText writes [inet6] ADDR [dev NAME] [weight N].
func (n NextHop) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads [inet6] ADDR [dev NAME] [weight N].
func (n *NextHop) UnmarshalText(b []byte) error {
	w := strings.Fields(string(b))
	if len(w) == 0 {
		return errors.New("an empty next hop: write ADDRESS or ADDRESS dev NAME")
	}
	inet6 := w[0] == "inet6" && len(w) > 1
	if inet6 {
		w = w[1:]
	}
	a, err := netip.ParseAddr(w[0])
	if err != nil || inet6 && !a.Unmap().Is6() {
		return fmt.Errorf("%q is not a gateway: write ADDRESS or ADDRESS dev NAME", b)
	}
	if a.Zone() != "" {
		return fmt.Errorf("%q: write %s dev %s", w[0], a.WithZone(""), a.Zone())
	}
	*n = NextHop{Addr: a.Unmap(), Weight: 1, Inet6: inet6}
	for w = w[1:]; len(w) >= 2; w = w[2:] {
		switch w[0] {
		case "dev":
			n.Dev = w[1]
		case "weight":
			k, err := strconv.Atoi(w[1])
			if err != nil || k < 1 || k > 256 {
				return fmt.Errorf("weight %q: a number from 1 to 256", w[1])
			}
			n.Weight = k
		default:
			return fmt.Errorf("%q after the gateway: only `dev NAME` and `weight N` can follow", w[0])
		}
	}
	if len(w) != 0 {
		return fmt.Errorf("%q needs a value", w[0])
	}
	return nil
}

// Source is the source of a multicast route.
type Source struct{ netip.Addr }

// IsZero: any source.
func (s Source) IsZero() bool { return !s.IsValid() }

// UnmarshalText reads an address.
func (s *Source) UnmarshalText(b []byte) (err error) {
	s.Addr, err = parseAddr(string(b))
	return err
}

func (o MrouteOut) String() string {
	if o.TTL == 0 {
		return o.Dev
	}
	return fmt.Sprintf("%s ttl %d", o.Dev, o.TTL)
}

// MarshalText writes NAME [ttl N].
func (o MrouteOut) MarshalText() ([]byte, error) { return []byte(o.String()), nil }

// UnmarshalText reads NAME [ttl N].
func (o *MrouteOut) UnmarshalText(b []byte) error {
	w := strings.Fields(string(b))
	if len(w) != 1 && (len(w) != 3 || w[1] != "ttl") {
		return fmt.Errorf("%q is not an outgoing interface: write NAME or NAME ttl N", b)
	}
	*o = MrouteOut{Dev: w[0]}
	if len(w) == 3 {
		n, err := strconv.ParseUint(w[2], 10, 8)
		if err != nil || n == 255 {
			return fmt.Errorf("ttl %q: a number from 0 to 254", w[2])
		}
		o.TTL = uint8(n)
	}
	return nil
}

func parsePrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err == nil {
		return p, nil
	}
	if a, aerr := netip.ParseAddr(s); aerr == nil && a.Zone() == "" {
		return p, fmt.Errorf("%s has no prefix length: write %s/%d for a host, or the subnet's, such as /%d", s, s, a.BitLen(), a.BitLen()*3/4/8*8)
	}
	return p, fmt.Errorf("%q is not an address with a prefix length such as 192.0.2.1/24 or 2001:db8::1/64", s)
}

// ParseDest reads the destination of a route: a prefix, an address, or "default" for 0.0.0.0/0.
func ParseDest(s string) (netip.Prefix, error) {
	if s == "default" {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
	}
	if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	switch {
	case err == nil && p.Addr().Is4In6():
		return p, fmt.Errorf("%s: write IPv4 prefixes as such", p)
	case err != nil:
		return p, fmt.Errorf("%q is not a prefix such as 198.51.100.0/24 or 2001:db8::/32, nor `default`", s)
	case p != p.Masked():
		return p, fmt.Errorf("%s has bits behind its length: write %s", p, p.Masked())
	}
	return p, nil
}

func parseAddr(s string) (netip.Addr, error) {
	a, err := netip.ParseAddr(s)
	if err != nil {
		return a, fmt.Errorf("%q is not an IP address", s)
	}
	return a.Unmap(), nil
}

func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil || d < 0 {
		return 0, fmt.Errorf("%q is not a time such as 50us, 10ms or 1s", s)
	}
	return d, nil
}
