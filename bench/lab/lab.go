// Package lab builds small networks of Linux network namespaces on this machine: hosts joined
// by veth pairs, with processes in them, and takes everything down again.
//
// A Lab touches nothing outside the namespaces that it made. Close ends only processes
// that were started through it. All of it needs root.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Lab is a set of hosts.
type Lab struct {
	id    string
	mu    sync.Mutex
	hosts []*Host
	procs []*exec.Cmd
}

// Host is one namespace.
type Host struct {
	Name string // within the lab
	NS   string // for `ip netns exec`
	lab  *Lab
}

var labs atomic.Int32 // made by this process, for their names

// New starts an empty lab.
func New() (*Lab, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("lab: network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return nil, errors.New("lab: the command `ip` is missing: apt-get install iproute2")
	}
	id := fmt.Sprintf("mr%d", os.Getpid())
	if n := labs.Add(1); n > 1 {
		id += fmt.Sprintf(".%d", n)
	}
	return &Lab{id: id}, nil
}

// Host makes a host: a namespace with its loopback up.
func (l *Lab) Host(name string) (*Host, error) {
	h := &Host{name, l.id + "-" + name, l}
	if out, err := exec.Command("ip", "netns", "add", h.NS).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("lab: namespace %s: %w: %s", h.NS, err, out)
	}
	l.mu.Lock()
	l.hosts = append(l.hosts, h)
	l.mu.Unlock()
	return h, h.Do("ip link set lo up")
}

// Join connects two hosts by a veth pair; both ends are up.
func (l *Lab) Join(a *Host, aName string, b *Host, bName string, opts ...string) error {
	args := append([]string{"link", "add", aName, "netns", a.NS}, opts...)
	args = append(args, "type", "veth", "peer", "name", bName, "netns", b.NS)
	args = append(args, opts...)
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		return fmt.Errorf("lab: veth %s-%s: %w: %s", aName, bName, err, out)
	}
	for _, e := range []struct {
		h *Host
		n string
	}{{a, aName}, {b, bName}} {
		// Addresses are usable at once: nobody else is on the wire.
		if err := e.h.Do("sysctl -qw net.ipv6.conf."+e.n+".accept_dad=0", "ip link set "+e.n+" up"); err != nil {
			return err
		}
	}
	return nil
}

// Command is a command in the host's namespace. It is killed when ctx ends or this process dies.
func (h *Host) Command(ctx context.Context, args ...string) *exec.Cmd {
	c := exec.CommandContext(ctx, "ip", append([]string{"netns", "exec", h.NS}, args...)...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	c.WaitDelay = 3 * time.Second
	return c
}

// starter forks all processes on one thread that lives as long as this process: the kernel
// ends a child with Pdeathsig when the thread that forked it ends.
var starter = sync.OnceValue(func() chan<- func() {
	c := make(chan func())
	go func() {
		runtime.LockOSThread()
		for f := range c {
			f()
		}
	}()
	return c
})

// Fork starts a command of Command. The caller waits for it.
func Fork(c *exec.Cmd) (err error) {
	done := make(chan struct{})
	starter() <- func() {
		defer close(done)
		err = c.Start()
	}
	<-done
	return err
}

// Run runs a command to its end and returns its output.
func (h *Host) Run(ctx context.Context, args ...string) (string, error) {
	c := h.Command(ctx, args...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := Fork(c)
	if err == nil {
		err = c.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s: %s: %w", h.Name, strings.Join(args, " "), err)
	}
	return out.String(), err
}

// Do runs commands, each a line of words, and stops at the first that fails.
func (h *Host) Do(lines ...string) error {
	for _, line := range lines {
		if out, err := h.Run(context.Background(), strings.Fields(line)...); err != nil {
			return fmt.Errorf("lab: %w: %s", err, strings.TrimSpace(out))
		}
	}
	return nil
}

// Start starts a process that lives until Stop or Close.
func (h *Host) Start(c *exec.Cmd) error {
	if err := Fork(c); err != nil {
		return fmt.Errorf("lab: %s: %w", h.Name, err)
	}
	h.lab.mu.Lock()
	h.lab.procs = append(h.lab.procs, c)
	h.lab.mu.Unlock()
	return nil
}

// Stop ends a process of Start, by SIGTERM and after some seconds by SIGKILL, and returns how it ended.
func (h *Host) Stop(c *exec.Cmd) error {
	h.lab.mu.Lock()
	h.lab.procs = slices.DeleteFunc(h.lab.procs, func(x *exec.Cmd) bool { return x == c })
	h.lab.mu.Unlock()
	return stop(c)
}

func stop(c *exec.Cmd) error {
	c.Process.Signal(syscall.SIGTERM)
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(5 * time.Second):
		c.Process.Kill()
		return <-done
	}
}

// Close ends all processes and removes all namespaces. It may be called twice.
func (l *Lab) Close() {
	l.mu.Lock()
	procs, hosts := l.procs, l.hosts
	l.procs, l.hosts = nil, nil
	l.mu.Unlock()
	for _, c := range slices.Backward(procs) {
		stop(c)
	}
	for _, h := range hosts {
		exec.Command("ip", "netns", "del", h.NS).Run()
	}
}

// Addresses of the lab that Line makes: documentation prefixes (RFC 5737, RFC 3849).
const (
	ClientNet4, ServerNet4 = "192.0.2.0/24", "198.51.100.0/24"
	Client4, RouterC4      = "192.0.2.2", "192.0.2.1"
	Server4, RouterS4      = "198.51.100.2", "198.51.100.1"
	Client6, RouterC6      = "2001:db8:1::2", "2001:db8:1::1"
	Server6, RouterS6      = "2001:db8:2::2", "2001:db8:2::1"
)

// Line is client - router - server, the router's kernel not forwarding.
type Line struct {
	*Lab
	Client, Router, Server *Host
}

// NewLine makes the hosts, addresses and routes: c0 - r0 and r1 - s0.
func NewLine() (n *Line, err error) {
	l, err := New()
	if err != nil {
		return nil, err
	}
	n = &Line{Lab: l}
	defer func() {
		if err != nil {
			l.Close()
		}
	}()
	for _, h := range []struct {
		to   **Host
		name string
	}{{&n.Client, "client"}, {&n.Router, "router"}, {&n.Server, "server"}} {
		if *h.to, err = l.Host(h.name); err != nil {
			return nil, err
		}
	}
	if err = l.Join(n.Client, "c0", n.Router, "r0"); err != nil {
		return nil, err
	}
	if err = l.Join(n.Router, "r1", n.Server, "s0"); err != nil {
		return nil, err
	}
	if err = n.Router.Do(
		"sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0",
		"ip addr add "+RouterC4+"/24 dev r0", "ip addr add "+RouterC6+"/64 dev r0 nodad",
		"ip addr add "+RouterS4+"/24 dev r1", "ip addr add "+RouterS6+"/64 dev r1 nodad"); err != nil {
		return nil, err
	}
	if err = n.Client.Do("ip addr add "+Client4+"/24 dev c0", "ip addr add "+Client6+"/64 dev c0 nodad",
		"ip route add default via "+RouterC4, "ip route add default via "+RouterC6); err != nil {
		return nil, err
	}
	err = n.Server.Do("ip addr add "+Server4+"/24 dev s0", "ip addr add "+Server6+"/64 dev s0 nodad",
		"ip route add default via "+RouterS4, "ip route add default via "+RouterS6)
	return n, err
}
