package graph

import "fmt"

// Reason is why a packet left the road: a number for the hot path, whose text, kind
// and ICMP message stand in its ReasonInfo. 0 means that it has not left.
type Reason uint16

// MaxReasons bounds the reasons of a build.
const MaxReasons = 512

// Kind says what becomes of a packet that leaves.
type Kind uint8

const (
	Drop Kind = iota // freed, after the ICMP error that is owed
	Host             // handed to the host: the kernel, or the built-in host
	Hold             // kept by the exit stage named in To, which puts it back or drops it later
	Note             // counts an event: no packet leaves by it
)

func (k Kind) String() string { return [...]string{"drop", "host", "hold", "note"}[k] }

// ReasonInfo describes a reason. Its full name is Stage/Name.
type ReasonInfo struct {
	Stage string // stage that gives it
	Name  string // a few words with hyphens, for counters: "ttl-expired"
	Doc   string // a sentence for people who ask why: what happened and what to do
	Kind  Kind
	To    string // exit stage that takes the packet; "" for plain drops
	ICMP4 ICMP   // error owed to the sender of an IPv4 packet
	ICMP6 ICMP   // error owed to the sender of an IPv6 packet
	// Arg finds the error's argument for the packet at position i, which is as it was when it
	// left: the pointer of a parameter problem, the MTU of a packet that is too big.
	// nil: the MTU of the packet's adjacency where the error has one, else 0.
	Arg func(v *Vector, i uint8) uint32
}

// ICMP is a message type and code to send.
type ICMP struct {
	Type, Code uint8
	Owed       bool
}

// Owe is the ICMP message of a type and code.
func Owe(typ, code uint8) ICMP { return ICMP{typ, code, true} }

var reasons = []ReasonInfo{{Stage: "road", Name: "none", Doc: "The packet has not left the road."}}

// NewReason registers a reason. It is for package-level variables: reasons are fixed
// once main runs.
func NewReason(r ReasonInfo) Reason {
	for _, o := range reasons {
		if o.Stage == r.Stage && o.Name == r.Name {
			panic("graph: reason registered twice: " + r.Stage + "/" + r.Name)
		}
	}
	if len(reasons) == MaxReasons {
		panic("graph: more than 512 reasons")
	}
	if r.To == "" && (r.ICMP4.Owed || r.ICMP6.Owed) {
		r.To = "icmp"
	}
	reasons = append(reasons, r)
	return Reason(len(reasons) - 1)
}

// Info describes the reason.
func (r Reason) Info() *ReasonInfo { return &reasons[r] }

func (r Reason) String() string { return fmt.Sprintf("%s/%s", reasons[r].Stage, reasons[r].Name) }

// Reasons lists all registered reasons; index is the Reason.
func Reasons() []ReasonInfo { return reasons }
