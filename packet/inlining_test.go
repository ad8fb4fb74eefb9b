package packet

import (
	"os/exec"
	"regexp"
	"testing"
)

// TestInlined: what loops over packets use must be inlined into them.
func TestInlined(t *testing.T) {
	goTool, err := exec.LookPath("go")
	if err != nil {
		t.Skip("needs the go command: ", err)
	}
	out, err := exec.Command(goTool, "build", "-gcflags=-m", ".").CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	can := map[string]bool{}
	for _, m := range regexp.MustCompile(`can inline (\S+)`).FindAllSubmatch(out, -1) {
		can[string(m[1])] = true
	}
	for _, f := range []string{
		"At", "(*Mbuf).Index", "(*Mbuf).Data", "(*Mbuf).Bytes", "(*Mbuf).NextSeg", "(*Mbuf).SetNext", "(*Mbuf).Shared", "(*Mbuf).TailSpace",
		"Fold", "Add", "Update16", "Update32", "Pseudo4", "Mix", "MixBy", "Mix6", "Ports4", "Ports6",
		"IPv4.HeaderLen", "IPv4.Dst", "IPv6.Label", "Ethernet.Type",
	} {
		if !can[f] {
			t.Errorf("%s is not inlined", f)
		}
	}
}
