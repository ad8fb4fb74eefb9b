package packet

const (
	UDPSize  = 8
	TCPSize  = 20 // without options
	ICMPSize = 8  // of echo and of errors, up to what they quote
)

// UDP is a view of a UDP header: at least UDPSize bytes.
type UDP []byte

func (h UDP) SrcPort() uint16     { return be16(h) }
func (h UDP) DstPort() uint16     { return be16(h[2:]) }
func (h UDP) Len() int            { return int(be16(h[4:])) }
func (h UDP) SetSrcPort(p uint16) { put16(h, p) }
func (h UDP) SetDstPort(p uint16) { put16(h[2:], p) }
func (h UDP) SetLen(n int)        { put16(h[4:], uint16(n)) }

// TCP flags.
const (
	TCPFin = 1 << iota
	TCPSyn
	TCPRst
	TCPPsh
	TCPAck
	TCPUrg
	TCPEce
	TCPCwr
)

// TCP is a view of a TCP header: at least TCPSize bytes.
type TCP []byte

func (h TCP) SrcPort() uint16     { return be16(h) }
func (h TCP) DstPort() uint16     { return be16(h[2:]) }
func (h TCP) Seq() uint32         { return be32(h[4:]) }
func (h TCP) Ack() uint32         { return be32(h[8:]) }
func (h TCP) HeaderLen() int      { return int(h[12]>>4) * 4 }
func (h TCP) Flags() uint8        { return h[13] }
func (h TCP) Window() uint16      { return be16(h[14:]) }
func (h TCP) SetSrcPort(p uint16) { put16(h, p) }
func (h TCP) SetDstPort(p uint16) { put16(h[2:], p) }
func (h TCP) SetSeq(v uint32)     { put32(h[4:], v) }
func (h TCP) SetAck(v uint32)     { put32(h[8:], v) }
func (h TCP) SetFlags(v uint8)    { h[13] = v }
func (h TCP) SetWindow(v uint16)  { put16(h[14:], v) }

// SumOffset is the offset of the checksum in the header of an upper-layer protocol
// whose checksum covers the pseudo header, or -1 for others.
func SumOffset(proto uint8) int {
	switch proto {
	case ProtoTCP:
		return 16
	case ProtoUDP:
		return 6
	case ProtoICMPv6:
		return 2
	case ProtoDCCP:
		return 6
	}
	return -1
}

// ICMP message types (RFC 792).
const (
	ICMPEchoReply    = 0
	ICMPUnreachable  = 3
	ICMPRedirect     = 5
	ICMPEcho         = 8
	ICMPTimeExceeded = 11
	ICMPParamProblem = 12
)

// ICMPv6 message types (RFC 4443, 4861, 2710, 3810).
const (
	ICMP6Unreachable  = 1
	ICMP6TooBig       = 2
	ICMP6TimeExceeded = 3
	ICMP6ParamProblem = 4
	ICMP6Echo         = 128
	ICMP6EchoReply    = 129
	ICMP6MLDQuery     = 130
	ICMP6MLDReport    = 131
	ICMP6MLDDone      = 132
	ICMP6RS           = 133
	ICMP6RA           = 134
	ICMP6NS           = 135
	ICMP6NA           = 136
	ICMP6Redirect     = 137
	ICMP6MLDv2Report  = 143
)

// ICMP is a view of an ICMP or ICMPv6 header: at least ICMPSize bytes.
type ICMP []byte

func (h ICMP) Type() uint8      { return h[0] }
func (h ICMP) Code() uint8      { return h[1] }
func (h ICMP) Sum() uint16      { return GetSum(h[2:]) } // memory order
func (h ICMP) Rest() uint32     { return be32(h[4:]) }   // MTU, pointer, or identifier and sequence
func (h ICMP) SetRest(v uint32) { put32(h[4:], v) }

// IsError reports whether an ICMP (v4) type is an error message, which must never
// be answered by another (RFC 1122 3.2.2).
func (h ICMP) IsError() bool {
	switch h[0] {
	case ICMPUnreachable, 4, ICMPRedirect, ICMPTimeExceeded, ICMPParamProblem:
		return true
	}
	return false
}

// IsError6 is IsError for ICMPv6: types below 128 (RFC 4443 2.1).
func (h ICMP) IsError6() bool { return h[0] < 128 }
