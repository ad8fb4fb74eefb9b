package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"millrace/bench/lab"
	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

const picture = `
      client                      router                      server
   +-----------+            +-----------------+           +------------+
   |        c0 +------------+ r0  Millrace r1 +-----------+ s0         |
   +-----------+            +-----------------+           +------------+
     192.0.2.2               ip_forward = 0                198.51.100.2
     2001:db8:1::2           forwarding = 0                2001:db8:2::2
`

// inLab is the demo as root.
func inLab(ctx context.Context, s *screen, seconds int) error {
	fmt.Fprintf(s.out, "%s\n%s", s.bold("Millrace: three network namespaces on this machine, and nothing else touched."), picture)
	net, err := lab.NewLine()
	if err != nil {
		return err
	}
	defer net.Close()
	d := &labDemo{Line: net, s: s, seconds: seconds}

	s.head("Without Millrace: the router's kernel does not forward")
	d.show(ctx, net.Client, "ping", "-c", "2", "-W", "1", "-q", lab.Server4)

	s.head("Start it")
	if err := d.start(ctx); err != nil {
		return err
	}
	steps := []func(context.Context) error{d.ping, d.trace, d.tcp, d.udp, d.why, d.end}
	for _, f := range steps {
		if err := f(ctx); err != nil || ctx.Err() != nil {
			return err
		}
	}
	return nil
}

type labDemo struct {
	*lab.Line
	s       *screen
	seconds int
	router  *exec.Cmd
	log     bytes.Buffer
	api     *api.Client
	begin   sample
	dir     string
}

// show runs a command in a host and prints what it prints.
func (d *labDemo) show(ctx context.Context, h *lab.Host, args ...string) string {
	d.s.command(h.Name, args)
	out, _ := h.Run(ctx, args...)
	var keep []string
	for _, l := range strings.Split(strings.TrimSpace(out), "\n") {
		if strings.TrimSpace(l) != "" {
			keep = append(keep, l)
		}
	}
	d.s.say("%s", strings.Join(keep, "\n"))
	return out
}

// start runs this program in the router's namespace.
func (d *labDemo) start(ctx context.Context) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if d.dir, err = os.MkdirTemp("", "millrace-demo-"); err != nil {
		return err
	}
	sock := filepath.Join(d.dir, "sock")
	d.s.command("router", []string{"millrace", "run", "r0", "r1"})
	d.router = d.Router.Command(ctx, self, "run", "--log-level", "warn", "--socket", sock, "r0", "r1")
	d.router.Stdout, d.router.Stderr = &d.log, &d.log
	if err := d.Router.Start(d.router); err != nil {
		return err
	}
	d.api = api.Dial(sock)
	for end := time.Now().Add(20 * time.Second); ; {
		st, err := d.api.GetStatus(ctx, &v1.GetStatusRequest{})
		if err == nil && st.Forwarding && st.PortsUp == 2 {
			break
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if time.Now().After(end) {
			return fmt.Errorf("demo: the router does not forward: %v %v\n%s", err, st.GetReasons(), d.log.String())
		}
		time.Sleep(50 * time.Millisecond)
	}
	ports, err := d.api.ListPorts(ctx, &v1.ListPortsRequest{})
	if err != nil {
		return err
	}
	for _, p := range ports.Ports {
		d.s.say("%s: %s, %s; %s", p.Name, p.Driver, p.Mode, strings.Join(p.Addresses, ", "))
	}
	d.begin, err = take(ctx, d.api)
	return err
}

func (d *labDemo) ping(ctx context.Context) error {
	d.s.head("The first packets, in both families")
	d.show(ctx, d.Client, "ping", "-c", "3", "-i", "0.2", "-q", lab.Server4)
	d.show(ctx, d.Client, "ping", "-c", "3", "-i", "0.2", "-q", lab.Server6)
	return nil
}

func (d *labDemo) trace(ctx context.Context) error {
	d.s.head("It is a router: hop limits, ICMP errors from the right address")
	d.show(ctx, d.Client, "traceroute", "-n", "-q", "1", "-w", "1", lab.Server4)
	d.show(ctx, d.Client, "traceroute", "-n", "-q", "1", "-w", "1", lab.Server6)
	return nil
}

// watch shows the live table while a command runs.
func (d *labDemo) watch(ctx context.Context, h *lab.Host, args ...string) ([]byte, error) {
	d.s.command(h.Name, args)
	if _, err := d.api.SetMeasure(ctx, &v1.SetMeasureRequest{On: true}); err != nil {
		return nil, err
	}
	defer d.api.SetMeasure(context.Background(), &v1.SetMeasureRequest{})
	c := h.Command(ctx, args...)
	var out, errs bytes.Buffer
	c.Stdout, c.Stderr = &out, &errs
	if err := lab.Fork(c); err != nil {
		return nil, err
	}
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	first, err := take(ctx, d.api)
	if err != nil {
		c.Process.Kill()
		<-done
		return nil, err
	}
	last, text := first, ""
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case err := <-done:
			d.s.last(text)
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, errs.String())
			}
			return out.Bytes(), err
		case <-tick.C:
			now, err := take(ctx, d.api)
			if err != nil {
				continue
			}
			text = now.text(last)
			last = now
			d.s.table(text)
		}
	}
}

// iperfResult is what matters of iperf3's JSON.
type iperfResult struct {
	End struct {
		SumReceived struct {
			BitsPerSecond float64 `json:"bits_per_second"`
		} `json:"sum_received"`
		Sum struct {
			BitsPerSecond float64 `json:"bits_per_second"`
			Packets       float64 `json:"packets"`
			Lost          float64 `json:"lost_packets"`
			Seconds       float64 `json:"seconds"`
		} `json:"sum"`
		SumSent struct {
			Retransmits int `json:"retransmits"`
		} `json:"sum_sent"`
	} `json:"end"`
}

func (d *labDemo) server(ctx context.Context) (stop func(), err error) {
	srv := d.Server.Command(ctx, "iperf3", "-s")
	if err := d.Server.Start(srv); err != nil {
		return nil, err
	}
	for range 50 {
		if out, _ := d.Server.Run(ctx, "ss", "-Htln", "sport", "=", ":5201"); strings.TrimSpace(out) != "" {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return func() { d.Server.Stop(srv) }, nil
}

func (d *labDemo) tcp(ctx context.Context) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		d.s.head("iperf3 is not installed: no TCP and UDP (apt-get install iperf3)")
		return nil
	}
	d.s.head("TCP by iperf3, the router's stages measured meanwhile")
	stop, err := d.server(ctx)
	if err != nil {
		return err
	}
	defer stop()
	out, err := d.watch(ctx, d.Client, "iperf3", "-c", lab.Server4, "-t", fmt.Sprint(d.seconds), "-J")
	if err != nil {
		return err
	}
	var r iperfResult
	if err := json.Unmarshal(out, &r); err != nil {
		return fmt.Errorf("demo: iperf3's output: %w", err)
	}
	d.s.say("\nTCP: %.2f Gbit/s received, %d retransmissions", r.End.SumReceived.BitsPerSecond/1e9, r.End.SumSent.Retransmits)
	return nil
}

func (d *labDemo) udp(ctx context.Context) error {
	if _, err := exec.LookPath("iperf3"); err != nil {
		return nil
	}
	d.s.head("Small UDP packets over IPv6, as many as iperf3 can send")
	stop, err := d.server(ctx)
	if err != nil {
		return err
	}
	defer stop()
	out, err := d.watch(ctx, d.Client, "iperf3", "-c", lab.Server6, "-u", "-b", "0", "-l", "64", "-t", fmt.Sprint(d.seconds), "-J")
	if err != nil {
		return err
	}
	var r iperfResult
	if err := json.Unmarshal(out, &r); err != nil {
		return fmt.Errorf("demo: iperf3's output: %w", err)
	}
	u := r.End.Sum
	d.s.say("\nUDP: %.0f packets/s sent, %.2f %% lost (iperf3's receiver counts what it cannot keep up with as lost)", u.Packets/max(u.Seconds, 1), 100*u.Lost/max(u.Packets, 1))
	return nil
}

// why shows what trace says of a packet that is dropped.
func (d *labDemo) why(ctx context.Context) error {
	d.s.head("Why is a packet dropped? Ask the router")
	d.s.command("router", []string{"millrace", "trace", "-n", "1", "--drops", "host", "203.0.113.7"})
	tctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	got := make(chan *v1.TracedPacket, 1)
	go func() {
		d.api.Trace(tctx, &v1.TraceRequest{Count: 1, Filter: "dst host 203.0.113.7"}, func(p *v1.TracedPacket) error {
			select {
			case got <- p:
			default:
			}
			return nil
		})
	}()
	go func() {
		for tctx.Err() == nil {
			d.Client.Run(tctx, "ping", "-c", "1", "-W", "1", "203.0.113.7")
		}
	}()
	select {
	case p := <-got:
		d.s.say("%s", traced(p))
	case <-tctx.Done():
		d.s.say("(nothing came)")
	}
	return nil
}

func traced(p *v1.TracedPacket) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, in by %s\n", p.Summary, p.From)
	for _, l := range p.Lines {
		fmt.Fprintf(&b, "  %-20s %s\n", l.Stage, l.Text)
	}
	fmt.Fprintf(&b, "  => %s: %s\n", p.Fate, p.Doc)
	return b.String()
}

func (d *labDemo) end(ctx context.Context) error {
	now, err := take(ctx, d.api)
	if err != nil {
		return err
	}
	leaks, err := d.api.GetLeaks(ctx, &v1.GetLeaksRequest{})
	if err != nil {
		return err
	}
	d.s.head("Summary")
	for _, p := range now.ports.Ports {
		d.s.say("%s: received %d packets (%.1f MB), sent %d (%.1f MB)", p.Name, p.RxPackets, float64(p.RxBytes)/1e6, p.TxPackets, float64(p.TxBytes)/1e6)
	}
	fmt.Fprint(d.s.out, dropText(now.drops, d.begin.drops))
	d.s.say("\n%s", accounts(leaks))
	d.Router.Stop(d.router)
	os.RemoveAll(d.dir)
	d.s.say("The router is stopped, the namespaces are removed. Next: `millrace run eth0 eth1`, README.md.")
	if !leaks.Ok {
		return fmt.Errorf("demo: packets are unaccounted for")
	}
	return nil
}
