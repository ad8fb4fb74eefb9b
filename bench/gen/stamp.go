package gen

import "millrace/bench/traffic"

// A stamp marks a frame. Its fields are little-endian:
//
//	 0      2      4            8       10                  16    18
//	| magic | trial | sequence   | stream | time              | fix |
//
//	magic     0x4d72
//	trial     the trial's number, so that frames of another are told apart
//	sequence  the lower 32 bits of the packet's number in its stream
//	stream    the stream's place in Options.Streams
//	time      the lower 48 bits of the time-stamp counter when the frame was made
//	fix       the Internet checksum of the 16 bytes before it
//
// The words of a stamp so add up to zero (0xffff): a stamp at an even place never changes
// the checksum of the layer above it, and it can be verified alone where that has none. The time-stamp counter is
// one for all processes of a machine, and so is what two generators on it make of each other's stamps.
const (
	stampMagic = 0x4d72
	stampLen   = traffic.StampLen
	timeMask   = 1<<48 - 1
)

// stampWord is the first half of the first word of all stamps of a trial.
func stampWord(trial uint16) uint32 { return stampMagic | uint32(trial)<<16 }

// fold16 reduces a sum of 16-bit words, below 2^48, to one that is at most 0xffff.
func fold16(s uint64) uint64 {
	s = s>>32 + s&0xffffffff
	s = s>>16 + s&0xffff
	s = s>>16 + s&0xffff
	return s>>16 + s&0xffff
}

// halves adds the two halves of a word: congruent modulo 0xffff, with room to add more.
func halves(w uint64) uint64 { return w>>32 + w&0xffffffff }
