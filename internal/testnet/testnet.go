// Package testnet gives tests network namespaces of their own, virtual Ethernet
// pairs between them and raw sockets on their interfaces. Everything it makes goes
// away when the test ends. A test that needs it is skipped when not run as root.
package testnet

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// NS is a network namespace.
type NS struct {
	Name string // as `ip netns` lists it
	fd   int
}

var serial atomic.Uint32

// New makes a namespace with its loopback up and IPv6 duplicate address detection and
// router solicitation off, so that addresses work at once and links are quiet.
func New(t testing.TB) *NS {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("needs iproute2: " + err.Error())
	}
	n := &NS{Name: fmt.Sprintf("mr%d-%d", os.Getpid(), serial.Add(1))}
	if out, err := exec.Command("ip", "netns", "add", n.Name).CombinedOutput(); err != nil {
		t.Skipf("cannot make network namespaces here: %v: %s", err, out)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "del", n.Name).Run() })
	fd, err := unix.Open("/run/netns/"+n.Name, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.fd = fd
	t.Cleanup(func() { unix.Close(fd) })
	n.Do(func() {
		for f, v := range map[string]string{"accept_dad": "0", "router_solicitations": "0"} {
			for _, i := range []string{"all", "default"} {
				// Absent where the kernel has no IPv6.
				_ = os.WriteFile("/proc/sys/net/ipv6/conf/"+i+"/"+f, []byte(v), 0)
			}
		}
	})
	n.Run(t, "ip", "link", "set", "lo", "up")
	return n
}

// Run runs a command in the namespace and returns what it printed; the test
// fails where the command does.
func (n *NS) Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := n.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// Command is a command that will run in the namespace.
func (n *NS) Command(name string, args ...string) *exec.Cmd {
	return exec.Command("ip", append([]string{"netns", "exec", n.Name, name}, args...)...)
}

// Do calls f on a thread that is in the namespace. Sockets and descriptors that f
// opens stay in the namespace; goroutines that it starts are not in it. f may end the
// test, and may call Do of another namespace.
func (n *NS) Do(f func()) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		panic("testnet: " + err.Error())
	}
	if err := unix.Setns(n.fd, unix.CLONE_NEWNET); err != nil {
		panic("testnet: enter " + n.Name + ": " + err.Error())
	}
	defer func() {
		// A thread that cannot go home stays locked, and ends with its goroutine.
		if unix.Setns(home, unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		unix.Close(home)
	}()
	f()
}

// Veth connects two namespaces by a virtual Ethernet pair and sets both ends up.
// opts are options of `ip link add` for both ends, such as "mtu", "9000" or
// "numrxqueues", "2", "numtxqueues", "2".
func Veth(t testing.TB, a *NS, aName string, b *NS, bName string, opts ...string) {
	t.Helper()
	args := append([]string{"link", "add", "name", aName, "netns", a.Name}, opts...)
	args = append(args, "type", "veth", "peer", "name", bName, "netns", b.Name)
	args = append(args, opts...)
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	a.Run(t, "ip", "link", "set", aName, "up")
	b.Run(t, "ip", "link", "set", bName, "up")
	// The kernel drops what is sent before it has noticed the carrier.
	a.waitRunning(t, aName)
	b.waitRunning(t, bName)
}

// waitRunning waits until the kernel considers an interface operational.
func (n *NS) waitRunning(t testing.TB, name string) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
		var i *net.Interface
		var err error
		n.Do(func() { i, err = net.InterfaceByName(name) })
		if err == nil && i.Flags&net.FlagRunning != 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is not running after 20 s: %v", name, err)
		}
	}
}
