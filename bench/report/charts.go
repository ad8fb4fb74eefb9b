package report

import (
	"fmt"
	"math"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"

	"github.com/HdrHistogram/hdrhistogram-go"

	"millrace/bench/plot"
	"millrace/bench/result"
	"millrace/bench/search"
	"millrace/bench/trial"
)

// Charts are the pictures that a run has the figures for, in the order of a reader's questions.
func (r *Run) Charts() (l []*plot.Chart) {
	for _, part := range []func() []*plot.Chart{r.sweeps, r.loss, r.latency, r.stages, r.spread} {
		l = append(l, part()...)
	}
	names := map[string]int{}
	for _, c := range l {
		c.Name = strings.Trim(odd.ReplaceAllString(c.Name, "-"), "-")
		if names[c.Name]++; names[c.Name] > 1 {
			c.Name += "-" + strconv.Itoa(names[c.Name])
		}
	}
	return l
}

var odd = regexp.MustCompile(`[^A-Za-z0-9]+`)

// roles gives each series of a bed or peer one colour throughout.
type roles struct{ names []string }

func (r *roles) of(name string) int {
	i := slices.Index(r.names, name)
	if i < 0 {
		i = len(r.names)
		r.names = append(r.names, name)
	}
	return i % 7 // the eighth is for ceilings
}

const ceilingRole = 7

// size is a part of a result's name that is a number of something: "64B", "1k", "vector-16", "cores-4".
var size = regexp.MustCompile(`^(?:([a-z]+)-)?([0-9]+)(B|k|M)?$`)

func sized(part string) (what string, n float64, ok bool) {
	m := size.FindStringSubmatch(part)
	if m == nil {
		return "", 0, false
	}
	n, _ = strconv.ParseFloat(m[2], 64) // digits
	switch m[3] {
	case "B":
		return "frame size, bytes", n, m[1] == ""
	case "k":
		n *= 1e3
	case "M":
		n *= 1e6
	}
	if m[1] == "" {
		return "entries", n, true
	}
	return m[1], n, true
}

// sweeps are results whose names differ in one number: rates over frame sizes with their ceilings, over cores, over the
// sizes of tables.
func (r *Run) sweeps() (l []*plot.Chart) {
	type key struct{ before, after, what, metric, unit string }
	type at struct{ x, y float64 }
	points := map[key]map[string][]at{}
	var keys []key
	for i := range r.Results {
		x := &r.Results[i]
		parts := strings.Split(x.Own(), "/")
		for p, s := range parts {
			what, n, ok := sized(s)
			if !ok {
				continue
			}
			k := key{strings.Join(parts[:p], "/"), strings.Join(parts[p+1:], "/"), what, x.Metric, x.Unit}
			if points[k] == nil {
				points[k] = map[string][]at{}
				keys = append(keys, k)
			}
			points[k][x.Peer()] = append(points[k][x.Peer()], at{n, x.Median})
		}
	}
	var colours roles
	colours.of("millrace")
	for _, k := range keys {
		by := points[k]
		most, lo, hi := 0, math.Inf(1), 0.0
		var peers []string
		for p, v := range by {
			peers = append(peers, p)
			most = max(most, len(v))
			for _, q := range v {
				lo, hi = min(lo, q.x), max(hi, q.x)
			}
		}
		if most < 2 || lo == hi {
			continue
		}
		slices.Sort(peers)
		c := &plot.Chart{Name: "sweep " + k.before + k.after + " " + k.what + " " + k.metric, Title: strings.Trim(k.before+"/…/"+k.after, "/…"),
			Note: strings.ReplaceAll(k.metric, "_", " ") + " over " + k.what, X: plot.Axis{Label: k.what, Log: lo > 0 && hi/lo >= 8}, Y: plot.Axis{Label: k.unit, Zero: true}}
		if k.unit == "frames/s" && strings.HasPrefix(k.what, "frame") {
			c.Name, c.Title = "rate "+k.before, k.before+": rate over frame size"
			r.ceilings(c, lo, hi)
		}
		for _, p := range peers {
			v := by[p]
			sort.Slice(v, func(i, j int) bool { return v[i].x < v[j].x })
			s := plot.Series{Name: named(p), Kind: plot.Line, Role: colours.of(named(p))}
			for _, q := range v {
				s.X, s.Y = append(s.X, q.x), append(s.Y, q.y)
			}
			c.Series = append(c.Series, s)
			if k.what == "frame size, bytes" && c.X.Ticks == nil {
				for _, q := range v {
					c.X.Ticks = append(c.X.Ticks, plot.Tick{At: q.x, Text: strconv.Itoa(int(q.x))})
				}
			}
		}
		l = append(l, c)
	}
	return l
}

func named(peer string) string {
	if peer == "" {
		return "millrace"
	}
	return peer
}

// ceilings adds the ports' line rate and what the generator can do by itself.
func (r *Run) ceilings(c *plot.Chart, lo, hi float64) {
	line, gen := map[float64]float64{}, map[float64]float64{}
	take := func(x *search.Ceiling) {
		if x == nil || x.Size == 0 {
			return
		}
		s := float64(x.Size)
		if x.Line > 0 {
			line[s] = x.Line
		}
		gen[s] = max(gen[s], x.Rate.FPS)
	}
	for _, s := range r.Searches {
		for i := range s.MLR {
			take(s.MLR[i].Ceiling)
		}
		for i := range s.RFC2544 {
			take(s.RFC2544[i].Ceiling)
		}
		if s.SelfTest != nil {
			for i := range s.SelfTest.Ceilings {
				take(&s.SelfTest.Ceilings[i])
			}
		}
	}
	add := func(name string, m map[float64]float64) {
		s := plot.Series{Name: name, Kind: plot.Ceiling, Role: ceilingRole}
		for x := range m {
			s.X = append(s.X, x)
		}
		slices.Sort(s.X)
		for _, x := range s.X {
			s.Y = append(s.Y, m[x])
		}
		if len(s.X) > 1 {
			c.Series = append(c.Series, s)
		}
	}
	add("generator alone", gen)
	if len(line) == 0 {
		return
	}
	// Between the sizes the line rate is a curve: bits of the wire over a frame's.
	s := plot.Series{Name: "line rate", Kind: plot.Ceiling, Role: 5}
	bits := 0.0
	for x, v := range line {
		bits = max(bits, v*(x+trial.Overhead))
	}
	for i := range 33 {
		x := lo * math.Pow(hi/lo, float64(i)/32)
		s.X, s.Y = append(s.X, x), append(s.Y, bits/(x+trial.Overhead))
	}
	c.Series = append(c.Series, s)
}

// loss is what trials lost over what was offered, a chart for each frame size. Trials without loss stand on the lowest line.
func (r *Run) loss() (l []*plot.Chart) {
	sizes := map[int][]*Trial{}
	var order []int
	for i := range r.Made {
		t := &r.Made[i]
		if o := t.Outcome; o.Invalid == "" && o.Rate > 0 && o.Frames == 0 {
			if sizes[o.Size] == nil {
				order = append(order, o.Size)
			}
			sizes[o.Size] = append(sizes[o.Size], t)
		}
	}
	slices.Sort(order)
	var colours roles
	for _, n := range order {
		least := 1.0
		for _, t := range sizes[n] {
			if v := t.Outcome.LossRatio(); v > 0 {
				least = min(least, v)
			}
		}
		floor := math.Floor(math.Log10(least)) - 1
		c := &plot.Chart{Name: fmt.Sprintf("loss %d", n), Title: "Loss over load, " + sizeText(n), Note: "each dot is a trial; invalid ones are not here",
			X: plot.Axis{Label: "offered, frames/s"}, Y: plot.Axis{Label: "loss ratio", Log: true, Ticks: []plot.Tick{{At: math.Pow(10, floor), Text: "0"}}}}
		for e := floor + 1; e <= 0; e++ {
			c.Y.Ticks = append(c.Y.Ticks, plot.Tick{At: math.Pow(10, e), Text: strconv.FormatFloat(100*math.Pow(10, e), 'f', max(0, -int(e)-2), 64) + " %"})
		}
		by := map[string]*plot.Series{}
		var beds []string
		for _, t := range sizes[n] {
			s := by[t.Bed]
			if s == nil {
				s = &plot.Series{Name: t.Bed, Kind: plot.Dots, Role: colours.of(t.Bed)}
				by[t.Bed] = s
				beds = append(beds, t.Bed)
			}
			s.X, s.Y = append(s.X, t.Outcome.Rate), append(s.Y, max(t.Outcome.LossRatio(), math.Pow(10, floor)))
		}
		for _, b := range beds {
			c.Series = append(c.Series, *by[b])
		}
		l = append(l, c)
	}
	return l
}

// ndr is the rate without loss that was found for a bed and size, 0 where none was.
func (r *Run) ndr(bed string, size int) (v float64) {
	for _, s := range r.Searches {
		if s.Bed != bed {
			continue
		}
		for i := range s.MLR {
			if g := s.MLR[i].Goal("NDR"); s.MLR[i].Size == size && g != nil && g.Lower != nil {
				v = g.Lower.FPS
			}
		}
		for i := range s.RFC2544 {
			if t := s.RFC2544[i].Throughput; v == 0 && s.RFC2544[i].Size == size && t != nil && t.Rate != nil {
				v = t.Rate.FPS
			}
		}
	}
	return v
}

// latency is the distribution by percentile, on a logarithmic axis of what is above it: a chart for each frame size
// with the loads next to 10, 50 and 90 % of the NDR.
func (r *Run) latency() (l []*plot.Chart) {
	type key struct {
		bed  string
		size int
		part int // percent of the NDR; 0 where that is unknown
	}
	hists := map[key]*hdrhistogram.Histogram{}
	var keys []key
	for i := range r.Made {
		t := &r.Made[i]
		h := t.Outcome.Latency
		if h == nil || h.TotalCount() == 0 || t.Outcome.Invalid != "" {
			continue
		}
		k := key{bed: t.Bed, size: t.Outcome.Size}
		if n := r.ndr(k.bed, k.size); n > 0 {
			part := 100 * t.Outcome.Rate / n
			for _, p := range []int{10, 50, 90} {
				if math.Abs(part-float64(p)) <= 2 {
					k.part = p
				}
			}
			if k.part == 0 {
				continue
			}
		}
		if hists[k] == nil {
			hists[k] = hdrhistogram.New(h.LowestTrackableValue(), h.HighestTrackableValue(), int(h.SignificantFigures()))
			keys = append(keys, k)
		}
		hists[k].Merge(h)
	}
	sort.Slice(keys, func(i, j int) bool {
		a, b := keys[i], keys[j]
		if a.size != b.size {
			return a.size < b.size
		}
		if a.bed != b.bed {
			return a.bed < b.bed
		}
		return a.part < b.part
	})
	charts := map[int]*plot.Chart{}
	for _, k := range keys {
		c := charts[k.size]
		if c == nil {
			c = &plot.Chart{Name: fmt.Sprintf("latency %d", k.size), Title: "Latency one way, " + sizeText(k.size), Note: "all frames of the trials at each load, relative to the NDR of the bed",
				X: plot.Axis{Label: "percentile"}, Y: plot.Axis{Label: "microseconds", Log: true}}
			for i, s := range []string{"0", "90 %", "99 %", "99.9 %", "99.99 %", "99.999 %"} {
				c.X.Ticks = append(c.X.Ticks, plot.Tick{At: float64(i), Text: s})
			}
			charts[k.size] = c
			l = append(l, c)
		}
		name := k.bed
		if k.part > 0 {
			name = fmt.Sprintf("%s, %d %%", k.bed, k.part)
		}
		s := plot.Series{Name: name, Kind: plot.Curve, Role: len(c.Series) % 7}
		h := hists[k]
		for x := 0.0; x <= 5; x += 0.05 {
			above := math.Pow(10, -x)
			if above*float64(h.TotalCount()) < 1 {
				break // no frame is that rare
			}
			s.X, s.Y = append(s.X, x), append(s.Y, float64(max(h.ValueAtPercentile(100*(1-above)), 1))/1e3)
		}
		c.Series = append(c.Series, s)
	}
	return l
}

// stages are clocks of each stage, stacked: results parent/stage beside one named parent.
func (r *Run) stages() []*plot.Chart {
	c := &plot.Chart{Name: "stages", Title: "Clocks per packet, by stage", Note: "medians; single stages contain the reading of the clock", X: plot.Axis{Label: "clocks", Zero: true}}
	row := map[string]int{}
	sum := map[string]float64{}
	stage := map[string]int{}
	for i := range r.Results {
		x := &r.Results[i]
		cut := strings.LastIndex(x.Name, "/")
		if x.Metric != "clocks_per_packet" || cut < 0 || x.Peer() != "" || r.Find(x.Name[:cut], x.Metric) == nil {
			continue
		}
		parent, name := x.Name[:cut], x.Name[cut+1:]
		if _, ok := row[parent]; !ok {
			row[parent] = len(c.Rows)
			c.Rows = append(c.Rows, parent)
		}
		k, ok := stage[name]
		if !ok {
			k = len(c.Series)
			stage[name] = k
			c.Series = append(c.Series, plot.Series{Name: name, Kind: plot.Stack, Role: k})
		}
		sum[parent] += x.Median
		c.Series[k].X, c.Series[k].Y = append(c.Series[k].X, sum[parent]), append(c.Series[k].Y, float64(row[parent]))
	}
	if len(c.Rows) == 0 {
		return nil
	}
	return []*plot.Chart{c}
}

// mostBoxes is how many rows a chart of boxes has at most.
const mostBoxes = 40

// spread are the single runs of each result around its median.
func (r *Run) spread() []*plot.Chart {
	c := &plot.Chart{Name: "runs", Title: "Repeated runs", Note: "each around its median: quartiles, whiskers to 1.5 of their distance, every run", X: plot.Axis{Label: "% of the median"}}
	s := plot.Series{Kind: plot.Box}
	seen := map[string]bool{}
	for i := range r.Results {
		x := &r.Results[i]
		if len(x.Values) < 3 || x.Median <= 0 || seen[x.Name] || len(c.Rows) == mostBoxes {
			continue // other metrics of a case are mostly the same in other units
		}
		seen[x.Name] = true
		b := plot.Values{Row: len(c.Rows)}
		for _, v := range x.Values {
			b.Values = append(b.Values, 100*(v/x.Median-1))
		}
		c.Rows = append(c.Rows, x.Name)
		s.Boxes = append(s.Boxes, b)
	}
	if len(c.Rows) == 0 {
		return nil
	}
	c.Series = []plot.Series{s}
	return []*plot.Chart{c}
}

// table is results of one metric with peers side by side.
type table struct {
	Metric, Unit string
	Peers        []string
	Rows         []tableRow
}

type tableRow struct {
	Name, Best, Median, Runs string
	Peers                    []cell // as table.Peers
}

type cell struct{ Median, Ratio string }

func (r *Run) tables() (l []*table) {
	by := map[string]*table{}
	for i := range r.Results {
		x := &r.Results[i]
		t := by[x.Metric]
		if t == nil {
			t = &table{Metric: strings.ReplaceAll(x.Metric, "_", " "), Unit: x.Unit}
			by[x.Metric] = t
			l = append(l, t)
		}
		if p := x.Peer(); p != "" && !slices.Contains(t.Peers, p) {
			t.Peers = append(t.Peers, p)
		}
	}
	done := map[string]bool{}
	for i := range r.Results {
		x := &r.Results[i]
		t := by[x.Metric]
		if done[x.Metric+" "+x.Own()] {
			continue
		}
		done[x.Metric+" "+x.Own()] = true
		row := tableRow{Name: x.Own()}
		if own := r.Find(x.Own(), x.Metric); own != nil {
			row.Best, row.Median, row.Runs = result.Number(own.Best), result.Number(own.Median), strconv.Itoa(own.Runs)
		}
		for _, p := range t.Peers {
			var c cell
			if y := r.Find(x.Own()+"@"+p, x.Metric); y != nil {
				c.Median = result.Number(y.Median)
				if v := r.Ratio(y); v != 0 {
					c.Ratio = fmt.Sprintf("%.2f×", v)
				}
			}
			row.Peers = append(row.Peers, c)
		}
		t.Rows = append(t.Rows, row)
	}
	return l
}
