package ip

import (
	"encoding/binary"
	"hash/maphash"
	"math/rand/v2"
)

// idBuckets is how many counters of IPv4 identifications a worker has.
const idBuckets = 2048

// IDs gives out identifications for IPv4 packets that the router originates
// without DF. They do not repeat within 65,536 packets of one (source, destination,
// protocol), as reassembly needs (RFC 6864 4.3), and one receiver's tell nothing of what others
// get (RFC 7739 5.1): counters are shared by a keyed hash, and each flow starts elsewhere.
// A generator belongs to one worker.
type IDs struct {
	seed maphash.Seed
	next [idBuckets]uint16
}

// NewIDs makes a generator with a secret of its own.
func NewIDs() *IDs {
	g := &IDs{seed: maphash.MakeSeed()}
	for i := range g.next {
		g.next[i] = uint16(rand.Uint32())
	}
	return g
}

// Next is the next identification.
func (g *IDs) Next(src, dst [4]byte, proto uint8) uint16 {
	var b [16]byte
	copy(b[:], src[:])
	copy(b[4:], dst[:])
	binary.NativeEndian.PutUint64(b[8:], uint64(proto))
	h := maphash.Bytes(g.seed, b[:])
	c := &g.next[h%idBuckets]
	*c++
	return *c + uint16(h>>48)
}
