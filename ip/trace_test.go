package ip

import (
	"testing"

	"millrace/ip/internal/rig"
	"millrace/pipeline/graph"
)

func TestTrace(t *testing.T) {
	r := rig.New(t, 128)
	cases := []struct {
		st   *graph.Stage
		p    []byte
		want string
	}{
		{Check4(), rig.UDP4("203.0.113.5", "198.51.100.9", nil, 8), "203.0.113.5 -> 198.51.100.9 proto 17 ttl 64 len 28"},
		{Check6(), rig.IP6("2001:db8::5", "2001:db8::9", 58, nil), "2001:db8::5 -> 2001:db8::9 next 58 hop limit 64 len 40"},
		{Options4(), rig.UDP4("203.0.113.5", "198.51.100.9", []byte{148, 4, 0, 0}, 8), "4 bytes of options"},
		{Options4(), rig.UDP4("203.0.113.5", "198.51.100.9", nil, 8), ""},
	}
	for _, c := range cases {
		i := r.Add(c.p, 0)
		if got := c.st.Trace(&graph.Look{Worker: r.W, Vector: &r.V, Pos: i}); got != c.want {
			t.Errorf("%s: %q, want %q", c.st.Name, got, c.want)
		}
	}
	r.FreeAll()
}
