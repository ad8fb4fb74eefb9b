package pipeline

import (
	"millrace/internal/clock"
	"millrace/pipeline/graph"
)

// runWatched is run's loop with hooks and clocks.
func (w *Worker) runWatched(v *graph.Vector, from int) {
	for s := from; s < len(w.steps); s++ {
		st := &w.steps[s]
		k := st.packets(v)
		if k == 0 {
			continue
		}
		st.c.Calls++
		st.c.Packets += uint64(k)
		t := clock.Ticks()
		st.run.Run(v)
		if w.measure {
			st.c.Clocks += clock.Ticks() - t
			st.c.Measured += uint64(k)
		}
		for _, h := range w.hooks {
			h.After(&w.Worker, v, st.st)
		}
	}
	if v.NX == 0 {
		w.end(v)
	}
}

func (w *Worker) begin(v *graph.Vector, from string) {
	for _, h := range w.hooks {
		h.Begin(&w.Worker, v, from)
	}
}

func (w *Worker) end(v *graph.Vector) {
	for _, h := range w.hooks {
		h.End(&w.Worker, v)
	}
}

// Watch adds a hook to all workers until the returned function is called, on return of
// which the hook is not in use any more.
func (p *Pipeline) Watch(h graph.Hook) (stop func()) {
	for _, w := range p.workers {
		w.Do(func() {
			w.hooks = append(w.hooks, h)
			w.watched = true
		})
	}
	return func() {
		for _, w := range p.workers {
			w.Do(func() {
				for i, x := range w.hooks {
					if x == h {
						w.hooks = append(w.hooks[:i], w.hooks[i+1:]...)
						break
					}
				}
				w.watched = len(w.hooks) != 0 || w.measure
			})
		}
	}
}

// Measure switches the clocks of each stage on or off: about 40 clocks a vector and stage.
func (p *Pipeline) Measure(on bool) {
	for _, w := range p.workers {
		w.Do(func() {
			w.measure = on
			w.watched = len(w.hooks) != 0 || w.measure
		})
	}
}
