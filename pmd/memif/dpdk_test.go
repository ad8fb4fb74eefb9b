package memif

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"millrace/pmd"
)

// TestDPDK exchanges packets with DPDK's net_memif in both roles: testpmd swaps the MAC
// addresses and sends everything back.
func TestDPDK(t *testing.T) {
	testpmd, err := exec.LookPath("dpdk-testpmd")
	if err != nil {
		t.Skip("dpdk-testpmd is not installed (Debian: dpdk, librte-net-memif23)")
	}
	if os.Getuid() != 0 {
		t.Skip("dpdk-testpmd wants root")
	}
	for _, c := range []struct {
		role, theirs string
		abstract     bool
		longest      int
		args         string
	}{
		{"server", "client", false, 1514, ""},
		{"client", "server", false, 1514, ""},
		{"server", "client", true, 1514, ",secret=sesame"},
		{"client", "server", true, 9000, ",rsize=8"},
		{"server", "client", false, 9000, ",bsize=1024"},
		{"server", "client", false, 9000, ""},
	} {
		t.Run(fmt.Sprintf("%s/%d%s", c.role, c.longest, c.args), func(t *testing.T) {
			dir, err := os.MkdirTemp("", "memif") // TempDir's name has a comma of DPDK's in it
			if err != nil {
				t.Fatal(err)
			}
			defer os.RemoveAll(dir)
			path, theirs := filepath.Join(dir, "s"), ",socket-abstract=no"
			if c.abstract {
				path, theirs = fmt.Sprintf("@millrace-dpdk-%d", os.Getpid()), ",socket-abstract=yes"
			}
			cfg := pmd.Config{Role: c.role, Socket: path, ID: 3}
			if strings.Contains(c.args, "secret") {
				cfg.Secret = "sesame"
			}
			pool := newPool(t, 4096)
			p := open(t, cfg)
			cmd := exec.Command(testpmd, "--no-pci", "--no-huge", "-m", "256", "--no-telemetry", "--no-shconf", "-l", "0,1",
				"--vdev=net_memif0,id=3,role="+c.theirs+",socket="+strings.TrimPrefix(path, "@")+theirs+c.args,
				"--", "--forward-mode=macswap", "--auto-start", "--total-num-mbufs=4096", "--no-lsc-interrupt", "--no-mlockall",
				"--no-flush-rx") // else it discards what has come before it forwards
			var log lockedBuffer
			cmd.Stdout, cmd.Stderr = &log, &log
			in, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ended := make(chan error, 1)
			go func() { ended <- cmd.Wait() }()
			defer func() {
				in.Write([]byte("\n"))
				in.Close()
				select {
				case <-ended:
				case <-time.After(10 * time.Second):
					cmd.Process.Kill()
					<-ended
				}
				if t.Failed() {
					t.Logf("testpmd:\n%s\nours: %q", log.String(), p.Why())
				}
			}()
			wait(t, "link", func() bool {
				select {
				case err := <-ended:
					ended <- err
					t.Fatalf("testpmd ended: %v", err)
				default:
				}
				return p.Link().Up
			})
			e := start(t, p, pool)
			e.q.Rx(nil)
			e.echo(t, 5000, c.longest, func(int) {}, false)
			if s := p.Stats(); s.RxPackets != 5000 || s.TxPackets != 5000 || s.RxBad != 0 {
				t.Errorf("%+v", s)
			}
			in.Write([]byte("\n"))
			wait(t, "link down", down(p))
		})
	}
}

// lockedBuffer collects the output of a process.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
