package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestSmallPool: more packets than there are buffers for. Some are lost, none leak, and the router goes on.
func TestSmallPool(t *testing.T) {
	long(t)
	l := newLine(t)
	runYAML(t, l.router, "ports: [{name: r0}, {name: r1}]\npool: {buffers: 1024}\n")
	// Packets to a host that does not answer are held.
	conns := make([]net.Conn, 40)
	l.client.Do(func() {
		for i := range conns {
			conns[i], _ = net.Dial("udp", fmt.Sprintf("10.0.2.%d:9", 100+i))
		}
	})
	for range 500 {
		for _, c := range conns {
			c.Write(make([]byte, 1000))
		}
	}
	for _, c := range conns {
		c.Close()
	}
	pings(t, l.client, server4)
	stop := flood(t, l.client, server4)
	time.Sleep(time.Second)
	stop()
	ping(t, l.client, server4)
	ping(t, l.client, server6)
	ping(t, l.client, server4, "-s", "20000")
}

// TestInterfaceReturns: a port's device is removed and made again.
func TestInterfaceReturns(t *testing.T) {
	for _, driver := range []string{"afxdp", "afpacket"} {
		t.Run(driver, func(t *testing.T) {
			l := newLine(t)
			r := runYAML(t, l.router, "ports: [{name: r0, driver: "+driver+"}, {name: r1, driver: "+driver+"}]\n")
			ping(t, l.client, server4)
			ip(t, l.router, "link del r1")
			eventually(t, "a complaint", func() error {
				if out, _ := r.try("show", "status"); !strings.Contains(out, "r1") {
					return errors.New(out)
				}
				return nil
			})
			ping(t, l.client, routerC4)
			l.wireServer(t)
			pings(t, l.client, server4)
			pings(t, l.client, server6)
		})
	}
}

func TestLinkFlaps(t *testing.T) {
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	state := func(up bool) {
		t.Helper()
		eventually(t, fmt.Sprintf("the link to be up: %v", up), func() error {
			if p := r.port("r1"); p.Up != up {
				return fmt.Errorf("%v", p)
			}
			return nil
		})
	}
	for range 3 {
		// The far end goes down, as when a cable is pulled; then our own.
		ip(t, l.server, "link set s0 down")
		state(false)
		ip(t, l.server, "link set s0 up", "addr replace "+server6+"/64 dev s0", "route replace default via "+routerS4, "route replace default via "+routerS6)
		state(true)
		pings(t, l.client, server4)
		pings(t, l.client, server6)
		ip(t, l.router, "link set r1 down")
		state(false)
		silent(t, l.client, server4)
		ip(t, l.router, "link set r1 up", "addr replace "+routerS6+"/64 dev r1")
		state(true)
		pings(t, l.client, server4)
		pings(t, l.client, server6)
	}
}

// TestMTUChanges: it takes effect without a restart.
func TestMTUChanges(t *testing.T) {
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	for _, mtu := range []int{1400, 1280, 1500} {
		ip(t, l.router, fmt.Sprintf("link set r1 mtu %d", mtu))
		ip(t, l.server, fmt.Sprintf("link set s0 mtu %d", mtu))
		ip(t, l.client, "route flush cache", "-6 route flush cache")
		eventually(t, "the MTU", func() error {
			if m := r.port("r1").Mtu; int(m) != mtu {
				return fmt.Errorf("%d", m)
			}
			return nil
		})
		ping(t, l.client, server4, "-M", "do", "-s", fmt.Sprint(mtu-28))
		ping(t, l.client, server6, "-M", "do", "-s", fmt.Sprint(mtu-48))
		if mtu < 1500 {
			if out, _ := command(t, l.client, "ping", "-n", "-c", "1", "-W", "5", "-M", "do", "-s", fmt.Sprint(mtu-27), server4); !strings.Contains(out, fmt.Sprintf("mtu = %d", mtu)) {
				t.Errorf("MTU %d: no error for a larger packet:\n%s", mtu, out)
			}
		}
	}
}

// TestEnds: however the router ends, the interfaces are the kernel's again.
func TestEnds(t *testing.T) {
	for _, c := range []struct {
		name   string
		signal syscall.Signal
	}{{"SIGTERM", syscall.SIGTERM}, {"SIGKILL", syscall.SIGKILL}} {
		for _, driver := range []string{"afxdp", "afpacket"} {
			t.Run(c.name+"/"+driver, func(t *testing.T) {
				l := newLine(t)
				r := runYAML(t, l.router, fmt.Sprintf("ports: [{name: r0, driver: %s, mtu: 1400}, {name: r1, driver: %[1]s, addresses: [10.0.7.1/24]}]\n", driver))
				ping(t, l.client, server4)
				ping(t, l.client, "10.0.7.1")
				r.cmd.Process.Signal(c.signal)
				err := <-r.ended
				r.ended <- err
				if (err == nil) != (c.signal == syscall.SIGTERM) {
					t.Errorf("ended with %v", err)
				}
				silent(t, l.client, server4)
				ip(t, l.router, "link set r0 mtu 1500")
				l.router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
				pings(t, l.client, server4)
				pings(t, l.client, server6)
				links := l.router.Run(t, "ip", "-details", "link")
				if strings.Contains(links, "xdp") {
					t.Errorf("an XDP program stayed:\n%s", links)
				}
				addrs := l.router.Run(t, "ip", "addr", "show", "dev", "r1")
				if c.signal == syscall.SIGTERM && strings.Contains(addrs, "10.0.7.1") {
					t.Errorf("the configuration's address stayed:\n%s", addrs)
				}
				// And again, with whatever was left.
				l.router.Run(t, "sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
				run(t, l.router, "r0", "r1")
				ping(t, l.client, server4)
			})
		}
	}
}

// TestCapabilities: what is missing is said.
func TestCapabilities(t *testing.T) {
	need(t, "setpriv")
	l := newLine(t)
	socket := file(t, "x", "") + ".sock"
	out, code := command(t, l.router, "setpriv", "--bounding-set", "-net_admin,-net_raw,-bpf,-sys_admin",
		"--inh-caps", "-net_admin,-net_raw,-bpf,-sys_admin", millrace, "--socket", socket, "run", "r0", "r1")
	if code != 4 || !strings.Contains(out, "CAP_NET_ADMIN") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	if _, err := os.Stat(socket); err == nil {
		t.Error("the control socket stayed")
	}
}

// TestMistakes: a wrong file changes nothing, and the message has the place and the cure.
func TestMistakes(t *testing.T) {
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	before := r.do("config", "show")
	for text, want := range map[string]string{
		"ports:\n  - name: r0\n  - name: r1\n    adresses: [10.0.7.1/24]\n": `:4:5: .*adresses.*addresses`,
		"ports:\n  - name: r0\n    mtu: big\n":                              `:3:10: .*mtu`,
		"ports:\n  - name: r0\nroutes: [{to: 10.0.0.1/8, via: 10.0.2.2}]\n": `:3:15: .*10\.0\.0\.0/8`,
		"ports:\n  - name: r0\n    driver: afxpd\n":                         `:3:13: .*afxdp`,
	} {
		path := file(t, "bad.yaml", text)
		for _, c := range [][]string{{"config", "check", path}, {"config", "apply", path}, {"config", "diff", path}} {
			out, code := r.try(c...)
			if code != 1 {
				t.Errorf("%v: exit code %d: %s", c, code, out)
			}
			match(t, out, strings.ReplaceAll(path, ".", `\.`)+want)
		}
		if out, code := command(t, l.client, millrace, "--socket", path+".sock", "run", "--config", path); code != 1 {
			t.Errorf("run: exit code %d: %s", code, out)
		}
	}
	if after := r.do("config", "show"); after != before {
		t.Errorf("the configuration changed from\n%s\nto\n%s", before, after)
	}
	ping(t, l.client, server4)
	if out, code := command(t, l.client, millrace, "--socket", r.socket+"2", "run", "c1"); code != 4 || !strings.Contains(out, "c0") {
		t.Errorf("no such interface: exit code %d: %s", code, out)
	}
}
