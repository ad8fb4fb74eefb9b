package gen

import (
	"math/bits"
	"unsafe" // packets' data, within the lengths that their headers and mbufs give

	"millrace/packet"
)

// flow is what a receiver knows of one stream.
type flow struct {
	next       uint64 // one more than the highest packet number seen
	received   uint64
	duplicated uint64
	reordered  uint64
	corrupted  uint64
	hole       uint64   // one more than the last packet that is missing of those that seen had room for once; 0 for none
	seen       []uint64 // a bit for each of the last packets, a ring; nil where the stream is not expected here
}

// receiver checks what comes in by one port during a trial.
type receiver struct {
	mark  uint32 // first half of a stamp of this trial
	kinds [256]sumKind
	at    [256]uint16 // by protocol: where its stamps are behind the start of layer 4, noStamp for nowhere
	flows []flow
	hist  hist
	more  [][2]uint16 // (protocol, place) of stamps that at has no room for
	raw   []uint16    // places of stamps behind the EtherType, of frames that are not IP

	last      uint64 // ticks of the last stamped frame
	arrived   uint64 // stamped frames that are received, of all streams
	corrupted uint64 // all frames with a wrong checksum
	foreign   uint64
	plain     uint64 // frames without a stamp, where a stream without stamps is expected
	early     uint64 // stamped frames that came long before they were sent: by another clock
	unstamped bool   // frames without a stamp are expected
	bare      bool   // some of them are not IP
	mistakes  bool   // some of them have wrong checksums
}

// sumKind is how a protocol's checksum is verified.
type sumKind uint8

const (
	sumNone   sumKind = iota
	sumPlain          // ICMP
	sumPseudo         // with the pseudo header
	sumUDP            // the same, and 0 over IPv4 is no checksum
)

const noStamp = 0xffff

// farAhead is how many ticks no two processors' counters of one machine differ.
const farAhead = 1 << 22

// verdict on a frame.
type verdict uint8

const (
	good    verdict = iota
	bad             // a checksum is wrong
	unknown         // no stamp of this trial
)

func (r *receiver) init(mark uint32, flows int, hz uint64) {
	r.mark = mark
	r.flows = make([]flow, flows)
	r.kinds[packet.ProtoTCP], r.kinds[packet.ProtoUDP] = sumPseudo, sumUDP
	r.kinds[packet.ProtoICMP], r.kinds[packet.ProtoICMPv6] = sumPlain, sumPseudo
	for i := range r.at {
		r.at[i] = noStamp
	}
	clear(r.hist.counts[:]) // its pages are touched here, not in the trial
	r.hist.mult = uint64(1e9 / float64(hz) * (1 << 32))
}

// expect makes the receiver look for stamps at a place behind layer 4 of a protocol.
func (r *receiver) expect(proto uint8, place uint16) {
	if r.at[proto] == noStamp || r.at[proto] == place {
		r.at[proto] = place
		return
	}
	for _, m := range r.more {
		if m == [2]uint16{uint16(proto), place} {
			return
		}
	}
	r.more = append(r.more, [2]uint16{uint16(proto), place})
}

// take checks the frames of a burst that came in at now. Those that are not of this trial are put to the front of
// idx; it returns their number. All stay the caller's.
//
// Frames that were made in one burst and come in one have equal second words of the stamp: such a run of one stream
// without gap, duplicate or reordering is counted at once.
func (r *receiver) take(idx []uint32, now uint64) (others int) {
	var run, w, next uint64 // frames of the run, their second word, the number that follows (32 bits)
	for i, x := range idx {
		m := packet.At(x)
		w0, w1, v := r.look(m)
		if v == good {
			if w1 == w && w0>>32 == next && run > 0 {
				next = uint64(uint32(next + 1))
				run++
				continue
			}
			r.count(w, next, run, now)
			w, next, run = 0, 0, 0
			if f := r.flow(w0, w1); f != nil {
				if uint32(f.next) == uint32(w0>>32) {
					w, next, run = w1, uint64(uint32(w0>>32)+1), 1
				} else {
					r.odd(f, w0, w1, now)
				}
				continue
			}
			v = unknown
		} else {
			r.count(w, next, run, now)
			run = 0
			if v == unknown {
				w0, w1, v = r.search(m)
			}
		}
		f := r.flow(w0, w1)
		switch {
		case v == bad && (f != nil || !r.mistakes):
			r.corrupted++
			if f != nil {
				f.corrupted++
			}
		case v == good && f != nil:
			r.odd(f, w0, w1, now)
		default:
			idx[i], idx[others] = idx[others], x
			others++
		}
	}
	r.count(w, next, run, now)
	return others
}

// count enters a run of n frames that follow what the stream has.
func (r *receiver) count(w, next, n, now uint64) {
	if n == 0 {
		return
	}
	f := &r.flows[w&0xffff]
	f.follow(n)
	r.record(w, n, now)
}

// odd enters one frame, whatever its number.
func (r *receiver) odd(f *flow, w0, w1, now uint64) {
	ahead := int64(int32(uint32(w0>>32) - uint32(f.next)))
	n := f.next + uint64(ahead)
	switch {
	case ahead > 0:
		f.skip(n)
		fallthrough
	case ahead == 0:
		f.follow(1)
	default:
		mask := uint64(len(f.seen)) - 1
		word, bit := n>>6, uint64(1)<<(n&63)
		if int64(n) < 0 || (f.next-1)>>6-word > mask || f.seen[word&mask]&bit != 0 {
			f.duplicated++
			return
		}
		f.seen[word&mask] |= bit
		f.received++
		f.reordered++
	}
	r.record(w1, 1, now)
}

// record keeps the latency of n frames that were received.
func (r *receiver) record(w, n, now uint64) {
	r.arrived += n
	r.last = now
	late := (now - w>>16) & timeMask
	if late > timeMask/2 { // two processors' counters differ a little
		if late < timeMask-farAhead {
			r.early += n
		}
		late = 0
	}
	r.hist.add(late, int64(n))
}

// flow is the stream that a stamp names, nil for none that is expected here.
func (r *receiver) flow(w0, w1 uint64) *flow {
	if id := w1 & 0xffff; uint32(w0) == r.mark && id < uint64(len(r.flows)) && r.flows[id].seen != nil {
		return &r.flows[id]
	}
	return nil
}

// look finds and verifies the stamp of plain frames: one segment, Ethernet with any number of tags, IP without options or
// extension headers, not a fragment, the stamp where most frames of the protocol have it. What it does not know is for search.
func (r *receiver) look(m *packet.Mbuf) (w0, w1 uint64, v verdict) {
	n := uintptr(m.DataLen)
	if uint32(n) != m.PktLen || n < 34 {
		return w0, w1, unknown
	}
	d := m.Data()
	t := *(*uint16)(unsafe.Add(d, 12))
	off := uintptr(14)
	for t == tag8100 || t == tag88a8 {
		if off += 4; off+20 > n {
			return w0, w1, unknown
		}
		t = *(*uint16)(unsafe.Add(d, off-2))
	}
	h := unsafe.Add(d, off)
	var s uint64 // pseudo header
	var proto uint8
	var l4 unsafe.Pointer
	var size uintptr // of layer 4
	switch {
	case t == type0800 && *(*uint8)(h) == 0x45:
		total := uintptr(bits.ReverseBytes16(*(*uint16)(unsafe.Add(h, 2))))
		a, b, c := *(*uint64)(h), *(*uint64)(unsafe.Add(h, 8)), *(*uint32)(unsafe.Add(h, 16))
		if off+total > n || total < 20 || a>>48&0xff3f != 0 { // flags but DF, and offset, in memory order
			return w0, w1, unknown
		}
		if (halves(a)+halves(b)+uint64(c))%0xffff != 0 { // not 0 itself: it begins with 0x45
			return w0, w1, bad
		}
		proto = uint8(b >> 8)
		size = total - 20
		s = b>>32 + uint64(c) + uint64(proto)<<8
		l4 = unsafe.Add(h, 20)
	case t == type86dd && off+40 <= n && *(*uint8)(h)>>4 == 6:
		size = uintptr(bits.ReverseBytes16(*(*uint16)(unsafe.Add(h, 4))))
		if off+40+size > n {
			return w0, w1, unknown
		}
		proto = *(*uint8)(unsafe.Add(h, 6))
		for i := uintptr(8); i < 40; i += 8 {
			s += halves(*(*uint64)(unsafe.Add(h, i)))
		}
		s += uint64(proto) << 8
		l4 = unsafe.Add(h, 40)
	default:
		return w0, w1, unknown
	}
	at := uintptr(r.at[proto])
	if at+stampLen > size {
		if at != tailPlace || size < stampLen {
			return w0, w1, unknown
		}
		at = (size - stampLen) &^ 1
	}
	st := unsafe.Add(l4, at)
	w0, w1 = *(*uint64)(st), *(*uint64)(unsafe.Add(st, 8))
	switch r.kinds[proto] {
	case sumUDP:
		if t == type0800 && *(*uint16)(unsafe.Add(l4, 6)) == 0 {
			s = stampSum(w0, w1, st)
			break
		}
		s = sum(l4, size, s+uint64(bits.ReverseBytes16(uint16(size))))
	case sumPseudo:
		s = sum(l4, size, s+uint64(bits.ReverseBytes16(uint16(size))))
	case sumPlain:
		s = sum(l4, size, 0)
	default:
		s = stampSum(w0, w1, st)
	}
	if uint32(w0) != r.mark {
		return w0, w1, unknown
	}
	if s%0xffff != 0 { // not 0 itself: there is a stamp
		return w0, w1, bad
	}
	return w0, w1, good
}

// EtherTypes as they lie in memory.
const (
	type0800 = 0x0008
	type86dd = 0xdd86
	tag8100  = 0x0081
	tag88a8  = 0xa888
)

// stampSum is the sum over the stamp alone.
func stampSum(w0, w1 uint64, st unsafe.Pointer) uint64 {
	return halves(w0) + halves(w1) + uint64(*(*uint16)(unsafe.Add(st, 16)))
}

// sum adds n bytes, at least stampLen, to a sum that is below 2^36. The result is not folded.
func sum(p unsafe.Pointer, n uintptr, s uint64) uint64 {
	if n > 64 {
		return sumLong(p, n, s)
	}
	for ; n >= 8; n -= 8 {
		s += halves(*(*uint64)(p))
		p = unsafe.Add(p, 8)
	}
	if n > 0 { // the end of the last 8 bytes, those summed already shifted out
		s += halves(*(*uint64)(unsafe.Add(p, n-8)) >> (64 - 8*n))
	}
	return s
}

// sumLong is sum for many bytes.
func sumLong(p unsafe.Pointer, n uintptr, s uint64) uint64 {
	var c uint64
	for ; n >= 32; n -= 32 {
		s, c = bits.Add64(s, *(*uint64)(p), 0)
		s, c = bits.Add64(s, *(*uint64)(unsafe.Add(p, 8)), c)
		s, c = bits.Add64(s, *(*uint64)(unsafe.Add(p, 16)), c)
		s, c = bits.Add64(s, *(*uint64)(unsafe.Add(p, 24)), c)
		s += c
		p = unsafe.Add(p, 32)
	}
	s = halves(s)
	for ; n >= 8; n -= 8 {
		s += halves(*(*uint64)(p))
		p = unsafe.Add(p, 8)
	}
	if n > 0 {
		s += halves(*(*uint64)(unsafe.Add(p, n-8)) >> (64 - 8*n))
	}
	return s
}

// search finds and verifies the stamp of any frame.
func (r *receiver) search(m *packet.Mbuf) (w0, w1 uint64, v verdict) {
	l, ok := parse(m)
	if !ok {
		return r.searchRaw(m)
	}
	if l.bad {
		return w0, w1, bad
	}
	if place := r.at[l.proto]; place != noStamp {
		if w0, w1, v = r.try(m, &l, int(place)); v != unknown {
			return w0, w1, v
		}
	}
	for _, x := range r.more {
		if uint8(x[0]) == l.proto {
			if w0, w1, v = r.try(m, &l, int(x[1])); v != unknown {
				return w0, w1, v
			}
		}
	}
	if s, ok := l.verify(m, r.kinds[l.proto]); ok && s != 0xffff {
		return w0, w1, bad
	}
	return w0, w1, unknown
}

// searchRaw finds the stamp of a frame that is not IP.
func (r *receiver) searchRaw(m *packet.Mbuf) (w0, w1 uint64, v verdict) {
	off, _, ok := ether(m, 0)
	if !ok {
		return w0, w1, unknown
	}
	l := heads{l4: off, size: int(m.PktLen) - off}
	for _, place := range r.raw {
		if w0, w1, v = r.try(m, &l, int(place)); v != unknown {
			return w0, w1, v
		}
	}
	return w0, w1, unknown
}

// try looks for a stamp at a place behind the start of layer 4.
func (r *receiver) try(m *packet.Mbuf, l *heads, place int) (w0, w1 uint64, v verdict) {
	var tmp [stampLen]byte
	if place == tailPlace {
		place = (l.size - stampLen) &^ 1
	}
	if place < 0 || place+stampLen > l.size {
		return w0, w1, unknown
	}
	b := m.View(l.l4+place, stampLen, tmp[:])
	if b == nil {
		return w0, w1, unknown
	}
	st := unsafe.Pointer(unsafe.SliceData(b))
	w0, w1 = *(*uint64)(st), *(*uint64)(unsafe.Add(st, 8))
	if uint32(w0) != r.mark {
		return w0, w1, unknown
	}
	if s, ok := l.verify(m, r.kinds[l.proto]); ok && s != 0xffff || !ok && fold16(stampSum(w0, w1, st)) != 0xffff {
		return w0, w1, bad
	}
	return w0, w1, good
}

// follow enters the next n packets.
func (f *flow) follow(n uint64) {
	f.received += n
	mask := uint64(len(f.seen)) - 1
	for n > 0 {
		at := f.next & 63
		k := min(64-at, n)
		bits := ^uint64(0) >> (64 - k) << at
		w := &f.seen[f.next>>6&mask]
		if at == 0 { // the ring's oldest word
			if *w != ^uint64(0) {
				f.forget(f.next>>6, *w)
			}
			*w = 0
		}
		*w |= bits
		f.next += k
		n -= k
	}
}

// forget notes what is missing in the ring's oldest word, before word takes its place.
func (f *flow) forget(word, old uint64) {
	if size := uint64(len(f.seen)); word >= size && old != ^uint64(0) {
		f.hole = (word-size)<<6 + uint64(bits.Len64(^old))
	}
}

// skip makes n the next packet: those before it are missing.
func (f *flow) skip(n uint64) {
	size := uint64(len(f.seen))
	from, to := (f.next+63)>>6, (n+63)>>6 // words whose first packet lies between: they are entered, but the last is full or not
	if to > from+size {
		from = to - size
		f.hole = from << 6
	} else {
		for w := from; w < to; w++ {
			f.forget(w, f.seen[w&(size-1)])
		}
	}
	for w := from; w < to; w++ {
		f.seen[w&(size-1)] = 0
	}
	f.next = n
}

// lastLost is the number of the last packet that is missing of the n that the stream has.
func (f *flow) lastLost(n uint64) (k uint64, ok bool) {
	if f.next < n {
		return n - 1, true
	}
	if n == 0 {
		return 0, false
	}
	mask, top := uint64(len(f.seen))-1, (n-1)>>6
	missing := ^f.seen[top&mask] & (^uint64(0) >> (63 - (n-1)&63))
	for w := top; ; w-- {
		if missing != 0 {
			return w<<6 + uint64(bits.Len64(missing)) - 1, true
		}
		if w == 0 || top-w == mask {
			return f.hole - 1, f.hole > 0
		}
		missing = ^f.seen[(w-1)&mask]
	}
}
