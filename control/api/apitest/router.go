// Package apitest is a router made of fixed answers, for tests of what talks to one.
package apitest

import (
	"context"
	"fmt"
	"strings"
	"sync"

	"google.golang.org/protobuf/proto"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
)

// Router answers with its fields and records what it was asked. Its methods are safe for
// concurrent use; fields may be changed while none runs.
type Router struct {
	Status     *v1.Status
	Ports      *v1.Ports
	Stages     *v1.Stages
	Routes     *v1.Routes
	Neighbours *v1.Neighbours
	Drops      *v1.Drops
	Leaks      *v1.Leaks
	Workers    *v1.Workers
	Config     *v1.Config
	Applied    *v1.ApplyConfigResponse
	Traced     []*v1.TracedPacket // sent again and again until TraceRequest.Count
	Captured   []*v1.CaptureChunk
	Report     *v1.AuditReport
	Explained  *v1.Explanation
	Mroutes    *v1.Mroutes
	Rules      *v1.Rules
	FPM        *v1.FPM
	Files      *v1.RouteFiles
	Err        error // returned by every method when set

	mu    sync.Mutex
	calls []proto.Message
}

var _ api.Backend = (*Router)(nil)

// Calls are the requests so far.
func (r *Router) Calls() []proto.Message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.calls
}

func answer[M any](r *Router, req proto.Message, m M) (M, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, proto.Clone(req))
	if r.Err != nil {
		var none M
		return none, r.Err
	}
	return m, nil
}

func (r *Router) GetStatus(_ context.Context, q *v1.GetStatusRequest) (*v1.Status, error) {
	return answer(r, q, r.Status)
}

// ListPorts answers with the ports asked for, and ErrNotFound for one that there is not.
func (r *Router) ListPorts(_ context.Context, q *v1.ListPortsRequest) (*v1.Ports, error) {
	all, err := answer(r, q, r.Ports)
	if err != nil || len(q.Names) == 0 {
		return all, err
	}
	out := &v1.Ports{}
next:
	for _, n := range q.Names {
		for _, p := range all.Ports {
			if p.Name == n {
				out.Ports = append(out.Ports, p)
				continue next
			}
		}
		return nil, fmt.Errorf("%w: there is no port %q", api.ErrNotFound, n)
	}
	return out, nil
}

func (r *Router) ListStages(_ context.Context, q *v1.ListStagesRequest) (*v1.Stages, error) {
	return answer(r, q, r.Stages)
}

func (r *Router) ListRoutes(_ context.Context, q *v1.ListRoutesRequest) (*v1.Routes, error) {
	return answer(r, q, r.Routes)
}

func (r *Router) ListNeighbours(_ context.Context, q *v1.ListNeighboursRequest) (*v1.Neighbours, error) {
	return answer(r, q, r.Neighbours)
}

func (r *Router) ListDrops(_ context.Context, q *v1.ListDropsRequest) (*v1.Drops, error) {
	return answer(r, q, r.Drops)
}

func (r *Router) GetLeaks(_ context.Context, q *v1.GetLeaksRequest) (*v1.Leaks, error) {
	return answer(r, q, r.Leaks)
}

func (r *Router) ListWorkers(_ context.Context, q *v1.ListWorkersRequest) (*v1.Workers, error) {
	return answer(r, q, r.Workers)
}

func (r *Router) GetConfig(_ context.Context, q *v1.GetConfigRequest) (*v1.Config, error) {
	return answer(r, q, r.Config)
}

func (r *Router) ApplyConfig(_ context.Context, q *v1.ApplyConfigRequest) (*v1.ApplyConfigResponse, error) {
	return answer(r, q, r.Applied)
}

func (r *Router) Confirm(_ context.Context, q *v1.ConfirmRequest) (*v1.ConfirmResponse, error) {
	return answer(r, q, &v1.ConfirmResponse{})
}

func (r *Router) Rollback(_ context.Context, q *v1.RollbackRequest) (*v1.ApplyConfigResponse, error) {
	return answer(r, q, r.Applied)
}

func (r *Router) AddRoute(_ context.Context, q *v1.AddRouteRequest) (*v1.AddRouteResponse, error) {
	return answer(r, q, &v1.AddRouteResponse{})
}

func (r *Router) DelRoute(_ context.Context, q *v1.DelRouteRequest) (*v1.DelRouteResponse, error) {
	return answer(r, q, &v1.DelRouteResponse{Deleted: 1})
}

func (r *Router) ListMroutes(_ context.Context, q *v1.ListMroutesRequest) (*v1.Mroutes, error) {
	return answer(r, q, r.Mroutes)
}

func (r *Router) AddMroute(_ context.Context, q *v1.AddMrouteRequest) (*v1.AddMrouteResponse, error) {
	return answer(r, q, &v1.AddMrouteResponse{})
}

func (r *Router) DelMroute(_ context.Context, q *v1.DelMrouteRequest) (*v1.DelMrouteResponse, error) {
	return answer(r, q, &v1.DelMrouteResponse{})
}

func (r *Router) SetMeasure(_ context.Context, q *v1.SetMeasureRequest) (*v1.SetMeasureResponse, error) {
	return answer(r, q, &v1.SetMeasureResponse{})
}

func (r *Router) Audit(_ context.Context, q *v1.AuditRequest) (*v1.AuditReport, error) {
	return answer(r, q, r.Report)
}

func (r *Router) GetFPM(_ context.Context, q *v1.GetFPMRequest) (*v1.FPM, error) {
	return answer(r, q, r.FPM)
}

func (r *Router) ListRouteFiles(_ context.Context, q *v1.ListRouteFilesRequest) (*v1.RouteFiles, error) {
	return answer(r, q, r.Files)
}

func (r *Router) LoadRoutes(_ context.Context, q *v1.LoadRoutesRequest) (*v1.LoadRoutesResponse, error) {
	return answer(r, q, &v1.LoadRoutesResponse{Routes: 1_042_325, DurationNs: 1_500_000_000})
}

func (r *Router) UnloadRoutes(_ context.Context, q *v1.UnloadRoutesRequest) (*v1.UnloadRoutesResponse, error) {
	return answer(r, q, &v1.UnloadRoutesResponse{Routes: 1_042_325})
}

// Explain answers for the first route, and with none for addresses in 203.0.113.0/24.
func (r *Router) Explain(_ context.Context, q *v1.ExplainRequest) (*v1.Explanation, error) {
	if strings.HasPrefix(q.To, "203.0.113.") {
		return answer(r, q, &v1.Explanation{Exit: "lookup/no-route", ExitDoc: "No route covers the destination."})
	}
	return answer(r, q, r.Explained)
}

func (r *Router) ListRules(_ context.Context, q *v1.ListRulesRequest) (*v1.Rules, error) {
	return answer(r, q, r.Rules)
}

// Trace sends Count packets, or goes on until the caller leaves.
func (r *Router) Trace(ctx context.Context, q *v1.TraceRequest, send func(*v1.TracedPacket) error) error {
	if _, err := answer(r, q, 0); err != nil {
		return err
	}
	for i := uint32(0); q.Count == 0 || i < q.Count; i++ {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := send(r.Traced[int(i)%len(r.Traced)]); err != nil {
			return err
		}
	}
	return nil
}

// Capture sends Captured.
func (r *Router) Capture(ctx context.Context, q *v1.CaptureRequest, send func(*v1.CaptureChunk) error) error {
	if _, err := answer(r, q, 0); err != nil {
		return err
	}
	for _, c := range r.Captured {
		if err := send(c); err != nil {
			return err
		}
	}
	return nil
}

// New is a router with two ports, a VLAN, some routes and some drops.
func New() *Router {
	return &Router{
		Status: &v1.Status{
			Forwarding: true, Version: "v1.2.3", Pid: 4242, StartedUnixNs: 1_767_225_600_000_000_000, UptimeNs: 93_784_000_000_000, ConfigPath: "/etc/millrace.yaml",
			Ports: 2, PortsUp: 1, Workers: 2, RoutesIpv4: 3, RoutesIpv6: 1, Neighbours: 2, ClockHz: 2_000_000_000, Reasons: []string{"lan1: link down"},
		},
		Ports: &v1.Ports{Ports: []*v1.Port{
			{
				Name: "eth0", Index: 1, Driver: "afxdp", Mode: "native copy", Why: []string{"zero-copy: operation not supported"}, Up: true, Mbps: 10000, Mtu: 1500,
				Mac: "02:00:00:00:00:01", Addresses: []string{"192.0.2.1/24", "2001:db8::1/64"}, Queues: 2, Host: "kernel",
				RxPackets: 18_446_744_073_709_551_000, RxBytes: 1_000_000, TxPackets: 990, TxBytes: 64_000, RxNoBuffer: 3, RxRingFull: 4, TxFull: 5,
			},
			{Name: "eth0.100", Parent: "eth0", Vlan: 100, Up: true, Mbps: 10000, Mtu: 1500, Mac: "02:00:00:00:00:01", Addresses: []string{"198.51.100.1/24"}, Host: "kernel", RxPackets: 7, TxPackets: 8},
			{Name: "lan1", Index: 2, Driver: "memif", Mode: "server", Mtu: 9000, Mac: "02:00:00:00:00:02", Queues: 1, Host: "tap"},
		}},
		Stages: &v1.Stages{Measuring: true, Stages: []*v1.Stage{
			{Name: "classify", Doc: "Finds the L3 header and the interface.", Lane: "any", Calls: 10, Packets: 1000, Clocks: 12_300, Measured: 1000},
			{Name: "lookup4", Doc: "Longest prefix match.", Lane: "ipv4", Calls: 9, Packets: 900, Clocks: 18_000, Measured: 900},
			{Name: "tx", Doc: "Hands packets to the ports.", Lane: "any", Calls: 10, Packets: 980},
			{Name: "neighbour", Doc: "Holds packets until the neighbour's address is known.", Lane: "exits", Exit: true, Held: 2},
		}},
		Routes: &v1.Routes{Total: 6, Routes: []*v1.Route{
			{Prefix: "0.0.0.0/0", Type: "unicast", Metric: 100, Source: "kernel", Protocol: "dhcp", Table: 254, NextHops: []*v1.NextHop{{Address: "192.0.2.254", Port: "eth0", Resolved: true, Mac: "02:00:00:00:00:fe"}}},
			{Prefix: "10.0.0.0/8", Type: "unicast", Source: "config", NextHops: []*v1.NextHop{{Address: "192.0.2.9", Port: "eth0", Weight: 2}, {Address: "192.0.2.10", Port: "eth0", Resolved: true, Mac: "02:00:00:00:00:10"}}},
			{Prefix: "192.0.2.0/24", Type: "unicast", Source: "connected", NextHops: []*v1.NextHop{{Port: "eth0"}}},
			{Prefix: "2001:db8:bad::/48", Type: "blackhole", Source: "api"},
			{Prefix: "10.9.0.0/16", Type: "unicast", Source: "kernel", Protocol: "static", Metric: 5, Table: 10, Mtu: 1400, NextHops: []*v1.NextHop{{Address: "192.0.2.9", Port: "eth0"}}},
		}},
		Mroutes: &v1.Mroutes{Mroutes: []*v1.Mroute{
			{Group: "239.1.1.1", Source: "192.0.2.9", From: "eth0", To: []*v1.MrouteOut{{Port: "lan1"}, {Port: "eth0.100", Ttl: 16}}, Origin: "kernel", State: "forwarding",
				Packets: 1234, Bytes: 1_234_000, WrongInterface: 2, PacketsPerSecond: 100, BitsPerSecond: 800_000, SinceUnixNs: 1_767_225_600_000_000_000},
			{Group: "239.1.1.2", From: "eth0", To: []*v1.MrouteOut{{Port: "lan2"}}, Origin: "config", State: "waiting", Why: "there is no interface lan2"},
			{Group: "ff0e::1", Source: "2001:db8::9", Origin: "kernel", State: "unresolved"},
		}},
		Rules: &v1.Rules{Rules: []*v1.Rule{
			{Family: "ipv4", Text: "from all lookup local", Table: 255, Source: "standard"},
			{Family: "ipv4", Pref: 100, Text: "from 192.0.2.0/24 lookup 10", Table: 10, Source: "config"},
			{Family: "ipv4", Pref: 200, Text: "from all tun_id 7 lookup 11", Table: 11, Source: "kernel", Why: "tun_id is not supported"},
			{Family: "ipv4", Pref: 32766, Text: "from all lookup main", Table: 254, Source: "standard"},
			{Family: "ipv6", Pref: 32766, Text: "from all lookup main", Table: 254, Source: "standard"},
		}},
		Explained: &v1.Explanation{
			Rule: "lookup blue", Pref: 100, Table: 10, Group: 7, Hash: "l4", Buckets: 32, Bucket: 13, Adjacency: 3, Port: "eth0", Mtu: 1500, AgeNs: 5_000_000_000,
			Route: &v1.Route{Prefix: "10.0.0.0/8", Type: "unicast", Source: "config", Table: 10, NextHops: []*v1.NextHop{{Address: "192.0.2.9", Port: "eth0", Weight: 2}, {Address: "192.0.2.10", Port: "eth0", Resolved: true, Mac: "02:00:00:00:00:10"}}},
			Members: []*v1.Member{
				{Address: "192.0.2.9", Port: "eth0", Weight: 2, State: "unresolved"},
				{Address: "192.0.2.10", Port: "eth0", Weight: 1, Buckets: 32, State: "reachable", Mac: "02:00:00:00:00:10", Chosen: true},
			},
		},
		Report: &v1.AuditReport{
			Faults: 1, Notes: 1, KernelRoutes: 12, OtherRoutes: 3, TableEntries: 20, Groups: 4, Neighbours: 2,
			StartedUnixNs: 1_767_225_600_000_000_000, DurationNs: 1_500_000, CleanUnixNs: 1_767_225_540_000_000_000,
			Differences: []*v1.Difference{
				{What: "route", Name: "203.0.113.0/24", Source: "kernel", Want: "via 192.0.2.9 dev eth0", SinceUnixNs: 1_767_225_570_000_000_000, Why: "a change of the forwarding table failed: table full"},
				{What: "route", Name: "by wg0", Source: "kernel", Want: "1 route such as 198.18.0.0/15", Have: "unreachable", SinceUnixNs: 1_767_222_000_000_000_000, Why: "it is none of Millrace's ports", Note: true},
			},
		},
		FPM: &v1.FPM{
			Listen: "127.0.0.1:2620", Prefixes: 1003, Waiting: 2, Applied: 5120, Refused: 1, Error: "next-hop groups: table full", Connections: 3,
			Clients: []*v1.FPMClient{{
				Name: "127.0.0.1:41234", SinceUnixNs: 1_767_225_600_000_000_000, Routes: 1000, Objects: 12,
				Counts: &v1.FPMCounts{Bytes: 70_000, Frames: 1100, Added: 1050, Removed: 50, Objects: 14, Kernel: 4, Tables: 2},
			}},
			Stale: []*v1.StaleRoutes{{Name: "127.0.0.1:41200", Routes: 3, SinceUnixNs: 1_767_225_590_000_000_000, UntilUnixNs: 1_767_225_710_000_000_000}},
			Ended: []*v1.FPMEnd{{Name: "127.0.0.1:41200", AtUnixNs: 1_767_225_590_000_000_000, Why: "closed by the daemon"}},
			Total: &v1.FPMCounts{Bytes: 140_000, Frames: 2200, Added: 2100, Removed: 97, Objects: 28, Kernel: 8, Tables: 2},
		},
		Files: &v1.RouteFiles{Files: []*v1.RouteFile{
			{File: "/var/lib/rib.mrt.gz", Source: "config", State: "loaded", Routes: 1_042_325, Unreachable: 17, LoadedUnixNs: 1_767_225_600_000_000_000},
			{File: "/tmp/x.txt", Source: "config", State: "failed", Error: "/tmp/x.txt:3: \"10.0.0/8\" is not a prefix"},
		}},
		Neighbours: &v1.Neighbours{Neighbours: []*v1.Neighbour{
			{Address: "192.0.2.9", Port: "eth0", State: "incomplete", Source: "kernel", Held: 2},
			{Address: "192.0.2.254", Port: "eth0", Mac: "02:00:00:00:00:fe", State: "reachable", Source: "kernel"},
		}},
		Drops: &v1.Drops{Drops: []*v1.Drop{
			{Stage: "lookup4", Reason: "no-route", Doc: "No route leads to the destination.", Kind: "drop", Count: 17},
			{Stage: "tx", Reason: "queue-full", Doc: "The port's transmit queue was full.", Kind: "drop", Count: 5},
			{Stage: "classify", Reason: "not-ip", Doc: "Not an IP packet.", Kind: "host", Count: 3},
		}},
		Leaks: &v1.Leaks{
			Received: 1000, Created: 2, Sent: 980, ToHost: 3, Dropped: 17, Held: []*v1.Held{{Place: "neighbour", Packets: 2}, {Place: "handoff"}}, Ok: true,
			Pools: []*v1.Pool{{Name: "main", Size: 65536, Free: 61438, InPorts: 4096, InPackets: 2, Pages: "2 MiB"}},
		},
		Workers: &v1.Workers{Workers: []*v1.Worker{
			{Id: 0, Core: 2, NumaNode: 0, Rounds: 1000, IdleRounds: 900, Sleeps: 12, BusyClocks: 50_000, TotalClocks: 1_000_000, Packets: 600, Queues: []string{"eth0/0", "lan1/0"}, Poll: "adaptive"},
			{Id: 1, Core: -1, NumaNode: -1, Rounds: 10, Poll: "busy"},
		}},
		Config:  &v1.Config{Yaml: "ports:\n  - name: eth0\n", Path: "/etc/millrace.yaml"},
		Applied: &v1.ApplyConfigResponse{Applied: true, Changes: []string{"port eth0: mtu 1500 -> 9000"}},
		Traced: []*v1.TracedPacket{
			{
				TimeUnixNs: 1_767_225_600_123_456_000, From: "eth0", Length: 98, Summary: "192.0.2.9 > 10.0.0.1 ICMP echo request",
				Lines: []*v1.TraceLine{{Stage: "classify", Text: "IPv4 on eth0"}, {Stage: "lookup4", Text: "10.0.0.0/8"}, {Stage: "tx"}}, Fate: "sent lan1",
			},
			{TimeUnixNs: 1_767_225_600_223_456_000, Worker: 1, From: "lan1", Length: 60, Summary: "10.0.0.1 > 203.0.113.5 UDP", Lines: []*v1.TraceLine{{Stage: "classify", Text: "IPv4 on lan1"}}, Fate: "drop lookup4/no-route", Doc: "No route leads to the destination."},
		},
		Captured: []*v1.CaptureChunk{{Data: []byte("\n\r\r\nblock one"), Packets: 1}, {Data: []byte("block two"), Packets: 3, Lost: 1}},
	}
}
