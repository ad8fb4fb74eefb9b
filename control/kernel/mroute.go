package kernel

import (
	"cmp"
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

// MrouteKey names a multicast route of the kernel.
type MrouteKey struct {
	Group  netip.Addr
	Source netip.Addr // the zero Addr for any
}

// Mroute is a multicast route of the kernel (`ip mroute`), which a routing daemon has made.
type Mroute struct {
	MrouteKey
	In  int // index of the interface that leads to the source; 0 where it is not resolved
	Out []MrouteHop
	// Unresolved: packets came, and no daemon has said yet what becomes of them.
	Unresolved bool
}

// MrouteHop is an outgoing interface.
type MrouteHop struct {
	Index int
	TTL   uint8 // packets with a larger TTL are sent
}

func (m *Mroute) equal(o *Mroute) bool {
	return m.MrouteKey == o.MrouteKey && m.In == o.In && m.Unresolved == o.Unresolved && slices.Equal(m.Out, o.Out)
}

// MrouteSink takes the kernel's multicast routes: del first, then set. It is called on the goroutine of Run.
type MrouteSink interface {
	Mroutes(set []Mroute, del []MrouteKey)
}

// MrouteFollower follows the multicast routes of both families in the kernel's default tables, by sockets of its own. Where
// announcements are lost all is read again, and the differences are told.
type MrouteFollower struct {
	sink   MrouteSink
	log    *zap.Logger
	events *socket
	dumps  *socket
	have   map[MrouteKey]Mroute
}

// Families of multicast routes (linux/rtnetlink.h), and the tables that daemons use (RT_TABLE_DEFAULT, RT6_TABLE_DFLT).
const (
	familyMroute4 = 128
	familyMroute6 = 129
	tableMroute4  = 253
	tableMroute6  = 254
)

// FollowMroutes opens the sockets in the calling thread's network namespace; Run does the rest.
func FollowMroutes(sink MrouteSink, log *zap.Logger) (*MrouteFollower, error) {
	f := &MrouteFollower{sink: sink, log: log, have: map[MrouteKey]Mroute{}}
	if f.log == nil {
		f.log = zap.NewNop()
	}
	var err error
	if f.events, err = open(false, unix.RTNLGRP_IPV4_MROUTE, unix.RTNLGRP_IPV6_MROUTE); err != nil {
		return nil, err
	}
	if f.dumps, err = open(false); err != nil {
		f.events.close()
		return nil, err
	}
	return f, nil
}

// Run follows until ctx ends.
func (f *MrouteFollower) Run(ctx context.Context) error {
	defer f.dumps.close()
	defer f.events.close()
	stop := context.AfterFunc(ctx, func() { _ = f.events.f.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	due, tries := time.Now(), 0
	for ctx.Err() == nil {
		now := time.Now()
		if !due.IsZero() && !now.Before(due) {
			if err := f.resync(); err != nil {
				tries++
				due = now.Add(min(time.Duration(tries)*quiet, time.Second))
				if !errors.Is(err, errInterrupted) {
					f.log.Error("reading the kernel's multicast routes", zap.Error(err))
				}
			} else {
				due, tries = time.Time{}, 0
			}
		}
		until := now.Add(wakePeriod)
		if !due.IsZero() && due.Before(until) {
			until = due
		}
		if ctx.Err() != nil { // it may have taken back the deadline of the end
			break
		}
		b, err := f.events.receive(true, until)
		switch {
		case err == nil:
			f.announced(b)
		case errors.Is(err, errEmpty), errors.Is(err, os.ErrDeadlineExceeded):
		case errors.Is(err, os.ErrClosed):
			return err
		default:
			f.log.Warn("announcements of multicast routes were lost, reading them again", zap.Error(err))
			due = now
		}
	}
	return nil
}

// announced takes a datagram of announcements as one batch.
func (f *MrouteFollower) announced(b []byte) {
	next := map[MrouteKey]*Mroute{} // nil: deleted
	for m := range messages(b) {
		r, ok := parseMroute(m.body)
		if !ok {
			continue
		}
		switch m.typ {
		case unix.RTM_NEWROUTE:
			next[r.MrouteKey] = &r
		case unix.RTM_DELROUTE:
			next[r.MrouteKey] = nil
		}
	}
	f.tell(next)
}

// resync dumps both families and tells the differences.
func (f *MrouteFollower) resync() error {
	next := map[MrouteKey]*Mroute{}
	for k := range f.have {
		next[k] = nil
	}
	all, err := readMroutes(f.dumps)
	if err != nil {
		return err
	}
	for i := range all {
		next[all[i].MrouteKey] = &all[i]
	}
	f.tell(next)
	return nil
}

// readMroutes dumps the multicast routes of both families.
func readMroutes(s *socket) (all []Mroute, err error) {
	for _, family := range []byte{familyMroute4, familyMroute6} {
		body := make([]byte, unix.SizeofRtMsg)
		body[0] = family
		err := s.dump(unix.RTM_GETROUTE, body, func(m message) {
			if r, ok := parseMroute(m.body); ok && m.typ == unix.RTM_NEWROUTE {
				all = append(all, r)
			}
		})
		if err != nil && !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without
			return nil, err
		}
	}
	return all, nil
}

func (f *MrouteFollower) tell(next map[MrouteKey]*Mroute) {
	var set []Mroute
	var del []MrouteKey
	for k, r := range next {
		old, known := f.have[k]
		switch {
		case r == nil && known:
			delete(f.have, k)
			del = append(del, k)
		case r != nil && (!known || !old.equal(r)):
			f.have[k] = *r
			set = append(set, *r)
		}
	}
	if len(set)+len(del) != 0 {
		f.sink.Mroutes(set, del)
	}
}

// parseMroute reads a route of family RTNL_FAMILY_IPMR or RTNL_FAMILY_IP6MR; false for others, and for
// tables other than the default ones.
func parseMroute(b []byte) (r Mroute, ok bool) {
	if len(b) < unix.SizeofRtMsg {
		return r, false
	}
	table, want := uint32(b[4]), uint32(tableMroute4)
	switch b[0] {
	case familyMroute4:
	case familyMroute6:
		want = tableMroute6
	default:
		return r, false
	}
	r.Unresolved = native.Uint32(b[8:])&unix.RTNH_F_UNRESOLVED != 0
	for t, v := range attrs(b[unix.SizeofRtMsg:]) {
		switch t {
		case unix.RTA_TABLE:
			table = u32(v)
		case unix.RTA_SRC:
			if r.Source = ipAddr(v); r.Source.IsUnspecified() {
				r.Source = netip.Addr{}
			}
		case unix.RTA_DST:
			r.Group = ipAddr(v)
		case unix.RTA_IIF:
			r.In = int(u32(v))
		case unix.RTA_MULTIPATH:
			r.Out = parseMrouteHops(v)
		}
	}
	return r, r.Group.IsValid() && table == want && (!r.Source.IsValid() || r.Source.Is4() == r.Group.Is4())
}

// parseMrouteHops reads an rtnexthop list in which the hops are TTL thresholds.
func parseMrouteHops(b []byte) (hs []MrouteHop) {
	for len(b) >= unix.SizeofRtNexthop {
		n := int(native.Uint16(b))
		if n < unix.SizeofRtNexthop || n > len(b) {
			break
		}
		hs = append(hs, MrouteHop{Index: int(int32(native.Uint32(b[4:]))), TTL: b[3]})
		b = b[min(align(n), len(b)):]
	}
	slices.SortFunc(hs, func(a, b MrouteHop) int { return cmp.Compare(a.Index, b.Index) })
	return hs
}

// Memberships are the groups of wider than link-local scope that sockets of this host have joined, by interface index. It
// works in the calling thread's network namespace.
func Memberships() (map[int][]netip.Addr, error) {
	m := map[int][]netip.Addr{}
	b, err := os.ReadFile("/proc/thread-self/net/igmp")
	if err == nil {
		parseIGMP(m, b)
		b, err = os.ReadFile("/proc/thread-self/net/igmp6")
	}
	if errors.Is(err, os.ErrNotExist) { // without IPv6
		return m, nil
	}
	parseIGMP6(m, b)
	return m, err
}
