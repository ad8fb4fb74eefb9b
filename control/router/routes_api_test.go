package router

import (
	"context"
	"fmt"
	"strings"
	"testing"

	v1 "millrace/control/api/v1"
)

func TestAPIRoutes(t *testing.T) {
	l := newLab(t)
	ip(t, l.server, "address add 198.51.100.1/32 dev lo")
	r := start(t, l.router, twoPorts+"vrfs: [{name: blue, table: 10}]\nrules: [from 192.0.2.77 lookup blue]\n")
	ctx := context.Background()
	q := &v1.Route{Prefix: "198.51.100.0/24", NextHops: []*v1.NextHop{{Address: "10.0.2.2"}}}
	if _, err := r.AddRoute(ctx, &v1.AddRouteRequest{Route: q}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.AddRoute(ctx, &v1.AddRouteRequest{Route: q}); err == nil {
		t.Error("added twice")
	}
	ping(t, l.client, "198.51.100.1", 2)
	x, err := r.ListRoutes(ctx, &v1.ListRoutesRequest{Source: "api"})
	if err != nil || x.Total != 1 || x.Routes[0].NextHops[0].Port != "r1" {
		t.Errorf("routes %v, %v", x, err)
	}
	for _, bad := range []*v1.Route{nil, {}, {Prefix: "10.0.0.1/8"}, {Prefix: "10.0.0.0/8"}, {Prefix: "10.0.0.0/8", Type: "odd"},
		{Prefix: "10.0.0.0/8", NextHops: []*v1.NextHop{{Address: "172.16.0.1"}}}, {Prefix: "10.0.0.0/8", NextHops: []*v1.NextHop{{Port: "eth7"}}}} {
		if _, err := r.AddRoute(ctx, &v1.AddRouteRequest{Route: bad}); err == nil {
			t.Errorf("added %v", bad)
		}
	}
	in10 := &v1.Route{Prefix: "198.51.100.0/24", TableName: "blue", Mtu: 1400, NextHops: []*v1.NextHop{{Address: "10.0.2.2"}}}
	if _, err := r.AddRoute(ctx, &v1.AddRouteRequest{Route: in10}); err != nil {
		t.Fatal(err)
	}
	in10.TableName = "red"
	if _, err := r.AddRoute(ctx, &v1.AddRouteRequest{Route: in10}); err == nil || !strings.Contains(err.Error(), "a VRF: blue") {
		t.Errorf("a table that is not there: %v", err)
	}
	for _, name := range []string{"10", "blue"} {
		x, err = r.ListRoutes(ctx, &v1.ListRoutesRequest{Source: "api", Table: name})
		if err != nil || x.Total != 1 || x.Routes[0].Table != 10 || x.Routes[0].Mtu != 1400 {
			t.Errorf("routes of table %s: %v, %v", name, x, err)
		}
		e, err := r.Explain(ctx, &v1.ExplainRequest{To: "198.51.100.1", TableName: name})
		if err != nil || e.Table != 10 || e.Mtu != 1400 {
			t.Errorf("explained by table %s: %v, %v", name, e, err)
		}
	}
	if e, err := r.Explain(ctx, &v1.ExplainRequest{To: "198.51.100.1"}); err != nil || e.Table != 254 || e.Mtu != 1500 {
		t.Errorf("explained by main: %v, %v", e, err)
	}
	if _, err := r.DelRoute(ctx, &v1.DelRouteRequest{Route: q}); err != nil {
		t.Error(err)
	}
	if _, err := r.DelRoute(ctx, &v1.DelRouteRequest{Route: q}); err == nil || !strings.Contains(err.Error(), "table 10") {
		t.Errorf("deleted from main though it is in table 10: %v", err)
	}
	// The kernel takes such an MTU; see fib.NextHop.
	ip(t, l.router, "route add 2001:db8:60::/48 via fe80::1 dev r1 mtu 60")
	ip(t, l.router, "route add 203.0.113.0/24 via 10.0.2.2 mtu 60")
	for to, mtu := range map[string]uint32{"2001:db8:60::1": 1280, "203.0.113.1": 68} {
		wait(t, to, func() error {
			if e, err := r.Explain(ctx, &v1.ExplainRequest{To: to}); err != nil || e.GetRoute().GetMtu() != mtu {
				return fmt.Errorf("%v, %v", e, err)
			}
			return nil
		})
	}
	in10.Table, in10.TableName = 10, ""
	if d, err := r.DelRoute(ctx, &v1.DelRouteRequest{Route: in10}); err != nil || d.Deleted != 1 {
		t.Errorf("deleted %v of table 10, %v", d, err)
	}
	if x, err = r.ListRoutes(ctx, &v1.ListRoutesRequest{Source: "api"}); err != nil || x.Total != 0 {
		t.Errorf("left are %v, %v", x, err)
	}
	if _, err := r.AddRoute(ctx, &v1.AddRouteRequest{Route: q}); err != nil {
		t.Fatal(err)
	}
	if d, err := r.DelRoute(ctx, &v1.DelRouteRequest{Route: q}); err != nil || d.Deleted != 1 {
		t.Errorf("deleted %v, %v", d, err)
	}
	if _, err := r.DelRoute(ctx, &v1.DelRouteRequest{Route: q}); err == nil {
		t.Error("deleted twice")
	}
	pings(t, l.client, "198.51.100.1", false)
}
