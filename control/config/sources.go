package config

import (
	"fmt"
	"net/netip"
	"path/filepath"
)

// routeFiles checks all but what is in the files, which the router reads.
func (k *checker) routeFiles() {
	seen := map[string]string{}
	for i := range k.c.Files {
		r, key := &k.c.Files[i], fmt.Sprintf("route-files[%d]", i)
		if !k.need(r.File != "", key, "file") {
			continue
		}
		if !filepath.IsAbs(r.File) {
			k.fail(key+".file", "%q is not an absolute path", r.File)
		}
		if o := seen[r.File]; o != "" {
			k.fail(key+".file", "%s is there already, as %s", r.File, o)
		}
		seen[r.File] = key
		if _, err := netip.ParseAddr(r.Peer); r.Peer != "" && err != nil {
			k.fail(key+".peer", "%q is not a peer's IP address", r.Peer)
		}
		k.fileVia(r, key)
	}
}

func (k *checker) fileVia(r *RouteFile, key string) {
	for i, n := range r.Via {
		vkey := fmt.Sprintf("%s.via[%d]", key, i)
		if n.Dev != "" {
			k.device(n.Dev, vkey)
		}
		switch {
		case !n.Addr.IsValid():
		case n.Addr.IsUnspecified() || n.Addr.IsMulticast():
			k.fail(vkey, "%s is not a unicast address", n.Addr)
		case k.addrs[n.Addr] != "":
			k.fail(vkey, "%s is the router itself (%s)", n.Addr, k.addrs[n.Addr])
		case n.Dev == "" && n.Addr.IsLinkLocalUnicast():
			k.fail(vkey, "%s is link-local: write `%s dev NAME`", n.Addr, n.Addr)
		}
	}
}

func (k *checker) fpm() {
	f := &k.c.FPM
	if f.Listen == "" {
		if f.Insecure {
			k.fail("fpm.insecure", "nothing listens: %q is missing", "listen")
		}
		return
	}
	a, err := netip.ParseAddrPort(f.Listen)
	switch {
	case err != nil:
		k.fail("fpm.listen", "%q is not an address with a port such as 127.0.0.1:2620", f.Listen)
	case !a.Addr().Unmap().IsLoopback() && !f.Insecure:
		k.fail("fpm.listen", "whoever reaches %s decides where packets go, because the protocol knows no authentication: listen on 127.0.0.1:%d, or add `insecure: true` where a firewall keeps others away", a, a.Port())
	}
}
