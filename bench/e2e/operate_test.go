package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func match(t *testing.T, out, pattern string) {
	t.Helper()
	if !regexp.MustCompile(pattern).MatchString(out) {
		t.Errorf("no %q in:\n%s", pattern, out)
	}
}

func TestStatusCodes(t *testing.T) {
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	match(t, r.do("show", "status"), `forwarding +yes`)
	if out, code := command(t, l.router, millrace, "--socket", r.socket+"x", "show", "status"); code != 3 {
		t.Errorf("no router: exit code %d: %s", code, out)
	}
	if out, code := r.try("show", "statsu"); code != 2 || !strings.Contains(out, "status") {
		t.Errorf("wrong command: exit code %d: %s", code, out)
	}
	r.stop()
	if out, code := r.try("show", "status"); code != 3 {
		t.Errorf("stopped: exit code %d: %s", code, out)
	}
}

// TestApply: a configuration is changed and taken back while others' packets flow.
func TestApply(t *testing.T) {
	l := newLine(t)
	ip(t, l.server, "addr add 203.0.113.1/32 dev lo")
	old := "ports: [{name: r0}, {name: r1}]\n"
	r := runYAML(t, l.router, old)
	ping(t, l.client, server4)
	s := startStream(t, l.client, server4)
	next := file(t, "new.yaml", old+"routes: [{to: 203.0.113.0/24, via: 10.0.2.2}]\n")
	r.do("config", "check", next)
	match(t, r.do("config", "diff", next), `203\.0\.113\.0/24`)
	silent(t, l.client, "203.0.113.1")
	r.do("config", "apply", "--confirm", "3s", next)
	pings(t, l.client, "203.0.113.1")
	eventually(t, "the way back", func() error {
		if out := r.do("config", "show"); strings.Contains(out, "203.0.113.0") {
			return errors.New(out)
		}
		return nil
	})
	silent(t, l.client, "203.0.113.1")
	r.do("config", "apply", "--confirm", "60s", next)
	r.do("config", "confirm")
	ping(t, l.client, "203.0.113.1")
	match(t, r.do("config", "diff", next), "no differences")
	r.do("config", "rollback")
	silent(t, l.client, "203.0.113.1")
	if out, code := r.try("config", "apply", file(t, "pool.yaml", old+"pool: {buffers: 8192}\n")); code != 1 || !strings.Contains(out, "restart") {
		t.Errorf("a change that needs a restart: exit code %d: %s", code, out)
	}
	if n := s.lost(); n != 0 {
		t.Errorf("%d packets between untouched ports were lost", n)
	}
}

// TestPortComes: a port is added and removed while others forward.
func TestPortComes(t *testing.T) {
	l := newLine(t)
	r := runYAML(t, l.router, "ports: [{name: r0}]\n")
	silent(t, l.client, server4)
	s := startStream(t, l.client, routerC4)
	r.do("config", "apply", file(t, "two.yaml", "ports: [{name: r0}, {name: r1}]\n"))
	pings(t, l.client, server4)
	pings(t, l.client, server6)
	r.do("config", "apply", file(t, "one.yaml", "ports: [{name: r0}]\n"))
	silent(t, l.client, server4)
	if n := s.lost(); n != 0 {
		t.Errorf("%d packets of the untouched port were lost", n)
	}
}

func TestSetRoute(t *testing.T) {
	l := newLine(t)
	ip(t, l.server, "addr add 203.0.113.1/32 dev lo", "addr add 2001:db8:3::1/128 dev lo")
	r := run(t, l.router, "r0", "r1")
	for _, c := range []struct{ to, prefix, via string }{
		{"203.0.113.1", "203.0.113.0/24", server4}, {"2001:db8:3::1", "2001:db8:3::/48", server6},
	} {
		silent(t, l.client, c.to)
		r.do("set", "route", "add", c.prefix, "via", c.via)
		ping(t, l.client, c.to)
		match(t, r.do("show", "routes", c.to), regexp.QuoteMeta(c.prefix))
		r.do("set", "route", "del", c.prefix)
		silent(t, l.client, c.to)
		if out, code := r.try("set", "route", "del", c.prefix); code != 4 {
			t.Errorf("deleted twice: exit code %d: %s", code, out)
		}
	}
}

// TestJSON: everything that is shown can be read by programs.
func TestJSON(t *testing.T) {
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	ping(t, l.client, server4)
	silent(t, l.client, "203.0.113.1")
	for _, what := range []string{"status", "ports", "stages", "path", "routes", "neighbours", "drops", "leaks", "workers"} {
		out := r.do("show", what, "--json")
		var v map[string]any
		if err := json.Unmarshal([]byte(out), &v); err != nil || len(v) == 0 {
			t.Errorf("show %s --json: %v\n%s", what, err, out)
		}
		if text := r.do("show", what); strings.TrimSpace(text) == "" {
			t.Errorf("show %s prints nothing", what)
		}
	}
	match(t, r.do("show", "drops"), `lookup/no-route`)
	match(t, r.do("top", "--once"), `r0`)
	out, code := r.try("doctor", "r0", "r1")
	if code != 0 && code != 1 {
		t.Errorf("doctor: exit code %d\n%s", code, out)
	}
	match(t, out, `(?i)xdp`)
}

// watch starts a command that watches packets, and sends an echo request to `to` until it ends.
func (r *router) watch(l *line, to string, args ...string) string {
	r.t.Helper()
	c, out := background(r.t, r.ns, append([]string{millrace, "--socket", r.socket}, args...)...)
	done := make(chan error, 1)
	go func() { done <- c.Wait() }()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		command(r.t, l.client, "ping", "-n", "-c", "1", "-W", "1", to)
		select {
		case err := <-done:
			if err != nil {
				r.t.Fatalf("%v: %v\n%s", args, err, out)
			}
			return out.String()
		default:
		}
	}
	r.t.Fatalf("%v saw nothing\n%s", args, out)
	return ""
}

func TestTrace(t *testing.T) {
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	out := r.watch(l, "203.0.113.1", "trace", "-n", "1", "--drops", "host", "203.0.113.1")
	match(t, out, `lookup/no-route`)
	match(t, out, `No route covers the destination`)
	match(t, r.watch(l, server4, "trace", "-n", "1", "icmp"), `10\.0\.1\.2 > 10\.0\.2\.2`)
	out, code := r.try("trace", "-n", "1", "no", "such", "filter")
	if code == 0 {
		t.Error("a wrong filter is no error")
	}
	match(t, out, `filter|syntax|parse`)
}

func TestCapture(t *testing.T) {
	need(t, "tcpdump")
	l := newLine(t)
	r := run(t, l.router, "r0", "r1")
	dir := filepath.Dir(file(t, "x", ""))
	path := filepath.Join(dir, "all.pcapng")
	r.watch(l, server4, "capture", "-w", path, "-n", "4", "icmp")
	out, code := command(t, l.router, "tcpdump", "-nr", path)
	if code != 0 {
		t.Errorf("tcpdump: %s", out)
	}
	match(t, out, `10\.0\.1\.2 > 10\.0\.2\.2: ICMP echo request`)
	match(t, out, `10\.0\.2\.2 > 10\.0\.1\.2: ICMP echo reply`)

	path = filepath.Join(dir, "drops.pcapng")
	r.watch(l, "203.0.113.1", "capture", "--drops", "-w", path, "-n", "2")
	if out, code := command(t, l.router, "tcpdump", "-nr", path); code != 0 || strings.Count(out, "203.0.113.1") != 2 {
		t.Errorf("tcpdump: %s", out)
	}
	t.Run("tshark", func(t *testing.T) {
		need(t, "tshark")
		out, code := command(t, l.router, "tshark", "-r", path, "-T", "fields", "-e", "frame.comment", "-e", "ip.dst")
		if code != 0 || strings.Count(out, "lookup/no-route") != 2 || !strings.Contains(out, "203.0.113.1") {
			t.Errorf("tshark: exit code %d\n%s", code, out)
		}
	})
	if st, err := os.Stat(path); err != nil || st.Size() == 0 {
		t.Error(st, err)
	}
}
