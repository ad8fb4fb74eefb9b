package dut

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"millrace/bench/lab"
	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

// process is a router in a process of its own.
type process struct {
	cmd  *exec.Cmd
	log  output
	api  *api.Client
	done chan struct{}
	err  error // once done is closed
}

// output keeps the end of what a process said.
type output struct {
	mu sync.Mutex
	b  bytes.Buffer
}

const outputKept = 8192

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.b.Write(p)
	if n := o.b.Len() - outputKept; n > 0 {
		o.b.Next(n)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.TrimSpace(o.b.String())
}

// command makes the command of a process, in a namespace or here.
type command func(args ...string) *exec.Cmd

// here is a command of this process's namespace, which ends with this process.
func here(args ...string) *exec.Cmd {
	c := exec.Command(args[0], args[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	return c
}

// startRouter starts this program as a router with a configuration and waits until it answers.
func startRouter(ctx context.Context, d *DUT, dir, config string, in command) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	file, sock := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "sock")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return err
	}
	p := &process{cmd: in(self, "run", "--log-level", "warn", "--socket", sock, "--config", file), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := lab.Fork(p.cmd); err != nil {
		return err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	d.onClose(p.stop)
	p.api = api.Dial(sock)
	d.alive, d.drops = p.alive, p.drops
	d.ready = p.ready
	for {
		_, err := p.api.GetStatus(ctx, &v1.GetStatusRequest{})
		if err == nil {
			return nil
		}
		if e := d.wait(ctx); e != nil {
			return fmt.Errorf("the router does not answer: %w: %w", e, err)
		}
	}
}

// ready is nil when the router has a way to what lies behind both ends.
func (p *process) ready(ctx context.Context) error {
	st, err := p.api.GetStatus(ctx, &v1.GetStatusRequest{})
	if err != nil {
		return err
	}
	if !st.Forwarding || st.PortsUp < 2 {
		return fmt.Errorf("the router does not forward: %s", strings.Join(st.Reasons, "; "))
	}
	for _, n := range nets {
		for _, to := range []netip.Prefix{n.v4, n.v6} {
			x, err := p.api.Explain(ctx, &v1.ExplainRequest{To: to.Addr().Next().String()})
			if err != nil {
				return err
			}
			if x.Exit != "" {
				return fmt.Errorf("the router has no way to %v: %s", to, x.Exit)
			}
		}
	}
	return nil
}

func (p *process) alive() error {
	select {
	case <-p.done:
		return fmt.Errorf("the router has ended: %v\n%s", p.err, p.log.String())
	default:
		return nil
	}
}

// drops counts what the router dropped by reason, and what its ports lost before it saw it.
func (p *process) drops(ctx context.Context) (map[string]uint64, error) {
	l, err := p.api.ListDrops(ctx, &v1.ListDropsRequest{})
	if err != nil {
		return nil, errors.Join(p.alive(), err)
	}
	m := map[string]uint64{}
	for _, x := range l.Drops {
		if x.Kind == "drop" {
			m[x.Stage+"/"+x.Reason] += x.Count
		}
	}
	ports, err := p.api.ListPorts(ctx, &v1.ListPortsRequest{})
	if err != nil {
		return nil, err
	}
	for _, x := range ports.Ports {
		m[x.Name+"/rx-ring-full"] += x.RxRingFull
		m[x.Name+"/rx-no-buffer"] += x.RxNoBuffer
		m[x.Name+"/rx-bad"] += x.RxBad
	}
	for k, v := range m {
		if v == 0 {
			delete(m, k)
		}
	}
	return m, nil
}

func (p *process) stop() {
	if p.api != nil {
		p.api.Close()
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(5 * time.Second):
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}
