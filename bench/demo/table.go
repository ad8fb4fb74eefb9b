package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

// sample is the router's counters at one time.
type sample struct {
	at     time.Time
	ports  *v1.Ports
	stages *v1.Stages
	drops  *v1.Drops
}

func take(ctx context.Context, b api.Backend) (s sample, err error) {
	s.at = time.Now()
	if s.ports, err = b.ListPorts(ctx, &v1.ListPortsRequest{}); err != nil {
		return s, err
	}
	if s.stages, err = b.ListStages(ctx, &v1.ListStagesRequest{}); err != nil {
		return s, err
	}
	s.drops, err = b.ListDrops(ctx, &v1.ListDropsRequest{})
	return s, err
}

// text shows what happened between two samples.
func (s sample) text(since sample) string {
	var b strings.Builder
	d := s.at.Sub(since.at).Seconds()
	fmt.Fprintf(&b, "   %-10s %-22s %12s %12s %12s %12s\n", "port", "driver", "rx pkt/s", "rx Mbit/s", "tx pkt/s", "tx Mbit/s")
	for i, p := range s.ports.Ports {
		if i >= len(since.ports.Ports) {
			break
		}
		o := since.ports.Ports[i]
		fmt.Fprintf(&b, "   %-10s %-22s %12.0f %12.1f %12.0f %12.1f\n", p.Name, p.Driver+" "+p.Mode,
			per(p.RxPackets, o.RxPackets, d), per(p.RxBytes, o.RxBytes, d)*8/1e6, per(p.TxPackets, o.TxPackets, d), per(p.TxBytes, o.TxBytes, d)*8/1e6)
	}
	fmt.Fprintf(&b, "\n   %-24s %14s %16s\n", "stage", "packets", "clocks/packet")
	var clocks, packets uint64
	for i, st := range s.stages.Stages {
		if i >= len(since.stages.Stages) || st.Exit || st.Packets == since.stages.Stages[i].Packets {
			continue
		}
		o := since.stages.Stages[i]
		c := "-"
		if n := st.Measured - o.Measured; n > 0 {
			c = fmt.Sprintf("%.1f", float64(st.Clocks-o.Clocks)/float64(n))
			clocks += st.Clocks - o.Clocks
			packets = max(packets, n)
		}
		fmt.Fprintf(&b, "   %-24s %14d %16s\n", st.Name, st.Packets-o.Packets, c)
	}
	if packets > 0 {
		fmt.Fprintf(&b, "   %-24s %14d %16.1f\n", "the road in all", packets, float64(clocks)/float64(packets))
	}
	b.WriteString(dropText(s.drops, since.drops))
	return b.String()
}

func per(now, then uint64, seconds float64) float64 { return float64(now-then) / seconds }

func dropText(now, then *v1.Drops) string {
	was := map[string]uint64{}
	for _, d := range then.GetDrops() {
		was[d.Stage+"/"+d.Reason] = d.Count
	}
	var b strings.Builder
	for _, d := range now.GetDrops() {
		n := d.Count - was[d.Stage+"/"+d.Reason]
		if n == 0 || d.Kind != "drop" {
			continue
		}
		if b.Len() == 0 {
			b.WriteString("\n   drops\n")
		}
		fmt.Fprintf(&b, "   %-32s %8d  %s\n", d.Stage+"/"+d.Reason, n, first(d.Doc))
	}
	return b.String()
}

// first is the first sentence of a text.
func first(s string) string {
	if i := strings.IndexAny(s, ".:"); i > 0 {
		return s[:i]
	}
	return s
}

// accounts tells where every packet is.
func accounts(l *v1.Leaks) string {
	held := uint64(0)
	for _, h := range l.Held {
		held += h.Packets
	}
	verdict := "every packet is accounted for"
	if !l.Ok {
		verdict = fmt.Sprintf("%d packets are UNACCOUNTED FOR", l.Difference)
	}
	return fmt.Sprintf("received %d + from host %d + created %d = sent %d + to host %d + dropped %d + held %d: %s\n",
		l.Received, l.FromHost, l.Created, l.Sent, l.ToHost, l.Dropped, held, verdict)
}
