package pcap

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"math/bits"
	"os"

	"millrace/internal/mem"
)

// record is one packet of a loaded file.
type record struct {
	off  uint64 // of its bytes in capture.data
	time int64  // nanoseconds since 1970
	n    uint32 // bytes
}

// capture is a loaded file.
type capture struct {
	data  []byte // the whole file, outside the Go heap
	recs  []record
	bad   int // frames left out for their length
	other int // frames left out for their link type
	cut   int // frames of which the capture has only the beginning
	note  string
}

const (
	linkEthernet = 1
	// maxRecord bounds what a sound file has in one record, as in libpcap.
	maxRecord = 256 << 10
	minFrame  = 14
	maxFrame  = 65535
)

var errNotCapture = errors.New("not a pcap or pcapng file")

// load reads a file into memory and finds its packets.
func load(name string) (*capture, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err // names the file
	}
	defer f.Close()
	data, err := readAll(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	c := &capture{data: data}
	if err := c.parse(data); err != nil {
		c.free()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return c, nil
}

func (c *capture) free() {
	if c.data != nil {
		mem.Unmap(c.data[:cap(c.data)])
		c.data = nil
	}
}

// readAll reads all of r, unpacked where it is compressed, into memory outside the Go heap.
func readAll(f *os.File) ([]byte, error) {
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r := bufio.NewReader(f)
	if b, _ := r.Peek(2); len(b) < 2 || b[0] != 0x1f || b[1] != 0x8b {
		if size := st.Size(); st.Mode().IsRegular() && size > 0 {
			m, _, err := mem.Map(int(size))
			if err != nil {
				return nil, err
			}
			n, err := io.ReadFull(r, m[:size])
			if err != nil && err != io.ErrUnexpectedEOF { // shorter: somebody cut it meanwhile
				mem.Unmap(m)
				return nil, err
			}
			return m[:n], nil
		}
		return copyAll(r, nil)
	}
	z, err := gzip.NewReader(r)
	if err != nil {
		return nil, err
	}
	return copyAll(z, io.ErrUnexpectedEOF)
}

// copyAll reads what has no known size. A stream that ends by the error ok is what came until then.
func copyAll(r io.Reader, ok error) ([]byte, error) {
	b, err := io.ReadAll(r)
	if err != nil && (ok == nil || err != ok) {
		return nil, err
	}
	m, _, err := mem.Map(max(len(b), 1))
	if err != nil {
		return nil, err
	}
	return m[:copy(m, b)], nil
}

// parse finds the packets in b, which is or begins like c.data.
func (c *capture) parse(b []byte) error {
	if len(b) < 4 {
		return errNotCapture
	}
	var err error
	if binary.LittleEndian.Uint32(b) == ngSection {
		err = c.parseNg(b)
	} else {
		err = c.parseClassic(b)
	}
	if err == nil && len(c.recs) == 0 && c.other > 0 {
		err = fmt.Errorf("only Ethernet can be replayed, and the file has %d packets of other link types", c.other)
	}
	return err
}

// add takes a frame of n bytes at off, of which size were on the wire and the last fcs are its check sequence.
func (c *capture) add(off, n int, size uint32, fcs int, time int64) {
	if uint32(n) < size {
		c.cut++
	} else {
		n -= min(n, fcs)
	}
	if n < minFrame || n > maxFrame {
		c.bad++
		return
	}
	c.recs = append(c.recs, record{uint64(off), time, uint32(n)})
}

// packets is how many were read, for messages.
func (c *capture) packets() int { return len(c.recs) + c.bad + c.other }

// truncated notes that the file ends inside the packet at off.
func (c *capture) truncated(off int) {
	c.note = fmt.Sprintf("the file ends inside packet %d, at byte %d: it is left out", c.packets()+1, off)
}

func (c *capture) parseClassic(b []byte) error {
	var bo binary.ByteOrder = binary.LittleEndian
	unit := int64(1000)
	switch {
	case bytes.HasPrefix(b, []byte{0xd4, 0xc3, 0xb2, 0xa1}):
	case bytes.HasPrefix(b, []byte{0xa1, 0xb2, 0xc3, 0xd4}):
		bo = binary.BigEndian
	case bytes.HasPrefix(b, []byte{0x4d, 0x3c, 0xb2, 0xa1}):
		unit = 1
	case bytes.HasPrefix(b, []byte{0xa1, 0xb2, 0x3c, 0x4d}):
		bo, unit = binary.BigEndian, 1
	default:
		return errNotCapture
	}
	if len(b) < 24 {
		return fmt.Errorf("%w: the header is cut off", errNotCapture)
	}
	if v := bo.Uint16(b[4:]); v != 2 {
		return fmt.Errorf("pcap version %d, known is 2", v)
	}
	link := bo.Uint32(b[20:])
	fcs := 0
	if link&1<<26 != 0 { // the capture says that frames end with their FCS, in units of 16 bits
		fcs = int(link>>28) * 2
	}
	if link&0xffff != linkEthernet {
		return fmt.Errorf("only Ethernet (link type 1) can be replayed, the file has link type %d", link&0xffff)
	}
	for off := 24; off < len(b); {
		if len(b)-off < 16 {
			c.truncated(off)
			break
		}
		h := b[off : off+16]
		n := bo.Uint32(h[8:])
		if n > maxRecord {
			return fmt.Errorf("packet %d, at byte %d: a record of %d bytes: the file is damaged", c.packets()+1, off, n)
		}
		if len(b)-off-16 < int(n) {
			c.truncated(off)
			break
		}
		c.add(off+16, int(n), bo.Uint32(h[12:]), fcs, int64(bo.Uint32(h))*1e9+int64(bo.Uint32(h[4:]))*unit)
		off += 16 + int(n)
	}
	return nil
}

// Blocks of pcapng (draft-ietf-opsawg-pcapng).
const (
	ngSection   = 0x0a0d0d0a
	ngInterface = 1
	ngOldPacket = 2
	ngSimple    = 3
	ngPacket    = 6
)

// ngIface is an interface of a section.
type ngIface struct {
	link   uint16
	snap   uint32
	units  uint64 // of time, a second
	offset int64  // seconds
	fcs    int
}

func (c *capture) parseNg(b []byte) error {
	var bo binary.ByteOrder = binary.LittleEndian
	var ifs []ngIface
	var last int64 // time of the packet before, for those without
	for off := 0; off < len(b); {
		if len(b)-off < 12 {
			c.truncated(off)
			break
		}
		damaged := func(format string, args ...any) error {
			return fmt.Errorf("packet %d, at byte %d: %s: the file is damaged", c.packets()+1, off, fmt.Sprintf(format, args...))
		}
		typ := bo.Uint32(b[off:])
		if typ == ngSection {
			switch binary.LittleEndian.Uint32(b[off+8:]) {
			case 0x1a2b3c4d:
				bo = binary.LittleEndian
			case 0x4d3c2b1a:
				bo = binary.BigEndian
			default:
				return damaged("a section without byte order")
			}
			ifs = ifs[:0]
		}
		n := int(bo.Uint32(b[off+4:]))
		if n < 12 || n%4 != 0 {
			return damaged("a block of %d bytes", n)
		}
		if n > len(b)-off {
			c.truncated(off)
			break
		}
		body := b[off+8 : off+n-4]
		at := off + 8
		if tail := int(bo.Uint32(b[off+n-4:])); tail != n {
			return damaged("a block of %d bytes at its begin and %d at its end", n, tail)
		}
		off += n
		switch typ {
		case ngSection:
			if len(body) < 16 {
				return damaged("a section header of %d bytes", n)
			}
			if v := bo.Uint16(body[4:]); v != 1 {
				return fmt.Errorf("pcapng version %d, known is 1", v)
			}
		case ngInterface:
			i, err := parseIface(body, bo)
			if err != nil {
				return damaged("%v", err)
			}
			ifs = append(ifs, i)
		case ngPacket, ngOldPacket, ngSimple:
			var iface, have, size uint32
			var head int
			var stamp uint64
			switch {
			case typ == ngSimple && len(body) >= 4:
				head, size = 4, bo.Uint32(body)
				have = size
				if len(ifs) > 0 && ifs[0].snap != 0 {
					have = min(have, ifs[0].snap)
				}
			case typ != ngSimple && len(body) >= 20:
				head, iface = 20, bo.Uint32(body)
				if typ == ngOldPacket {
					iface = uint32(bo.Uint16(body))
				}
				stamp = uint64(bo.Uint32(body[4:]))<<32 | uint64(bo.Uint32(body[8:]))
				have, size = bo.Uint32(body[12:]), bo.Uint32(body[16:])
			default:
				return damaged("a packet block of %d bytes", n)
			}
			if uint64(iface) >= uint64(len(ifs)) {
				return damaged("a packet of interface %d, there are %d", iface, len(ifs))
			}
			if uint64(have) > uint64(len(body)-head) {
				return damaged("%d bytes of packet in a block of %d", have, n)
			}
			i := &ifs[iface]
			if typ != ngSimple {
				last = i.time(stamp)
			}
			if i.link != linkEthernet {
				c.other++
				continue
			}
			c.add(at+head, int(have), size, i.fcs, last)
		}
	}
	return nil
}

// parseIface reads an interface description block.
func parseIface(b []byte, bo binary.ByteOrder) (i ngIface, err error) {
	if len(b) < 8 {
		return i, errors.New("a short interface block")
	}
	i = ngIface{link: bo.Uint16(b), snap: bo.Uint32(b[4:]), units: 1e6}
	for b = b[8:]; len(b) >= 4; {
		code, n := bo.Uint16(b), int(bo.Uint16(b[2:]))
		pad := (n + 3) &^ 3
		if code == 0 {
			break
		}
		if pad > len(b)-4 {
			return i, errors.New("an option longer than its block")
		}
		v := b[4 : 4+n]
		b = b[4+pad:]
		switch {
		case code == 9 && n == 1: // if_tsresol
			e := v[0] & 0x7f
			switch {
			case v[0]&0x80 != 0 && e < 64:
				i.units = 1 << e
			case v[0]&0x80 == 0 && e < 20:
				i.units = 1
				for range e {
					i.units *= 10
				}
			default:
				return i, fmt.Errorf("a time resolution of %#x", v[0])
			}
		case code == 14 && n == 8: // if_tsoffset
			i.offset = int64(bo.Uint64(v))
		case code == 13 && n == 1: // if_fcslen, in bits; some write bytes
			if i.fcs = int(v[0]); i.fcs >= 16 {
				i.fcs /= 8
			}
		}
	}
	return i, nil
}

// time converts a time stamp; what no clock shows becomes the farthest time.
func (i *ngIface) time(stamp uint64) int64 {
	hi, lo := bits.Mul64(stamp, 1e9)
	if hi >= i.units {
		return math.MaxInt64
	}
	ns, _ := bits.Div64(hi, lo, i.units)
	if ns > math.MaxInt64 {
		return math.MaxInt64
	}
	if off := i.offset; off > -1e9 && off < 9e9 {
		if t := int64(ns) + off*1e9; (t >= int64(ns)) == (off >= 0) {
			return t
		}
	}
	return int64(ns)
}
