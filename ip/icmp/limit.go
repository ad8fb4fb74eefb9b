package icmp

import (
	"hash/maphash"
	"net/netip"

	"millrace/internal/clock"
)

const (
	// HostBurst messages may go to one host at once, then one every HostSeconds (Linux:
	// icmp_ratelimit of 1000 ms with a burst of 6).
	HostBurst   = 6
	HostSeconds = 1
	// GlobalBurst messages may go at once, then GlobalRate a second, for each worker (Linux:
	// icmp_msgs_burst, icmp_msgs_per_sec).
	GlobalBurst = 50
	GlobalRate  = 1000

	limitSlots = 4096 // hosts that share a slot by their hash share its rate
)

// Limits bound the errors and redirects of one worker in all. The zero value is GlobalRate and GlobalBurst.
type Limits struct {
	Rate  int  // messages a second
	Burst int  // messages at once
	None  bool // none are sent, not even "too big"
}

// limitKind keeps redirects from using up a host's errors.
type limitKind uint64

const (
	limitError limitKind = iota
	limitRedirect
)

// limiter is a worker's token buckets, each kept as the time at which it will be full
// again (the generic cell rate algorithm): empty buckets need no upkeep.
type limiter struct {
	host, global uint64 // ticks for one message
	burst        uint64 // messages at once, less one
	none         bool
	seed         maphash.Seed
	all          uint64
	slots        [limitSlots]uint64
}

func newLimiter(c Limits) *limiter {
	if c.Rate <= 0 {
		c.Rate = GlobalRate
	}
	if c.Burst <= 0 {
		c.Burst = GlobalBurst
	}
	hz := clock.Hz()
	return &limiter{host: hz * HostSeconds, global: hz / uint64(c.Rate), burst: uint64(c.Burst - 1), none: c.None, seed: maphash.MakeSeed()}
}

// allow takes a token of the host's bucket and of the global one, or none: one loud host does not
// take everybody's. The global bucket is looked at first, since under a flood it is the empty one.
func (l *limiter) allow(now uint64, to netip.Addr, kind limitKind) bool {
	g := max(l.all, now)
	if l.none || g-now > l.burst*l.global {
		return false
	}
	a := to.As16()
	s := &l.slots[(maphash.Bytes(l.seed, a[:])^uint64(kind)<<7)%limitSlots]
	h := max(*s, now)
	if h-now > (HostBurst-1)*l.host {
		return false
	}
	*s, l.all = h+l.host, g+l.global
	return true
}
