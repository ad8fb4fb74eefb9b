package api

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	v1 "millrace/control/api/v1"
)

// Metrics serves Prometheus' text format. Nothing is kept between scrapes: each
// reads the router's counters.
func Metrics(b Backend) http.Handler {
	r := prometheus.NewRegistry()
	r.MustRegister(&collector{b}, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError})
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("millrace_"+name, help, labels, nil)
}

var (
	mForwarding = desc("forwarding", "1 while the router forwards packets.")
	mInfo       = desc("build_info", "1, with the version that runs.", "version")
	mStart      = desc("start_time_seconds", "When the router started, in seconds since the epoch.")
	mRoutes     = desc("routes", "Routes in the forwarding table.", "family")
	mNeighbours = desc("neighbours", "Neighbours known.")

	mPortUp     = desc("port_up", "1 while the port's link is up.", "port", "driver", "mode")
	mPortSpeed  = desc("port_speed_bits_per_second", "Link speed; absent where it is unknown.", "port")
	mRxPackets  = desc("port_receive_packets_total", "Packets received.", "port")
	mRxBytes    = desc("port_receive_bytes_total", "Bytes received, whole frames without FCS.", "port")
	mTxPackets  = desc("port_transmit_packets_total", "Packets sent.", "port")
	mTxBytes    = desc("port_transmit_bytes_total", "Bytes sent, whole frames without FCS.", "port")
	mRxMissed   = desc("port_receive_missed_total", "Packets lost before the road saw them.", "port", "cause")
	mTxFailed   = desc("port_transmit_failed_total", "Packets that the port did not send.", "port", "cause")
	mLeft       = desc("road_exits_total", "Packets that left the road on the way: dropped, for the host, or held; and events of kind note.", "stage", "reason", "kind")
	mCalls      = desc("stage_calls_total", "Vectors that a stage handled.", "stage")
	mPackets    = desc("stage_packets_total", "Packets that a stage handled.", "stage")
	mClocks     = desc("stage_clocks_total", "Clocks that a stage spent while measuring was on.", "stage")
	mMeasured   = desc("stage_measured_packets_total", "Packets that a stage handled while measuring was on.", "stage")
	mHeld       = desc("stage_held_packets", "Packets that a stage holds.", "stage")
	mRounds     = desc("worker_rounds_total", "Poll rounds.", "worker", "core")
	mIdle       = desc("worker_idle_rounds_total", "Poll rounds that found nothing.", "worker", "core")
	mSleeps     = desc("worker_sleeps_total", "Sleeps.", "worker", "core")
	mBusy       = desc("worker_busy_clocks_total", "Clocks of rounds that found packets.", "worker", "core")
	mTotal      = desc("worker_clocks_total", "Clocks since the worker started.", "worker", "core")
	mWorkerPkts = desc("worker_packets_total", "Packets that entered the road.", "worker", "core")
)

var descs = []*prometheus.Desc{
	mForwarding, mInfo, mStart, mRoutes, mNeighbours, mPortUp, mPortSpeed, mRxPackets, mRxBytes, mTxPackets, mTxBytes, mRxMissed, mTxFailed,
	mLeft, mCalls, mPackets, mClocks, mMeasured, mHeld, mRounds, mIdle, mSleeps, mBusy, mTotal, mWorkerPkts,
}

type collector struct{ b Backend }

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	count := func(d *prometheus.Desc, n uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, x float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, x, labels...)
	}
	fail := func(d *prometheus.Desc, err error) { ch <- prometheus.NewInvalidMetric(d, err) }

	if s, err := c.b.GetStatus(ctx, &v1.GetStatusRequest{}); err != nil {
		fail(mForwarding, err)
	} else {
		gauge(mForwarding, b2f(s.Forwarding))
		gauge(mInfo, 1, s.Version)
		gauge(mStart, float64(s.StartedUnixNs)/1e9)
		gauge(mRoutes, float64(s.RoutesIpv4), "ipv4")
		gauge(mRoutes, float64(s.RoutesIpv6), "ipv6")
		gauge(mNeighbours, float64(s.Neighbours))
	}
	if l, err := c.b.ListPorts(ctx, &v1.ListPortsRequest{}); err != nil {
		fail(mPortUp, err)
	} else {
		for _, p := range l.Ports {
			gauge(mPortUp, b2f(p.Up), p.Name, p.Driver, p.Mode)
			if p.Mbps != 0 {
				gauge(mPortSpeed, float64(p.Mbps)*1e6, p.Name)
			}
			count(mRxPackets, p.RxPackets, p.Name)
			count(mRxBytes, p.RxBytes, p.Name)
			count(mTxPackets, p.TxPackets, p.Name)
			count(mTxBytes, p.TxBytes, p.Name)
			if p.Parent != "" {
				continue // rings are the parent's
			}
			count(mRxMissed, p.RxNoBuffer, p.Name, "no-buffer")
			count(mRxMissed, p.RxRingFull, p.Name, "ring-full")
			count(mRxMissed, p.RxBad, p.Name, "bad")
			count(mTxFailed, p.TxFull, p.Name, "queue-full")
			count(mTxFailed, p.TxFailed, p.Name, "failed")
		}
	}
	if l, err := c.b.ListDrops(ctx, &v1.ListDropsRequest{All: true}); err != nil {
		fail(mLeft, err)
	} else {
		for _, d := range l.Drops {
			count(mLeft, d.Count, d.Stage, d.Reason, d.Kind)
		}
	}
	if l, err := c.b.ListStages(ctx, &v1.ListStagesRequest{}); err != nil {
		fail(mCalls, err)
	} else {
		for _, s := range l.Stages {
			gauge(mHeld, float64(s.Held), s.Name)
			if s.Exit {
				continue
			}
			count(mCalls, s.Calls, s.Name)
			count(mPackets, s.Packets, s.Name)
			count(mClocks, s.Clocks, s.Name)
			count(mMeasured, s.Measured, s.Name)
		}
	}
	if l, err := c.b.ListWorkers(ctx, &v1.ListWorkersRequest{}); err != nil {
		fail(mRounds, err)
	} else {
		for _, w := range l.Workers {
			id, core := strconv.Itoa(int(w.Id)), strconv.Itoa(int(w.Core))
			count(mRounds, w.Rounds, id, core)
			count(mIdle, w.IdleRounds, id, core)
			count(mSleeps, w.Sleeps, id, core)
			count(mBusy, w.BusyClocks, id, core)
			count(mTotal, w.TotalClocks, id, core)
			count(mWorkerPkts, w.Packets, id, core)
		}
	}
}

func b2f(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
