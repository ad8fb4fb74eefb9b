// Package traffic says what a generator sends. A profile, in YAML, is compiled into Streams,
// which name every byte: nothing is decided while packets are sent.
package traffic

import "time"

// Side is the side of the thing under test on which a stream enters.
type Side uint8

const (
	Left Side = iota // a stream enters left and is expected right
	Right
)

// Unit of a rate.
type Unit uint8

const (
	PPS     Unit = iota // frames a second
	BPS                 // bits a second, of frames with FCS
	Percent             // of the port's line rate
)

// Rate of a stream. Searches scale all of a profile's streams together, keeping their proportions.
type Rate struct {
	Value float64
	Unit  Unit
}

// Stream is one stream of frames, compiled.
//
// Each frame is Template cut to a size, with Fields written over it, then Stamp, then checksums. Packet k of a
// stream is a function of the stream and k alone (Kinds with randomness draw from Seed), so that a stream can be
// repeated, and made by an obvious generator for comparison.
type Stream struct {
	Name string
	Side Side
	Rate Rate
	// Burst frames go back to back, then nothing until the rate is met on average; 0 and 1 spread them evenly.
	Burst int
	// Sizes are frame sizes in bytes with FCS, sent in turn (RFC 6985 genome, IMIX) without end.
	Sizes []uint16
	// Frames ends the stream; 0 for none.
	Frames uint64
	// Start is when the stream starts, from the start of the trial.
	Start time.Duration

	// Template is the largest frame, without FCS. Lengths in it are those of the largest; the generator
	// writes those of other sizes at LenOff.
	Template []byte
	L3, L4   uint16 // offsets of the innermost headers of layers 3 and 4 in Template; L4 0 where there is none
	V6       bool
	Proto    uint8 // of layer 4
	// SumOff is the offset of the checksum of layer 4 (TCP, UDP, ICMP), 0 for none. The IPv4 header's is at L3+10.
	SumOff uint16
	Fields []Field
	// Stamp is the offset of StampLen bytes in which the generator writes its Stamp; 0 where frames have none: such
	// a stream is counted as a whole, without sequence and latency.
	Stamp uint16
	Seed  uint64
}

// StampLen is the room that a stamp takes.
const StampLen = 18

// Kind is how a field's value changes from frame to frame.
type Kind uint8

const (
	// Count gives Min + Step*(k mod N).
	Count Kind = iota
	// Random gives Min + a number below N, uniform.
	Random
	// List gives List[k mod len(List)]; shuffled or weighted lists are lists: Zipf is one drawn at compile time.
	List
)

// Field is a part of the frame that changes.
type Field struct {
	Off   uint16 // of its first byte in Template
	Width uint8  // 1, 2, 4 or 8 bytes, big-endian; an IPv6 address' changing half is one of 8
	Mask  uint64 // bits of it that change (a VLAN id, a flow label); all for 0
	Kind  Kind
	Min   uint64
	Step  uint64
	N     uint64
	List  []uint64
	// Every advances the field's k only once in so many frames; 0 and 1 each frame. Nested counters (the
	// second field advances when the first has gone round) are written with it.
	Every uint64
}
