//go:build dpdk

package bench

import (
	"millrace/bench/bgp"
	"millrace/bench/dpdkfib"
)

func init() {
	peers4 = append(peers4,
		contender[uint32]{peer: "rte_fib", make: updatable[uint32](dpdkfib.FIB)},
		contender[uint32]{peer: "rte_lpm", make: fixed[uint32](dpdkfib.LPMx4), filled: true},
		contender[uint32]{peer: "rte_lpm_bulk", make: fixed[uint32](dpdkfib.LPMBulk), filled: true})
	peers6 = append(peers6,
		contender[[16]byte]{peer: "rte_fib", make: updatable[[16]byte](dpdkfib.FIB6)},
		contender[[16]byte]{peer: "rte_lpm", make: fixed[[16]byte](dpdkfib.LPM6)})
}

// dpdkFixed is a table of DPDK's that is loaded once.
type dpdkFixed[A bgp.Addr] struct{ t *dpdkfib.Table[A] }

func fixed[A bgp.Addr](k dpdkfib.Kind) func(int) (fibTable[A], error) {
	return func(n int) (fibTable[A], error) {
		t, err := dpdkfib.New[A](k, n)
		return dpdkFixed[A]{t}, err
	}
}

func (d dpdkFixed[A]) Load(rs []bgp.Route[A]) error { return d.t.Load(rs) }
func (d dpdkFixed[A]) Find(dst []A, out []uint16)   { d.t.Find(dst, out) }
func (d dpdkFixed[A]) Pass(dst []A)                 { d.t.Pass(dst) }
func (d dpdkFixed[A]) Bytes() (hot, shadow int)     { return d.t.Bytes() }
func (d dpdkFixed[A]) Close()                       { d.t.Close() }

func (d dpdkFixed[A]) Polluted(dst []A, r *fibRing, ticks []uint64) {
	d.t.PassPolluted(dst, r.words, &r.at, ticks)
}

// dpdkTable is one that can be changed.
type dpdkTable[A bgp.Addr] struct{ dpdkFixed[A] }

func updatable[A bgp.Addr](k dpdkfib.Kind) func(int) (fibTable[A], error) {
	return func(n int) (fibTable[A], error) {
		t, err := dpdkfib.New[A](k, n)
		return dpdkTable[A]{dpdkFixed[A]{t}}, err
	}
}

func (d dpdkTable[A]) Update(rs []bgp.Route[A]) error { return d.t.Update(rs) }
func (d dpdkTable[A]) Poll(dst []A, stop *uint32) int { return d.t.Poll(dst, stop) }
