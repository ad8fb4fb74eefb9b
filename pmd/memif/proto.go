package memif

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// Version 2.0 of the protocol: major in the upper byte.
const version = 2 << 8

// cookie starts every ring.
const cookie = 0x3E31F20

// Message types.
const (
	typeAck = 1 + iota
	typeHello
	typeInit
	typeAddRegion
	typeAddRing
	typeConnect
	typeConnected
	typeDisconnect
)

const (
	modeEthernet = 0 // interface mode in INIT
	ringC2S      = 1 // flag in ADD_RING: from client to server
	maskInt      = 1 // flag in the ring: the receiver polls and wants no interrupts
	descNext     = 1 // flag in the descriptor: the packet goes on in the next one
	secretLen    = 24
	nameLen      = 32
	maxLog       = 14 // log2 of the longest ring
)

// wire is a message as it is sent: 128 bytes, packed.
type wire [128]byte

// message is one of the types below.
type message interface{ put(*wire) }

type (
	// ack answers INIT, ADD_REGION and ADD_RING.
	ack struct{}
	// hello is the server's first word: what it supports. The maxima are of indices.
	hello struct {
		name                      string
		minVersion, maxVersion    uint16
		maxRegion, maxS2C, maxC2S uint16
		maxLog                    uint8
	}
	// initiate is the client's first word: which interface it wants.
	initiate struct {
		version uint16
		id      uint32
		mode    uint8
		secret  [secretLen]byte
		name    string
	}
	// addRegion comes with a descriptor of shared memory.
	addRegion struct {
		index uint16
		size  uint64
	}
	// addRing comes with an eventfd that wakes the ring's receiver.
	addRing struct {
		flags, index, region uint16
		offset               uint32
		log                  uint8
		private              uint16
	}
	connect    struct{ name string }
	connected  struct{ name string }
	disconnect struct {
		code uint32
		text string
	}
)

var le = binary.LittleEndian

func (w *wire) kind(t uint16) { le.PutUint16(w[:], t) }

func (ack) put(w *wire) { w.kind(typeAck) }

func (m hello) put(w *wire) {
	w.kind(typeHello)
	putText(w[2:34], m.name)
	le.PutUint16(w[34:], m.minVersion)
	le.PutUint16(w[36:], m.maxVersion)
	le.PutUint16(w[38:], m.maxRegion)
	le.PutUint16(w[40:], m.maxS2C)
	le.PutUint16(w[42:], m.maxC2S)
	w[44] = m.maxLog
}

func (m initiate) put(w *wire) {
	w.kind(typeInit)
	le.PutUint16(w[2:], m.version)
	le.PutUint32(w[4:], m.id)
	w[8] = m.mode
	copy(w[9:33], m.secret[:])
	putText(w[33:65], m.name)
}

func (m addRegion) put(w *wire) {
	w.kind(typeAddRegion)
	le.PutUint16(w[2:], m.index)
	le.PutUint64(w[4:], m.size)
}

func (m addRing) put(w *wire) {
	w.kind(typeAddRing)
	le.PutUint16(w[2:], m.flags)
	le.PutUint16(w[4:], m.index)
	le.PutUint16(w[6:], m.region)
	le.PutUint32(w[8:], m.offset)
	w[12] = m.log
	le.PutUint16(w[13:], m.private)
}

func (m connect) put(w *wire) {
	w.kind(typeConnect)
	putText(w[2:34], m.name)
}

func (m connected) put(w *wire) {
	w.kind(typeConnected)
	putText(w[2:34], m.name)
}

func (m disconnect) put(w *wire) {
	w.kind(typeDisconnect)
	le.PutUint32(w[2:], m.code)
	putText(w[6:102], m.text)
}

// parse reads a message that a peer sent.
func parse(b []byte) (message, error) {
	if len(b) != len(wire{}) {
		return nil, fmt.Errorf("message of %d bytes instead of %d", len(b), len(wire{}))
	}
	switch t := le.Uint16(b); t {
	case typeAck:
		return ack{}, nil
	case typeHello:
		return hello{
			name:       text(b[2:34]),
			minVersion: le.Uint16(b[34:]), maxVersion: le.Uint16(b[36:]),
			maxRegion: le.Uint16(b[38:]), maxS2C: le.Uint16(b[40:]), maxC2S: le.Uint16(b[42:]),
			maxLog: b[44],
		}, nil
	case typeInit:
		return initiate{
			version: le.Uint16(b[2:]), id: le.Uint32(b[4:]), mode: b[8],
			secret: [secretLen]byte(b[9:33]), name: text(b[33:65]),
		}, nil
	case typeAddRegion:
		return addRegion{index: le.Uint16(b[2:]), size: le.Uint64(b[4:])}, nil
	case typeAddRing:
		return addRing{
			flags: le.Uint16(b[2:]), index: le.Uint16(b[4:]), region: le.Uint16(b[6:]),
			offset: le.Uint32(b[8:]), log: b[12], private: le.Uint16(b[13:]),
		}, nil
	case typeConnect:
		return connect{text(b[2:34])}, nil
	case typeConnected:
		return connected{text(b[2:34])}, nil
	case typeDisconnect:
		return disconnect{le.Uint32(b[2:]), text(b[6:102])}, nil
	default:
		return nil, fmt.Errorf("unknown message type %d", t)
	}
}

// putText stores s with at least one zero behind it.
func putText(b []byte, s string) { copy(b[:len(b)-1], s) }

// text is a peer's string up to its first zero, fit for a log.
func text(b []byte) string {
	s, _, _ := strings.Cut(string(b[:len(b)-1]), "\x00")
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, s)
}
