package afxdp

import (
	"runtime"
	"testing"

	"millrace/internal/testnet"
	"millrace/packet"
	"millrace/pmd"
)

// BenchmarkVeth sends 64-byte packets through a virtual pair, on one thread: Tx, the kernel's copies, Rx.
func BenchmarkVeth(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	pool := newPool(b, 16384)
	na, nb := testnet.New(b), testnet.New(b)
	testnet.Veth(b, na, "a0", nb, "b0")
	c := pool.NewCache()
	var qs [2]pmd.Queue
	var ports [2]*Port
	for i, ns := range []*testnet.NS{na, nb} {
		ports[i] = openIn(b, ns, pmd.Config{Name: []string{"a0", "b0"}[i], Pool: pool, Mode: "native"})
		qs[i] = ports[i].Queue(0)
		if err := qs[i].Start(c); err != nil {
			b.Fatal(err)
		}
		defer qs[i].Stop()
	}
	src, dst := ports[0].Link().MAC, ports[1].Link().MAC
	f := append(eth(dst[:], src[:], 0x0800), ip4("198.51.100.9", 17, udp(7, 9, make([]byte, 22)))...)
	var pk [64]uint32
	got := 0
	b.ResetTimer()
	for got < b.N {
		n := c.Alloc(pk[:])
		for _, i := range pk[:n] {
			m := packet.At(i)
			m.DataLen, m.PktLen = uint16(len(f)), uint32(len(f))
			copy(m.Bytes(), f)
		}
		k := qs[0].Tx(pk[:n])
		c.Free(pk[k:n])
		for {
			n := qs[1].Rx(pk[:])
			c.Free(pk[:n])
			got += n
			if n < len(pk) {
				break
			}
		}
		qs[0].Rx(pk[:0])
	}
	b.StopTimer()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds()/1e6, "Mpps")
}
