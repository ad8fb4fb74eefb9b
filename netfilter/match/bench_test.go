package match_test

import (
	"math/rand/v2"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"millrace/netfilter/classbench"
	"millrace/netfilter/match"
)

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var t unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) // cannot fail for one's own thread
	return time.Duration(t.Nano())
}

// BenchmarkFirst is by the CPU time of the thread, the best of b.N passes over 65,536 packets.
func BenchmarkFirst(b *testing.B) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for _, s := range sets(100000) {
		schema := classbench.Schema(s.rules)
		keys := classbench.Keys(schema, classbench.Packets(s.rules, 65536, 5, rand.New(rand.NewPCG(1, 2))))
		for _, e := range engines {
			b.Run(s.name+"/"+string(e), func(b *testing.B) {
				begin := threadTime()
				t, err := match.Build(schema, classbench.Rules(s.rules), match.Options{Engine: e})
				if err != nil {
					b.Skip(err)
				}
				build := threadTime() - begin
				defer t.Close()
				var out match.Column
				sc := new(match.Scratch)
				best := time.Hour
				for range b.N {
					begin := threadTime()
					for _, k := range keys {
						t.First(k, everybody, &out, sc)
					}
					best = min(best, threadTime()-begin)
				}
				b.ReportMetric(float64(best.Nanoseconds())/float64(len(keys)*match.BatchSize), "ns/packet")
				b.ReportMetric(float64(build.Nanoseconds())/1e6, "build-ms")
				b.ReportMetric(0, "ns/op")
			})
		}
	}
}
