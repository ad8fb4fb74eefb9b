package overhead

import (
	"runtime"
	"testing"
)

func TestLoop(t *testing.T) {
	l, err := newLoop(t.Context(), runtime.NumCPU()-1)
	if err != nil {
		t.Fatal(err)
	}
	defer l.close()
	for _, v6 := range []bool{false, true} {
		for _, over := range []string{"", "ports: [{name: r1, rp_filter: strict}]", "routes: [{to: 198.19.0.0/16, via: [192.0.2.2, 192.0.2.3]}, {to: '2001:2:0:8000::/49', via: ['2001:db8:1::2', '2001:db8:1::3']}]"} {
			if err := l.use(t.Context(), over); err != nil {
				t.Fatal(err)
			}
			for range 4 {
				c, err := l.run(t.Context(), traffic(v6, 64, 4096))
				t.Log(v6, over, c, err)
			}
		}
	}
}
