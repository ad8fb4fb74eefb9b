package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	tea "charm.land/bubbletea/v2"
	"github.com/spf13/cobra"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

func (a *app) top() *cobra.Command {
	var once, measure bool
	var every time.Duration
	c := &cobra.Command{
		Use: "top", Short: "Live view: rates, clocks per stage, drops, load", GroupID: groupSee, Args: args(cobra.NoArgs),
		Long: `Shows what goes through the router as it happens: packets and bits a second of each port,
the load of each worker, clocks per packet of each stage, and what is dropped and why.

Keys: q quits, m turns the measuring of clocks on and off, space pauses.`,
		RunE: func(c *cobra.Command, _ []string) error {
			if every < 100*time.Millisecond {
				return usage("--every %s: at least 100ms", every)
			}
			b := a.dial()
			if measure {
				if _, err := b.SetMeasure(c.Context(), &v1.SetMeasureRequest{On: true}); err != nil {
					return err
				}
				defer b.SetMeasure(context.WithoutCancel(c.Context()), &v1.SetMeasureRequest{}) //nolint:errcheck // the router may have stopped
			}
			if once || !isTerminal(c.OutOrStdout()) {
				return topOnce(c.Context(), b, every, c.OutOrStdout())
			}
			return topLive(c.Context(), b, every)
		},
	}
	f := c.Flags()
	f.BoolVar(&once, "once", false, "print one interval as plain text and end")
	f.BoolVar(&measure, "measure", false, "measure clocks per stage meanwhile")
	f.DurationVar(&every, "every", time.Second, "interval")
	return c
}

func topLive(ctx context.Context, b api.Backend, every time.Duration, o ...tea.ProgramOption) error {
	first, err := sample(ctx, b)
	if err != nil {
		return err
	}
	m := &topModel{ctx: ctx, b: b, every: every, now: first}
	if _, err := tea.NewProgram(m, append(o, tea.WithContext(ctx))...).Run(); err != nil {
		return err
	}
	return m.err
}

func topOnce(ctx context.Context, b api.Backend, every time.Duration, w io.Writer) error {
	before, err := sample(ctx, b)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(every):
	}
	after, err := sample(ctx, b)
	if err != nil {
		return err
	}
	_, err = io.WriteString(w, renderTop(before, after))
	return err
}

// snapshot is all counters at one moment.
type snapshot struct {
	at      time.Time
	status  *v1.Status
	ports   []*v1.Port
	stages  *v1.Stages
	drops   []*v1.Drop
	workers []*v1.Worker
}

func sample(ctx context.Context, b api.Backend) (*snapshot, error) {
	s := &snapshot{}
	var err error
	if s.status, err = b.GetStatus(ctx, &v1.GetStatusRequest{}); err != nil {
		return nil, err
	}
	ports, err := b.ListPorts(ctx, &v1.ListPortsRequest{})
	if err != nil {
		return nil, err
	}
	s.at = time.Now()
	if s.stages, err = b.ListStages(ctx, &v1.ListStagesRequest{}); err != nil {
		return nil, err
	}
	drops, err := b.ListDrops(ctx, &v1.ListDropsRequest{})
	if err != nil {
		return nil, err
	}
	workers, err := b.ListWorkers(ctx, &v1.ListWorkersRequest{})
	if err != nil {
		return nil, err
	}
	s.ports, s.drops, s.workers = ports.Ports, drops.Drops, workers.Workers
	return s, nil
}

// same finds the earlier state of a thing; an empty one where it is new.
func same[T any](old []*T, is func(*T) bool) *T {
	if i := slices.IndexFunc(old, is); i >= 0 {
		return old[i]
	}
	return new(T)
}

// since is what a counter gained, from 0 where the router restarted in between.
func since(now, old uint64) uint64 {
	if now < old {
		return now
	}
	return now - old
}

// renderTop words what happened between two snapshots.
func renderTop(a, b *snapshot) string {
	sec := b.at.Sub(a.at).Seconds()
	if sec <= 0 {
		sec = 1
	}
	rate := func(now, old uint64) float64 { return float64(since(now, old)) / sec }
	var out strings.Builder
	state := "forwarding"
	if !b.status.Forwarding {
		state = "NOT forwarding: " + strings.Join(b.status.Reasons, "; ")
	}
	fmt.Fprintf(&out, "millrace %s  up %s  %s  routes %d + %d\n\n", b.status.Version, age(b.status.UptimeNs), state, b.status.RoutesIpv4, b.status.RoutesIpv6)

	t := newTable("PORT", "LINK", ">RX-PPS", ">RX-BPS", ">TX-PPS", ">TX-BPS", ">MISSED/S", ">FAILED/S")
	for _, p := range b.ports {
		o := same(a.ports, func(o *v1.Port) bool { return o.Name == p.Name })
		t.row(p.Name, linkWord(p), si(rate(p.RxPackets, o.RxPackets)), si(8*rate(p.RxBytes, o.RxBytes)), si(rate(p.TxPackets, o.TxPackets)), si(8*rate(p.TxBytes, o.TxBytes)),
			si(rate(p.RxNoBuffer+p.RxRingFull+p.RxBad, o.RxNoBuffer+o.RxRingFull+o.RxBad)), si(rate(p.TxFull+p.TxFailed, o.TxFull+o.TxFailed)))
	}
	t.print(&out)
	out.WriteByte('\n')

	t = newTable("WORKER", ">CORE", ">LOAD", ">PPS", ">CLOCKS/PACKET", ">SLEEPS/S", "QUEUES")
	for _, w := range b.workers {
		o := same(a.workers, func(o *v1.Worker) bool { return o.Id == w.Id })
		busy, packets := since(w.BusyClocks, o.BusyClocks), since(w.Packets, o.Packets)
		t.row(w.Id, dashInt(w.Core), percent(busy, since(w.TotalClocks, o.TotalClocks)), si(rate(w.Packets, o.Packets)), ratio(busy, packets),
			si(rate(w.Sleeps, o.Sleeps)), strings.Join(w.Queues, " "))
	}
	t.print(&out)
	out.WriteByte('\n')

	t = newTable("STAGE", ">PPS", ">PER-CALL", ">CLOCKS/PACKET", ">HELD")
	for _, s := range b.stages.Stages {
		if s.Exit && s.Held == 0 {
			continue
		}
		o := same(a.stages.Stages, func(o *v1.Stage) bool { return o.Name == s.Name })
		t.row(s.Name, si(rate(s.Packets, o.Packets)), ratio(since(s.Packets, o.Packets), since(s.Calls, o.Calls)),
			ratio(since(s.Clocks, o.Clocks), since(s.Measured, o.Measured)), s.Held)
	}
	t.print(&out)
	if !b.stages.Measuring {
		out.WriteString("(clocks are not being measured)\n")
	}
	out.WriteByte('\n')

	t = newTable(">DROPS/S", ">TOTAL", "STAGE/REASON", "MEANING")
	drops := slices.DeleteFunc(slices.Clone(b.drops), func(d *v1.Drop) bool { return d.Kind != "drop" || d.Count == 0 })
	gain := func(d *v1.Drop) uint64 {
		o := same(a.drops, func(o *v1.Drop) bool { return o.Stage == d.Stage && o.Reason == d.Reason })
		return since(d.Count, o.Count)
	}
	slices.SortStableFunc(drops, func(x, y *v1.Drop) int {
		return cmp.Or(cmp.Compare(gain(y), gain(x)), cmp.Compare(y.Count, x.Count))
	})
	for _, d := range drops {
		t.row(si(float64(gain(d))/sec), d.Count, d.Stage+"/"+d.Reason, d.Doc)
	}
	if len(drops) == 0 {
		out.WriteString("No packet was dropped.\n")
	} else {
		t.print(&out)
	}
	return out.String()
}

// topModel is the live view: bubbletea's model.
type topModel struct {
	ctx           context.Context
	b             api.Backend
	every         time.Duration
	old, now      *snapshot
	paused        bool
	width, height int
	err           error
}

type sampled struct {
	s   *snapshot
	err error
}

func (m *topModel) next() tea.Cmd {
	return tea.Tick(m.every, func(time.Time) tea.Msg {
		s, err := sample(m.ctx, m.b)
		return sampled{s, err}
	})
}

func (m *topModel) Init() tea.Cmd { return m.next() }

func (m *topModel) Update(msg tea.Msg) (tea.Model, tea.Cmd) {
	switch msg := msg.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = msg.Width, msg.Height
	case tea.KeyPressMsg:
		switch msg.String() {
		case "q", "esc", "ctrl+c":
			return m, tea.Quit
		case "space":
			m.paused = !m.paused
		case "m":
			on := !m.now.stages.Measuring
			return m, func() tea.Msg {
				if _, err := m.b.SetMeasure(m.ctx, &v1.SetMeasureRequest{On: on}); err != nil {
					return sampled{err: err}
				}
				return nil
			}
		}
	case sampled:
		if msg.err != nil {
			if !errors.Is(msg.err, context.Canceled) {
				m.err = msg.err
			}
			return m, tea.Quit
		}
		if !m.paused {
			m.old, m.now = m.now, msg.s
		}
		return m, m.next()
	}
	return m, nil
}

func (m *topModel) View() tea.View {
	v := tea.NewView(m.text())
	v.AltScreen = true
	return v
}

// text fits the view into the window, with headings in bold.
func (m *topModel) text() string {
	if m.old == nil {
		return "measuring ...\n"
	}
	lines := strings.Split(strings.TrimRight(renderTop(m.old, m.now), "\n"), "\n")
	help := "q quit   m measure clocks   space pause"
	if m.paused {
		help = "PAUSED   " + help
	}
	if room := m.height - 2; room > 0 && len(lines) > room {
		lines = lines[:room]
	}
	for i, l := range lines {
		if r := []rune(l); m.width > 0 && len(r) > m.width {
			l = string(r[:m.width])
		}
		if i == 0 || i > 1 && lines[i-1] == "" {
			l = "\x1b[1m" + l + "\x1b[m"
		}
		lines[i] = l
	}
	return strings.Join(append(lines, "", help), "\n")
}
