package traffic_test

import (
	"testing"

	"millrace/bench/gen"
	"millrace/bench/traffic"
	"millrace/packet"
	"millrace/pmd/mem"
)

// TestEngineTakes: the generator takes the streams of every ready profile.
func TestEngineTakes(t *testing.T) {
	pool, err := packet.NewPool(t.Name(), 4096)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	for _, name := range traffic.Names() {
		p, err := traffic.Open(name, traffic.Env{})
		if err != nil {
			t.Fatal(err)
		}
		a, b := mem.Pair("left", "right", mem.Options{Ring: 64})
		g, err := gen.New(gen.Options{Left: a, Right: b, Streams: p.Streams, Pool: pool})
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else {
			g.Close()
		}
		a.Close()
		b.Close()
	}
}
