package kernel

import (
	"errors"
	"net/netip"
	"slices"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"
)

const (
	// askEvery is the least time between two requests for the same neighbour: the
	// kernel sends three solicitations for each, a second apart.
	askEvery = time.Second
	// askMost bounds the requests that wait, and the neighbours that askEvery remembers.
	askMost = 4096
)

// asker has the kernel resolve neighbours. It has a goroutine of its own, because a request waits for
// the kernel's lock.
type asker struct {
	s     *socket
	log   *zap.Logger
	todo  chan neighKey
	done  chan struct{}
	mu    sync.Mutex
	asked map[neighKey]time.Time
	fails int
}

func newAsker(log *zap.Logger) (*asker, error) {
	s, err := open(false)
	if err != nil {
		return nil, err
	}
	a := &asker{s: s, log: log, todo: make(chan neighKey, askMost), done: make(chan struct{}), asked: map[neighKey]time.Time{}}
	go a.run()
	return a, nil
}

// Ask has the kernel resolve a neighbour, by ARP or neighbour discovery, or check one that is stale.
// The answer arrives as NeighChanged. It never blocks; false where the neighbour was asked for less
// than a second ago, or too many requests wait.
func (f *Follower) Ask(index int, addr netip.Addr) bool {
	return f.asks.ask(neighKey{index, addr}, time.Now())
}

func (a *asker) ask(k neighKey, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if t, ok := a.asked[k]; ok && now.Sub(t) < askEvery {
		return false
	}
	if len(a.asked) >= askMost {
		for k, t := range a.asked {
			if now.Sub(t) >= askEvery {
				delete(a.asked, k)
			}
		}
		if len(a.asked) >= askMost {
			return false
		}
	}
	select {
	case a.todo <- k:
		a.asked[k] = now
		return true
	default:
		return false
	}
}

func (a *asker) run() {
	for {
		select {
		case <-a.done:
			a.s.close()
			return
		case k := <-a.todo:
			if err := a.use(k); err != nil && !errors.Is(err, unix.ENODEV) {
				if a.fails++; a.fails&(a.fails-1) == 0 {
					a.log.Warn("asking the kernel for a neighbour", zap.Stringer("address", k.addr), zap.Int("failures", a.fails), zap.Error(err))
				}
			}
		}
	}
}

// use sends RTM_NEWNEIGH with NTF_USE: the kernel does what it does when it has a packet to send. It also takes
// NUD_PERMANENT from an entry that has it (__neigh_update of Linux 5.16 and later), so such entries, which the follower
// may not have told yet, are left alone.
func (a *asker) use(k neighKey) error {
	b := make([]byte, unix.SizeofNdMsg)
	b[0] = unix.AF_INET
	if k.addr.Is6() {
		b[0] = unix.AF_INET6
	}
	native.PutUint32(b[4:], uint32(k.index))
	state := uint16(unix.NUD_NONE)
	err := a.request(unix.RTM_GETNEIGH, 0, putAttr(slices.Clone(b), unix.NDA_DST, k.addr.AsSlice()), func(m message) {
		if m.typ == unix.RTM_NEWNEIGH && len(m.body) >= unix.SizeofNdMsg {
			state = native.Uint16(m.body[8:])
		}
	})
	switch {
	case err != nil && !errors.Is(err, unix.ENOENT):
		return err
	case state&(unix.NUD_PERMANENT|unix.NUD_NOARP) != 0:
		return nil
	}
	native.PutUint16(b[8:], unix.NUD_NONE)
	b[10] = unix.NTF_USE
	return a.request(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, putAttr(b, unix.NDA_DST, k.addr.AsSlice()), func(message) {})
}

// request sends a message, hands the answers to f, and returns the kernel's error. The kernel has dealt with it when
// the sending returns.
func (a *asker) request(typ, flags uint16, body []byte, f func(message)) error {
	if _, err := a.s.send(typ, flags, body); err != nil {
		return err
	}
	var failed error
	for {
		b, err := a.s.receive(false, time.Time{})
		if errors.Is(err, errEmpty) {
			return failed
		}
		if err != nil {
			return err
		}
		for m := range messages(b) {
			if m.typ == unix.NLMSG_ERROR {
				failed = errnoOf(m.body)
			} else {
				f(m)
			}
		}
	}
}

func (a *asker) close() { close(a.done) }
