package traffic

import "net/netip"

// End is one side of the thing under test as a generator there sees it.
type End struct {
	MAC  [6]byte // of the generator's port: the source of what enters here
	Peer [6]byte // of the port under test that it is joined to: the destination
	// V4 and V6 are the generator's addresses on this side: sources of what enters here, destinations of what
	// enters on the other side.
	V4, V6 netip.Addr
}

// Env is what a profile is compiled for. Where it says nothing, DefaultEnv does.
type Env struct {
	Left, Right End
	// Line is the speed of each port in bits a second; 0 where there is none (memory). Bursts with a gap need it.
	Line float64
	// Dir is where files that a profile names are looked for; "" for the profile's own directory.
	Dir string
}

// DefaultEnv has addresses of the networks for benchmarks (RFC 2544, RFC 5180) and locally administered MACs.
func DefaultEnv() Env {
	return Env{
		Left: End{MAC: [6]byte{2, 0, 0, 0, 1, 1}, Peer: [6]byte{2, 0, 0, 0, 1, 2},
			V4: netip.MustParseAddr("198.18.0.2"), V6: netip.MustParseAddr("2001:2:0:1::2")},
		Right: End{MAC: [6]byte{2, 0, 0, 0, 2, 1}, Peer: [6]byte{2, 0, 0, 0, 2, 2},
			V4: netip.MustParseAddr("198.19.0.2"), V6: netip.MustParseAddr("2001:2:0:2::2")},
	}
}

func (e *Env) fill() {
	d := DefaultEnv()
	for _, x := range []struct{ to, from *End }{{&e.Left, &d.Left}, {&e.Right, &d.Right}} {
		if x.to.MAC == ([6]byte{}) {
			x.to.MAC = x.from.MAC
		}
		if x.to.Peer == ([6]byte{}) {
			x.to.Peer = x.from.Peer
		}
		if !x.to.V4.Is4() {
			x.to.V4 = x.from.V4
		}
		if !x.to.V6.Is6() {
			x.to.V6 = x.from.V6
		}
	}
}

func (e *Env) at(s Side) *End {
	if s == Left {
		return &e.Left
	}
	return &e.Right
}
