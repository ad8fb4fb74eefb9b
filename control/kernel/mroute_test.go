package kernel

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"
)

// mroutes is a MrouteSink that keeps what it was told.
type mroutes struct {
	mu    sync.Mutex
	have  map[MrouteKey]Mroute
	wrong string
}

func (v *mroutes) Mroutes(set []Mroute, del []MrouteKey) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, k := range del {
		if _, there := v.have[k]; !there {
			v.wrong = fmt.Sprintf("%v deleted, which is not there", k)
		}
		delete(v.have, k)
	}
	for _, r := range set {
		if old := v.have[r.MrouteKey]; old.equal(&r) {
			v.wrong = fmt.Sprintf("%v set again", r)
		}
		v.have[r.MrouteKey] = r
	}
}

func (v *mroutes) wait(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(2 * time.Millisecond) {
		v.mu.Lock()
		ok := f()
		if ok || time.Now().After(end) || v.wrong != "" {
			if !ok || v.wrong != "" {
				t.Fatalf("%s: %s%+v", what, v.wrong, v.have)
			}
			v.mu.Unlock()
			return
		}
		v.mu.Unlock()
	}
}

func TestMroutes(t *testing.T) {
	r, _ := pair(t)
	const name, other = "a0", "a1"
	m := r.Mrouter(t, name, other)
	a := netip.MustParseAddr
	var in, out int
	r.Do(func() {
		x, _ := net.InterfaceByName(name)
		y, _ := net.InterfaceByName(other)
		in, out = x.Index, y.Index
	})
	m.Add(a("192.0.2.7"), a("239.1.1.1"), name, 16, other)
	v := &mroutes{have: map[MrouteKey]Mroute{}}
	var f *MrouteFollower
	var err error
	r.Do(func() { f, err = FollowMroutes(v, nil) })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	v4, v6 := MrouteKey{a("239.1.1.1"), a("192.0.2.7")}, MrouteKey{a("ff0e::1"), a("2001:db8::7")}
	v.wait(t, "dumped", func() bool {
		r := v.have[v4]
		return r.In == in && slices.Equal(r.Out, []MrouteHop{{out, 16}}) && !r.Unresolved
	})
	m.Add(a("2001:db8::7"), a("ff0e::1"), name, 0, other)
	v.wait(t, "announced", func() bool { return v.have[v6].In == in && len(v.have[v6].Out) == 1 })
	m.Add(a("192.0.2.7"), a("239.1.1.1"), other, 1, name)
	v.wait(t, "changed", func() bool { return v.have[v4].In == out && slices.Equal(v.have[v4].Out, []MrouteHop{{in, 1}}) })
	m.Del(a("2001:db8::7"), a("ff0e::1"))
	v.wait(t, "deleted", func() bool { return len(v.have) == 1 })
	m.Add(netip.IPv4Unspecified(), a("239.1.1.2"), name, 1, name, other)
	v.wait(t, "any source", func() bool { return len(v.have[MrouteKey{Group: a("239.1.1.2")}].Out) == 2 })
}

func TestMemberships(t *testing.T) {
	ns, _ := pair(t)
	g4, g6 := netip.MustParseAddr("239.7.8.9"), netip.MustParseAddr("ff0e::789")
	ns.Do(func() {
		a0, err := net.InterfaceByName("a0")
		if err != nil {
			t.Fatal(err)
		}
		for network, g := range map[string]netip.Addr{"udp4": g4, "udp6": g6} {
			c, err := net.ListenMulticastUDP(network, a0, &net.UDPAddr{IP: g.AsSlice(), Port: 9})
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
		}
		m, err := Memberships()
		if l := m[a0.Index]; err != nil || len(l) != 2 || !slices.Contains(l, g4) || !slices.Contains(l, g6) {
			t.Errorf("joined %v, %v", m, err)
		}
	})
}

func FuzzParseMroute(f *testing.F) {
	f.Add([]byte{128, 32, 32, 0, 253, 17, 0, 5, 0, 0, 0, 0, 8, 0, 2, 0, 192, 0, 2, 7, 8, 0, 1, 0, 239, 1, 1, 1,
		8, 0, 3, 0, 2, 0, 0, 0, 12, 0, 9, 0, 8, 0, 0, 16, 3, 0, 0, 0})
	if b, err := os.ReadFile("/proc/net/igmp"); err == nil {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, ok := parseMroute(b)
		if ok && (!r.Group.IsValid() || r.Source.IsValid() && r.Source.Is4() != r.Group.Is4()) {
			t.Errorf("%+v", r)
		}
		m := map[int][]netip.Addr{}
		parseIGMP(m, b)
		parseIGMP6(m, b)
	})
}
