// Package traffic says what a generator sends. A profile, in YAML, is compiled into Streams and
// Replays, which name every byte: nothing is decided while packets are sent.
package traffic

import "time"

// Profile is what a generator sends: all streams and replays at once.
type Profile struct {
	Name    string
	Streams []Stream
	Replays []Replay

	text    []byte // of which it was compiled, for At
	env     Env
	scripts bool // some streams are conversations
}

// Side is the side of the thing under test on which a stream enters.
type Side uint8

const (
	Left Side = iota // a stream enters left and is expected right
	Right
)

// Other is the side on which frames that enter at s are expected.
func (s Side) Other() Side { return 1 - s }

func (s Side) String() string {
	if s == Left {
		return "left"
	}
	return "right"
}

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

// Layout is where the parts of a frame are that a generator writes for each one: offsets from the first byte of
// the Ethernet header.
type Layout struct {
	L3, L4 uint16 // the innermost headers of layers 3 and 4; 0 where there is none
	V6     bool
	Proto  uint8 // of layer 4
	// SumOff is the offset of the checksum of layer 4 (TCP, UDP, ICMP) that the generator writes, 0 for none. It
	// covers L4 to the end less Pad, and for all but ICMP the pseudo header. A UDP checksum of 0 is sent as
	// 0xffff. The IPv4 header's, at L3+10, is written if there is an IPv4 header.
	SumOff uint16
	// Pad is the Ethernet padding at the end, which no length counts and no checksum covers.
	Pad uint16
	// Stamp is the offset of StampLen bytes in which the generator writes its Stamp; 0 where frames have none: such
	// a stream is counted as a whole, without sequence and latency.
	Stamp uint16
}

// StampLen is the room that a stamp takes.
const StampLen = 18

// Length is a length in a frame: two bytes at Off, big-endian, that hold the frame's length without FCS less Less.
type Length struct{ Off, Less uint16 }

// Stream is one stream of frames, compiled.
//
// Each frame is Template cut to a size, with Lens and Fields written over it, then Stamp, then checksums. Packet k of
// a stream is a function of the stream and k alone, so that a stream can be repeated, and made by an obvious
// generator for comparison: Frame.
type Stream struct {
	Name string
	Side Side
	Rate Rate
	// Burst frames go back to back, then nothing until the rate is met on average; 0 and 1 spread them evenly.
	Burst int
	// Sizes are frame sizes in bytes with FCS, sent in turn (RFC 6985 genome, IMIX) without end: packet k has
	// Sizes[k mod len].
	Sizes []uint16
	// Frames ends the stream; 0 for none.
	Frames uint64
	// Start is when packet 0 is due, from the start of the trial. Streams of one conversation have equal rates and
	// rising Starts: packet k of each belongs to connection k.
	Start time.Duration

	// Template is the largest frame, without FCS.
	Template []byte
	Layout
	Lens   []Length // to be written where a frame is shorter than Template
	Fields []Field
	Seed   uint64
}

// Kind is how a field's value changes from frame to frame.
type Kind uint8

const (
	// Count gives Min + Step*(k mod N).
	Count Kind = iota
	// Random gives Min + Draw(seed, field, k, N).
	Random
	// List gives List[k mod len(List)]; shuffled or weighted lists are lists: Zipf is one drawn at compile time.
	List
)

// Field is a part of the frame that changes. Its value is cut to the field's width; where Mask is set it
// is shifted left to the lowest bit of Mask, and the other bits of Template stay.
type Field struct {
	Off   uint16 // of its first byte in Template
	Width uint8  // 1, 2, 4 or 8 bytes, big-endian; half of an IPv6 address is one of 8
	Mask  uint64 // bits of it that change (a VLAN id, a flow label); all for 0
	Kind  Kind
	Min   uint64
	Step  uint64
	N     uint64 // 0 is 2^64
	List  []uint64
	// Every advances the field's k only once in so many frames; 0 and 1 each frame. Nested counters (the
	// second field advances when the first has gone round) are written with it.
	Every uint64
}

// Replay is a capture that is sent again. Frames enter on the sides that they name, at one pace, in order.
type Replay struct {
	Name   string
	Frames []Recorded
	// Rate is the pace of all frames together; where Value is 0 each frame is sent at its At.
	Rate  Rate
	Loops uint64        // how often; 0 without end
	Round time.Duration // from the begin of one round to the next, where At is the pace
	Start time.Duration // of the first round, from the start of the trial
}

// Recorded is a frame of a capture, with its MAC addresses replaced.
type Recorded struct {
	Side Side
	At   time.Duration // from the begin of a round, never falling, a multiplier applied
	Data []byte        // without FCS
	// Layout has a Stamp where the frame has room and is to be stamped. A generator that writes it writes the
	// checksum of SumOff, and no other: all else is sent as it was captured, mistakes included.
	Layout
}
