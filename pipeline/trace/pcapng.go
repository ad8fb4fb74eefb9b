package trace

import (
	"bufio"
	"encoding/binary"
	"io"
)

// writer writes pcapng (draft-ietf-opsawg-pcapng): one section, an interface block for
// each port when it is first seen, enhanced packet blocks with comments, which
// gopacket's writer cannot write.
type writer struct {
	out *bufio.Writer
	ids map[string]uint32
}

const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6
	optEnd         = 0
	optComment     = 1
	optShbUserAppl = 4
	optIfName      = 2
	optIfTsResol   = 9
)

func newWriter(out io.Writer) (*writer, error) {
	w := &writer{bufio.NewWriterSize(out, 1<<16), map[string]uint32{}}
	b := binary.LittleEndian.AppendUint32(nil, 0x1a2b3c4d)
	b = binary.LittleEndian.AppendUint16(b, 1) // version 1.0
	b = binary.LittleEndian.AppendUint16(b, 0)
	b = binary.LittleEndian.AppendUint64(b, 1<<64-1) // length not known
	b = option(b, optShbUserAppl, []byte("millrace"))
	w.block(blockSection, option(b, optEnd, nil))
	return w, w.out.Flush()
}

// option appends one option, padded to 32 bits.
func option(b []byte, code uint16, v []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(v)))
	return pad(append(b, v...))
}

func pad(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

func (w *writer) block(typ uint32, body []byte) error {
	n := uint32(len(body) + 12)
	h := binary.LittleEndian.AppendUint32(nil, typ)
	w.out.Write(binary.LittleEndian.AppendUint32(h, n))
	w.out.Write(body)
	_, err := w.out.Write(binary.LittleEndian.AppendUint32(nil, n))
	return err
}

func (w *writer) write(f frame) error {
	id, ok := w.ids[f.from]
	if !ok {
		id = uint32(len(w.ids))
		w.ids[f.from] = id
		b := binary.LittleEndian.AppendUint16(nil, 1) // Ethernet
		b = binary.LittleEndian.AppendUint16(b, 0)
		b = binary.LittleEndian.AppendUint32(b, 0) // no snap length
		b = option(b, optIfName, []byte(f.from))
		b = option(b, optIfTsResol, []byte{9})
		if err := w.block(blockInterface, option(b, optEnd, nil)); err != nil {
			return err
		}
	}
	ns := uint64(f.at.UnixNano())
	b := binary.LittleEndian.AppendUint32(nil, id)
	b = binary.LittleEndian.AppendUint32(b, uint32(ns>>32))
	b = binary.LittleEndian.AppendUint32(b, uint32(ns))
	b = binary.LittleEndian.AppendUint32(b, uint32(len(f.data)))
	b = binary.LittleEndian.AppendUint32(b, uint32(f.length))
	b = pad(append(b, f.data...))
	if f.comment != "" {
		b = option(option(b, optComment, []byte(f.comment)), optEnd, nil)
	}
	return w.block(blockPacket, b)
}

func (w *writer) flush() error { return w.out.Flush() }
