package traffic

import "testing"

// check fails the test when frames of a profile are not what gopacket would write.
func check(t testing.TB, p *Profile, n uint64) {
	t.Helper()
	for i := range p.Streams {
		s := &p.Streams[i]
		if s.FPS(10e9) <= 0 {
			t.Errorf("%s: no rate", s.Name)
		}
		for k := range n {
			b := s.Frame(k, s.Size(k))
			if len(b) != s.Size(k)-4 {
				t.Fatalf("%s: packet %d has %d bytes, want %d", s.Name, k, len(b), s.Size(k)-4)
			}
			if s.SumOff != 0 {
				sums(t, b)
			}
			if s.Stamp != 0 {
				for _, x := range b[s.Stamp:][:StampLen] {
					if x != 0 {
						t.Fatalf("%s: packet %d: the stamp's room is not empty", s.Name, k)
					}
				}
			}
		}
	}
}

func TestReady(t *testing.T) {
	for _, name := range Names() {
		p, err := Open(name, Env{})
		if err != nil {
			t.Errorf("%v", err)
			continue
		}
		check(t, p, 40)
	}
	if _, err := Open("imx", Env{}); err == nil || err.Error() != `traffic: profile "imx" is none of dns, fragments, http, imix, ipv6, mixed, new-flows, small, syn-flood, udp, zipf; did you mean "imix"?` {
		t.Error(err)
	}
}
