package lpm

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"
	"time"

	"millrace/internal/epoch"
	"millrace/internal/mem"
)

// trace4 is destinations that lookups are measured with.
type trace4 struct {
	name string
	dst  []uint32
}

// traces4 are addresses under random prefixes, the same for flows of a Zipf distribution, any addresses, and one.
func traces4(b *testing.B, rs []route4) []trace4 {
	const n = 1 << 20
	rnd := rand.New(rand.NewPCG(1, 2))
	flows := under(rs, 1<<18, rnd)
	z := rand.NewZipf(rnd, 1.1, 1, uint64(len(flows)-1))
	ts := []trace4{{"prefixes", nil}, {"zipf", nil}, {"uniform", nil}, {"one", nil}}
	for i := range ts {
		d, err := mem.Of[uint32](n)
		if err != nil {
			b.Fatal(err)
		}
		ts[i].dst = d
		b.Cleanup(func() { mem.Free(d) })
	}
	copy(ts[0].dst, under(rs, n, rnd))
	for i := range n {
		ts[1].dst[i], ts[2].dst[i], ts[3].dst[i] = flows[z.Uint64()], rnd.Uint32(), flows[0]
	}
	return ts
}

// full4 is a table of a form with all routes.
func full4(b *testing.B, form int, rs []route4) V4 {
	x, err := forms[form].make(epoch.NewDomain())
	if err != nil {
		b.Fatal(err)
	}
	for _, r := range rs {
		if err := x.Insert(r.addr, r.bits, r.value); err != nil {
			b.Fatal(err)
		}
	}
	x.Commit()
	return x
}

// BenchmarkFind4 looks up batches of 256 in the Internet's table, by the assembly where the machine can, and without. In the polluted ones, four lines of each of 256 packets of a
// ring of 64 MiB go through the caches between two batches; that is not timed.
func BenchmarkFind4(b *testing.B) {
	rs := internet(b)
	ts := traces4(b, rs)
	ring, err := mem.Of[uint64](64 << 17) // in large pages, as packets are
	if err != nil {
		b.Fatal(err)
	}
	defer mem.Free(ring)
	out := make([]uint16, 256)
	for i, form := range forms {
		x := full4(b, i, rs)
		defer x.Close()
		for _, variant := range []string{"", "/polluted", "/go"} {
			polluted := variant == "/polluted"
			for _, tr := range ts {
				name := form.name + "/" + tr.name + variant
				b.Run(name, func(b *testing.B) {
					runtime.LockOSThread()
					defer runtime.UnlockOSThread()
					if variant == "/go" && gather4 {
						defer noGather()()
					}
					at := 0
					var spent []time.Duration
					var rates []float64 // of whole passes over the trace
					for b.Loop() {
						step := 1 << 13 // as many as go unnoticed by the clock
						if polluted {
							step = 256
						}
						spent = spent[:0]
						for n := 0; n < len(tr.dst); n += step {
							for k := 0; polluted && k < 256; k++ {
								for l := range 4 {
									ring[at+8*l]++
								}
								at = (at + 256) & (len(ring) - 1)
							}
							t := time.Now()
							for k := n; k < n+step; k += 256 {
								x.Find(&tr.dst[k], &out[0], 256)
							}
							spent = append(spent, time.Since(t))
						}
						// Steps in which the thread did not run are left out.
						slices.Sort(spent)
						sum, n := time.Duration(0), 0
						for n < len(spent) && spent[n] <= 4*spent[len(spent)/2] {
							sum += spent[n]
							n++
						}
						rates = append(rates, float64(n*step)/sum.Seconds()/1e6)
					}
					slices.Sort(rates)
					b.ReportMetric(rates[len(rates)-1], "best-Mlookups/s")
					b.ReportMetric(rates[len(rates)/2], "median-Mlookups/s")
					b.ReportMetric(0, "ns/op")
				})
			}
		}
	}
}

// BenchmarkVector4 is the lookup of vectors of few packets to one destination.
func BenchmarkVector4(b *testing.B) {
	for _, form := range forms {
		x, err := form.make(epoch.NewDomain())
		if err != nil {
			b.Fatal(err)
		}
		defer x.Close()
		x.Insert(10<<24, 8, 7)
		dst, out := make([]uint32, 256), make([]uint16, 256)
		for i := range dst {
			dst[i] = 10<<24 | 9
		}
		for _, n := range []int{1, 2, 4, 8, 15, 16, 17, 32, 256} {
			b.Run(fmt.Sprint(form.name, "/", n), func(b *testing.B) {
				for b.Loop() {
					x.Find(&dst[0], &out[0], n)
				}
			})
		}
	}
}

// BenchmarkDay4 applies the updates of a day to the Internet's table, in batches of 64.
func BenchmarkDay4(b *testing.B) {
	rs := internet(b)
	type op struct {
		route4
		parent     uint16
		parentBits int
		kind       uint8
	}
	s := slow4{}
	for _, r := range rs {
		s[r.key4] = r.value
	}
	var ops []op
	for _, u := range day(b) { // as the FIB would call it
		o := op{route4: u}
		_, had := s[u.key4]
		switch {
		case u.value == 0 && had:
			delete(s, u.key4)
			o.kind = 2
			o.parent, o.parentBits = s.best(u.addr, u.bits-1)
		case u.value == 0:
			continue
		case had:
			o.kind, s[u.key4] = 1, u.value
		default:
			s[u.key4] = u.value
		}
		ops = append(ops, o)
	}
	for i, form := range forms {
		b.Run(form.name, func(b *testing.B) {
			var spent time.Duration
			for b.Loop() {
				x := full4(b, i, rs)
				t := time.Now()
				for i := range ops {
					switch o := &ops[i]; o.kind {
					case 0:
						if err := x.Insert(o.addr, o.bits, o.value); err != nil {
							b.Fatal(err)
						}
					case 1:
						x.Replace(o.addr, o.bits, o.value)
					default:
						x.Remove(o.addr, o.bits, o.parent, o.parentBits)
					}
					if i&63 == 63 {
						x.Commit()
					}
				}
				spent += time.Since(t)
				hot, shadow := x.Bytes()
				b.ReportMetric(float64(hot)/(1<<20), "MiB")
				b.ReportMetric(float64(shadow)/(1<<20), "shadow-MiB")
				x.Close()
			}
			b.ReportMetric(float64(b.N*len(ops))/spent.Seconds()/1e6, "Mupdates/s")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// BenchmarkFull4 builds the Internet's table.
func BenchmarkFull4(b *testing.B) {
	rs := internet(b)
	for i, form := range forms {
		b.Run(form.name, func(b *testing.B) {
			for b.Loop() {
				full4(b, i, rs).Close()
			}
		})
	}
}
