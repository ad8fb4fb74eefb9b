package report

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"strings"
	"time"

	"millrace/bench/plot"
)

//go:embed page.html
var pageText string

var page = template.Must(template.New("page").Parse(pageText))

// writePage writes the page: one file with its pictures and data, which asks nothing of a network. Trials are
// data, of which a script shows a hundred at a time, so that ten thousand open at once.
func (r *Run) writePage(w io.Writer, charts []*plot.Chart) error {
	var rows [][]any
	for i := range r.Made {
		t := &r.Made[i]
		o := t.Outcome
		p50, p99 := int64(-1), int64(-1)
		if o.Latency != nil {
			p50, p99 = o.Latency.ValueAtPercentile(50), o.Latency.ValueAtPercentile(99)
		}
		rows = append(rows, []any{t.N, t.Bed, strings.TrimSpace(t.Search + " " + t.Phase), o.Size, round(o.Rate), o.Elapsed.Seconds(), o.Sent, o.Lost, p50, p99, o.Invalid})
	}
	data, err := json.Marshal(rows) // escapes <, > and &: it cannot end the script element
	if err != nil {
		return err
	}
	type picture struct {
		Name string
		SVG  template.HTML
	}
	var pics []picture
	for _, c := range charts {
		pics = append(pics, picture{c.Name, template.HTML(c.SVG())}) // texts are escaped in package plot
	}
	return page.Execute(w, map[string]any{
		"Run": r, "Charts": pics, "Tables": r.tables(), "Facts": r.Machine.Facts(), "Warnings": r.Warned(),
		"Started": r.Started.UTC().Format("2 January 2006, 15:04 UTC"), "Took": r.Ended.Sub(r.Started).Round(time.Second),
		"Light": template.CSS(plot.Colours(false)), "Dark": template.CSS(plot.Colours(true)), "Style": template.CSS(plot.Style()),
		"Data": template.JS(data),
	})
}

func round(v float64) float64 { return float64(int64(v*1000)) / 1000 }

// WriteMarkdown writes warnings, tables and facts as Markdown.
func (r *Run) WriteMarkdown(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n\n", r.Bench)
	for _, s := range r.Warned() {
		fmt.Fprintf(&b, "> **Warning:** %s\n", md(s))
	}
	for _, t := range r.tables() {
		fmt.Fprintf(&b, "\n## %s\n\n| case | best | median | runs |", md(t.Metric))
		for _, p := range t.Peers {
			fmt.Fprintf(&b, " @%s | ratio |", md(p))
		}
		b.WriteString("\n|---|--:|--:|--:|" + strings.Repeat("--:|--:|", len(t.Peers)) + "\n")
		for _, x := range t.Rows {
			fmt.Fprintf(&b, "| %s | %s | %s | %s |", md(x.Name), x.Best, x.Median, x.Runs)
			for _, p := range x.Peers {
				fmt.Fprintf(&b, " %s | %s |", p.Median, p.Ratio)
			}
			b.WriteString("\n")
		}
	}
	b.WriteString("\n## Machine\n\n| | |\n|---|---|\n")
	for _, f := range r.Machine.Facts() {
		fmt.Fprintf(&b, "| %s | %s |\n", md(f[0]), md(f[1]))
	}
	for _, l := range [][]string{r.Data.Report.Data, r.Notes} {
		for _, s := range l {
			fmt.Fprintf(&b, "\n- %s", md(s))
		}
	}
	b.WriteString("\n")
	_, err := io.WriteString(w, b.String())
	return err
}

func md(s string) string {
	return strings.NewReplacer("|", `\|`, "<", "&lt;", "\n", " ").Replace(s)
}
