// Package routefile reads files of routes for labs: dumps of BGP tables and lists of prefixes, plain or
// compressed (.gz, .bz2, told by their first bytes).
//
// A dump is of type TABLE_DUMP_V2 of MRT (RFC 6396, with the types of RFC 8050), as RIPE RIS, RouteViews, BIRD and
// FRR write it. A list has one route a line:
//
//	198.51.100.0/24
//	203.0.113.0/24 via 192.0.2.9    # a comment
//
// The few record types are read here and not by a library: those for Go are parts of BGP daemons, which would come
// with them, and decode all attributes of all peers of a million prefixes to give one address.
package routefile

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
)

// Route is a route of a file.
type Route struct {
	Prefix netip.Prefix
	Via    netip.Addr // zero where the file names none
}

// maxRoutes bounds the routes of a file.
const maxRoutes = 16 << 20

// Load reads a file. peer, where it is valid, limits an MRT dump to what that peer said. Of several routes to one
// prefix the last counts for whoever takes them in order. An
// error names the file and the line or record, but nothing of what is there: it may be shown to somebody who may
// not read the file. Nothing is returned with it.
func Load(path string, peer netip.Addr) ([]Route, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	routes, err := Read(f, peer)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return routes, nil
}

// Read is Load from a stream.
func Read(in io.Reader, peer netip.Addr) ([]Route, error) {
	r := bufio.NewReaderSize(in, 1<<20)
	head, _ := r.Peek(3)
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(r)
		if err != nil {
			return nil, err
		}
		defer z.Close()
		r = bufio.NewReaderSize(z, 1<<20)
	case bytes.HasPrefix(head, []byte("BZh")):
		r = bufio.NewReaderSize(bzip2.NewReader(r), 1<<20)
	}
	// An MRT record has a type and a zero byte before it where a text has characters.
	if head, _ := r.Peek(6); len(head) == 6 && head[4] == 0 {
		return collect((&mrtReader{r: r, only: peer}).next)
	}
	if peer.IsValid() {
		return nil, errors.New("a list of prefixes has no peers")
	}
	return collect((&listReader{s: bufio.NewScanner(r)}).next)
}

func collect(next func() (Route, error)) ([]Route, error) {
	var out []Route
	for {
		rt, err := next()
		switch {
		case err == io.EOF:
			return out, nil
		case err != nil:
			return nil, err
		case len(out) == maxRoutes:
			return nil, fmt.Errorf("more than %d routes", maxRoutes)
		}
		out = append(out, rt)
	}
}

// listReader reads a list.
type listReader struct {
	s    *bufio.Scanner
	line int
}

func (l *listReader) next() (rt Route, err error) {
	for l.s.Scan() {
		l.line++
		text, _, _ := strings.Cut(l.s.Text(), "#")
		w := strings.Fields(text)
		if len(w) == 0 {
			continue
		}
		if rt, err = parseLine(w); err != nil {
			return rt, fmt.Errorf("line %d: %w", l.line, err)
		}
		return rt, nil
	}
	if err := l.s.Err(); err != nil {
		return rt, fmt.Errorf("line %d: %w", l.line+1, err)
	}
	return rt, io.EOF
}

func parseLine(w []string) (rt Route, err error) {
	p, err := netip.ParsePrefix(w[0])
	if err != nil {
		a, aerr := netip.ParseAddr(w[0])
		if aerr != nil || a.Zone() != "" {
			return rt, errors.New("no prefix such as 198.51.100.0/24 or 2001:db8::/32")
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	switch {
	case p.Addr().Is4In6():
		return rt, fmt.Errorf("%s: write IPv4 prefixes as such", p)
	case p != p.Masked():
		return rt, fmt.Errorf("%s has bits behind its length: write %s", p, p.Masked())
	}
	rt.Prefix = p
	switch {
	case len(w) == 1:
	case len(w) != 3 || w[1] != "via":
		return rt, fmt.Errorf("behind the prefix %s only `via ADDRESS` can stand", p)
	default:
		if rt.Via, err = netip.ParseAddr(w[2]); err != nil || rt.Via.Zone() != "" {
			return rt, fmt.Errorf("no IP address behind `%s via`", p)
		}
		if rt.Via = rt.Via.Unmap(); rt.Via.Is4() && p.Addr().Is6() {
			return rt, fmt.Errorf("via %s: an IPv4 gateway for an IPv6 prefix", rt.Via)
		}
	}
	return rt, nil
}
