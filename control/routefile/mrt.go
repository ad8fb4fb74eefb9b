package routefile

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
)

// MRT record types and subtypes (RFC 6396 4, RFC 8050 4).
const (
	mrtTableDump      = 12
	mrtTableDumpV2    = 13
	mrtPeerIndexTable = 1
	mrtRIB4           = 2
	mrtRIB6           = 4
	mrtRIB4AddPath    = 8
	mrtRIB6AddPath    = 10
)

// maxRecord bounds an MRT record, in bytes: a RIB entry of a collector with hundreds of peers has some 100 KB.
const maxRecord = 16 << 20

// BGP path attributes (RFC 4271 5, RFC 4760 3).
const (
	attrASPath      = 2
	attrNextHop     = 3
	attrMPReach     = 14
	attrExtended    = 0x10 // flag: the length has two bytes
	attrHeaderShort = 3
)

// mrtReader reads the routes of a TABLE_DUMP_V2 file.
type mrtReader struct {
	r      io.Reader
	only   netip.Addr // take this peer's routes only; zero for the best of all
	peers  []netip.Addr
	found  bool // the peer is in the peer index table
	head   [12]byte
	buf    []byte
	record int // from 1, for messages
}

// next reads up to the next record with a route; io.EOF at the end.
func (m *mrtReader) next() (rt Route, err error) {
	for {
		m.record++
		if _, err := io.ReadFull(m.r, m.head[:]); err != nil {
			if err == io.EOF {
				if m.only.IsValid() && !m.found {
					return rt, fmt.Errorf("no peer %v in the file", m.only)
				}
				return rt, io.EOF
			}
			return rt, m.bad(cut(err))
		}
		typ, sub := binary.BigEndian.Uint16(m.head[4:]), binary.BigEndian.Uint16(m.head[6:])
		n := int(binary.BigEndian.Uint32(m.head[8:]))
		if n > maxRecord {
			return rt, m.bad(fmt.Errorf("a record of %d bytes: this is no MRT file", n))
		}
		if cap(m.buf) < n {
			m.buf = make([]byte, n)
		}
		b := m.buf[:n]
		if _, err := io.ReadFull(m.r, b); err != nil {
			return rt, m.bad(cut(err))
		}
		if typ == mrtTableDump {
			return rt, m.bad(errors.New("type TABLE_DUMP is of before 2008 and not read: a dump of type TABLE_DUMP_V2 is wanted"))
		}
		if typ != mrtTableDumpV2 {
			continue // such as BGP4MP: updates, not routes
		}
		ok := false
		switch sub {
		case mrtPeerIndexTable:
			err = m.peerIndex(b)
		case mrtRIB4, mrtRIB4AddPath:
			rt, ok, err = m.rib(b, false, sub == mrtRIB4AddPath)
		case mrtRIB6, mrtRIB6AddPath:
			rt, ok, err = m.rib(b, true, sub == mrtRIB6AddPath)
		}
		if err != nil {
			return rt, m.bad(err)
		}
		if ok {
			return rt, nil
		}
	}
}

func cut(err error) error {
	if errors.Is(err, io.ErrUnexpectedEOF) || err == io.EOF {
		return errors.New("the file ends inside it")
	}
	return err
}

func (m *mrtReader) bad(err error) error { return fmt.Errorf("record %d: %w", m.record, err) }

var errShort = errors.New("it is shorter than it says")

// cursor takes bytes off a record; after the end it gives zeros and is short.
type cursor struct {
	b     []byte
	short bool
}

func (c *cursor) take(n int) []byte {
	if n > len(c.b) {
		c.b, c.short = nil, true
		return nil
	}
	p := c.b[:n]
	c.b = c.b[n:]
	return p
}

func (c *cursor) u8() int {
	if p := c.take(1); p != nil {
		return int(p[0])
	}
	return 0
}

func (c *cursor) u16() int {
	if p := c.take(2); p != nil {
		return int(binary.BigEndian.Uint16(p))
	}
	return 0
}

func (c *cursor) addr(is6 bool) netip.Addr {
	n := 4
	if is6 {
		n = 16
	}
	a, _ := netip.AddrFromSlice(c.take(n))
	return a
}

// peerIndex reads PEER_INDEX_TABLE (RFC 6396 4.3.1).
func (m *mrtReader) peerIndex(b []byte) error {
	c := cursor{b: b}
	c.take(4) // the collector's BGP identifier
	c.take(c.u16())
	m.peers = nil
	for range c.u16() {
		typ := c.u8()
		c.take(4)
		a := c.addr(typ&1 != 0)
		c.take(2 + 2*(typ>>1&1))
		if c.short {
			return errShort
		}
		m.peers = append(m.peers, a)
		m.found = m.found || a == m.only
	}
	return nil
}

// rib reads a RIB record (RFC 6396 4.3.2): a prefix and what each peer said about it. Of several peers the one
// with the shortest AS path counts, of equal ones the first.
func (m *mrtReader) rib(b []byte, is6, addPath bool) (rt Route, ok bool, err error) {
	c := cursor{b: b}
	c.take(4) // sequence number
	bits := c.u8()
	most := 32
	if is6 {
		most = 128
	}
	if bits > most {
		return rt, false, fmt.Errorf("a prefix of %d bits", bits)
	}
	var a [16]byte
	copy(a[:], c.take((bits+7)/8))
	if is6 {
		rt.Prefix = netip.PrefixFrom(netip.AddrFrom16(a), bits).Masked()
	} else {
		rt.Prefix = netip.PrefixFrom(netip.AddrFrom4([4]byte(a[:4])), bits).Masked()
	}
	best := 0
	for range c.u16() {
		peer := c.u16()
		c.take(4) // when it was originated
		if addPath {
			c.take(4)
		}
		attrs := c.take(c.u16())
		if c.short {
			return rt, false, errShort
		}
		if peer >= len(m.peers) {
			return rt, false, fmt.Errorf("peer %d of %d", peer, len(m.peers))
		}
		if m.only.IsValid() && m.peers[peer] != m.only {
			continue
		}
		length, via, err := pathOf(attrs, is6)
		if err != nil {
			return rt, false, err
		}
		if !ok || length < best {
			ok, best, rt.Via = true, length, via
		}
	}
	if c.short {
		return rt, false, errShort
	}
	return rt, ok, nil
}

// pathOf is the length of the AS path and the next hop in a route's attributes.
func pathOf(b []byte, is6 bool) (length int, via netip.Addr, err error) {
	for len(b) > 0 {
		if len(b) < attrHeaderShort {
			return 0, via, errShort
		}
		typ, n, at := b[1], int(b[2]), attrHeaderShort
		if b[0]&attrExtended != 0 {
			if len(b) < 4 {
				return 0, via, errShort
			}
			n, at = int(binary.BigEndian.Uint16(b[2:])), 4
		}
		if len(b) < at+n {
			return 0, via, errShort
		}
		v := b[at : at+n]
		b = b[at+n:]
		switch typ {
		case attrASPath:
			for len(v) >= 2 { // segments: type, number of ASes of four bytes (RFC 6396 4.3.4)
				k := int(v[1])
				if len(v) < 2+4*k {
					return 0, via, errShort
				}
				if v[0] == 1 { // a set counts as one (RFC 4271 9.1.2.2)
					length++
				} else {
					length += k
				}
				v = v[2+4*k:]
			}
		case attrNextHop:
			if !is6 && n == 4 {
				via = netip.AddrFrom4([4]byte(v))
			}
		case attrMPReach:
			// Shortened to the next hop's length and address (RFC 6396 4.3.4); some write it in full.
			if len(v) > 3 && v[0] == 0 {
				v = v[3:]
			}
			if len(v) >= 17 && (v[0] == 16 || v[0] == 32) {
				via = netip.AddrFrom16([16]byte(v[1:17]))
			}
		}
	}
	return length, via, nil
}
