package bench

import (
	"context"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"millrace/bench/bgp"
	"millrace/bench/pin"
	"millrace/bench/result"
	"millrace/internal/mem"
)

// builds bounds how often whole tables are built, which takes long for some.
const builds = 5

// build measures how long a whole table takes: to the tables of lookups alone, and through the FIB, as a router's routes come.
func (f *fibFamily[A]) build() error {
	if !f.wants("build", "build/table") {
		return nil
	}
	routes := bgp.Routes[A](f.table, fibHops)
	cs := f.contenders()
	runs := make([][]float64, len(cs))
	var whole []float64
	for run := range min(f.o.Runs, builds) {
		for i := range cs {
			if cs[i].filled || !match(cs[i].name(f.name, "build/table"), f.o.Filter) {
				continue
			}
			t, err := cs[i].make(len(routes))
			if err != nil {
				return err
			}
			runtime.GC() // not on the time of who comes next
			begin := threadTime()
			err = t.Load(routes)
			took := threadTime() - begin
			t.Close()
			if err != nil {
				f.o.Note("%s: %v", cs[i].name(f.name, "build/table"), err)
				continue
			}
			runs[i] = append(runs[i], took.Seconds())
		}
		if match(f.name+"/build", f.o.Filter) {
			b, err := newFIBBed[A](f.name == "ipv4")
			if err != nil {
				return err
			}
			cs := b.changes(routes, routerBatch)
			runtime.GC()
			begin := time.Now()
			err = b.apply(cs)
			whole = append(whole, time.Since(begin).Seconds())
			b.Close()
			if err != nil {
				return err
			}
		}
		f.report(run, min(f.o.Runs, builds))
	}
	f.add(f.name+"/build", "build_seconds", "s", false, whole)
	for i := range cs {
		f.add(cs[i].name(f.name, "build/table"), "build_seconds", "s", false, runs[i])
	}
	return nil
}

func (f *fibFamily[A]) report(run, runs int) {
	if f.o.Report != nil {
		f.o.Report(run+1, runs)
	}
}

// part is the part of the day that a run replays: all runs together replay it once.
func part[T any](day []T, run, runs int) []T {
	return day[len(day)*run/runs : len(day)*(run+1)/runs]
}

// changes measures the changes of a day, while a thread on another CPU looks up in the table.
func (f *fibFamily[A]) changes() error {
	if !f.wants("updates") {
		return nil
	}
	routes := bgp.Routes[A](f.table, fibHops)
	day := bgp.Changes[A](f.updates, fibHops)
	es, leave, err := f.enter(f.contenders(), routes)
	if err != nil {
		return err
	}
	defer leave()
	dst, err := mem.Of[A](f.trace)
	if err != nil {
		return err
	}
	defer mem.Free(dst)
	bgp.Trace(dst, bgp.Prefixes(f.table, rand.New(rand.NewPCG(7, 8))))
	var jobs []*result.Job
	var done []func()
	var same []entrant[A]
	for _, e := range es {
		n := e.name(f.name, "updates")
		u, ok := e.t.(fibUpdater[A])
		if !ok || !match(n, f.o.Filter) {
			continue
		}
		if p, ok := e.t.(interface{ Prepare([]bgp.Route[A]) }); ok {
			p.Prepare(routes)
		}
		var cpus, lookups []float64
		j := &result.Job{Name: n}
		j.Measure = func() (float64, error) {
			p := part(day, len(j.Values), f.o.Runs)
			wall, cpu, reads, err := beside(func(stop *uint32) int { return u.Poll(dst, stop) }, func() error { return u.Update(p) })
			cpus, lookups = append(cpus, float64(len(p))/cpu), append(lookups, reads)
			return float64(len(p)) / wall, err
		}
		jobs = append(jobs, j)
		done = append(done, func() {
			f.add(n, "updates_per_second", "updates/s", true, j.Values)
			f.add(n, "updates_per_cpu_second", "updates/s", true, cpus)
			f.add(n, "lookups_beside_per_second", "lookups/s", true, lookups)
		})
		same = append(same, e)
	}
	if err := f.turns(f.o.Runs).Run(context.Background(), jobs); err != nil {
		return err
	}
	for _, d := range done {
		d()
	}
	return f.agree(same, dst)
}

// router measures the changes of a day through the FIB, as a router's sources give them, while a worker looks up by
// the stages of the road.
func (f *fibFamily[A]) router() error {
	name := f.name + "/fib-updates"
	if !match(name, f.o.Filter) {
		return nil
	}
	b, err := newFIBBed[A](f.name == "ipv4")
	if err != nil {
		return err
	}
	defer b.Close()
	if err := b.apply(b.changes(bgp.Routes[A](f.table, fibHops), routerBatch)); err != nil {
		return err
	}
	day := bgp.Changes[A](f.updates, fibHops)
	dst := make([]A, 1<<16)
	bgp.Trace(dst, bgp.Prefixes(f.table, rand.New(rand.NewPCG(7, 8))))
	read, err := b.newReader()
	if err != nil {
		return err
	}
	defer read.close()
	var rates, cpus []float64
	for run := range f.o.Runs {
		p := part(day, run, f.o.Runs)
		cs := b.changes(p, updateBatch)
		runtime.GC()
		wall, cpu, _, err := beside(func(stop *uint32) int { return read.poll(dst, stop) }, func() error { return b.apply(cs) })
		if err != nil {
			return err
		}
		rates = append(rates, float64(len(p))/wall)
		cpus = append(cpus, float64(len(p))/cpu)
		f.report(run, f.o.Runs)
	}
	f.add(name, "updates_per_second", "updates/s", true, rates)
	f.add(name, "updates_per_cpu_second", "updates/s", true, cpus)
	return nil
}

// beside runs write while read polls on another CPU, where there is one. It returns the seconds that write took by the
// clock and of its thread, and the lookups a second of the reader.
func beside(read func(stop *uint32) int, write func() error) (wall, cpu, reads float64, err error) {
	stop, err := mem.Of[uint32](1) // outside the heap: C looks at it
	if err != nil {
		return 0, 0, 0, err
	}
	defer mem.Free(stop)
	a, b, two := pin.Two()
	all := pin.CPUs()
	ready, done := make(chan bool), make(chan float64)
	go func() {
		// The thread ends with the goroutine: it is never unlocked.
		runtime.LockOSThread()
		if two == nil {
			_ = pin.Thread(b) // otherwise the kernel chooses
		}
		close(ready)
		t := time.Now()
		n := read(&stop[0])
		done <- float64(n) / time.Since(t).Seconds()
	}()
	<-ready
	if two == nil {
		_ = pin.Thread(a)
		defer pin.Self(all)
	}
	time.Sleep(time.Millisecond) // until it polls
	t, c := time.Now(), threadTime()
	err = write()
	wall, cpu = time.Since(t).Seconds(), (threadTime() - c).Seconds()
	atomic.StoreUint32(&stop[0], 1)
	return wall, cpu, <-done, err
}
