// Package api is the control interface of a running router: the services of
// package v1 (gRPC and JSON by Connect), Prometheus metrics and pprof, on a UNIX
// socket.
//
// The router implements Backend and calls Serve; tools call Dial.
package api

import (
	"context"
	"errors"

	v1 "millrace/control/api/v1"
)

// Backend is what a router does for the service, method by method of the schema.
// Methods are called concurrently and must return soon after ctx ends. Requests
// are never nil. Messages that a method returned belong to the caller.
//
// Errors that wrap one of ErrInvalid, ErrNotFound, ErrExists, ErrConflict or
// ErrNotSupported reach the client with that meaning; all others are internal.
// Their text is for the operator and says what to do.
type Backend interface {
	GetStatus(context.Context, *v1.GetStatusRequest) (*v1.Status, error)
	ListPorts(context.Context, *v1.ListPortsRequest) (*v1.Ports, error)
	ListStages(context.Context, *v1.ListStagesRequest) (*v1.Stages, error)
	ListRoutes(context.Context, *v1.ListRoutesRequest) (*v1.Routes, error)
	ListNeighbours(context.Context, *v1.ListNeighboursRequest) (*v1.Neighbours, error)
	ListDrops(context.Context, *v1.ListDropsRequest) (*v1.Drops, error)
	GetLeaks(context.Context, *v1.GetLeaksRequest) (*v1.Leaks, error)
	ListWorkers(context.Context, *v1.ListWorkersRequest) (*v1.Workers, error)

	// Trace and Capture call send from one goroutine at a time until they are
	// done, ctx ends or send fails, and return that error. send may block for
	// as long as the client does not read: it must not be called on a worker.
	Trace(ctx context.Context, r *v1.TraceRequest, send func(*v1.TracedPacket) error) error
	Capture(ctx context.Context, r *v1.CaptureRequest, send func(*v1.CaptureChunk) error) error

	GetConfig(context.Context, *v1.GetConfigRequest) (*v1.Config, error)
	ApplyConfig(context.Context, *v1.ApplyConfigRequest) (*v1.ApplyConfigResponse, error)
	Confirm(context.Context, *v1.ConfirmRequest) (*v1.ConfirmResponse, error)
	Rollback(context.Context, *v1.RollbackRequest) (*v1.ApplyConfigResponse, error)
	AddRoute(context.Context, *v1.AddRouteRequest) (*v1.AddRouteResponse, error)
	DelRoute(context.Context, *v1.DelRouteRequest) (*v1.DelRouteResponse, error)
	SetMeasure(context.Context, *v1.SetMeasureRequest) (*v1.SetMeasureResponse, error)

	GetFPM(context.Context, *v1.GetFPMRequest) (*v1.FPM, error)
	ListRouteFiles(context.Context, *v1.ListRouteFilesRequest) (*v1.RouteFiles, error)
	LoadRoutes(context.Context, *v1.LoadRoutesRequest) (*v1.LoadRoutesResponse, error)
	UnloadRoutes(context.Context, *v1.UnloadRoutesRequest) (*v1.UnloadRoutesResponse, error)

	Audit(context.Context, *v1.AuditRequest) (*v1.AuditReport, error)
	Explain(context.Context, *v1.ExplainRequest) (*v1.Explanation, error)
	ListRules(context.Context, *v1.ListRulesRequest) (*v1.Rules, error)

	ListMroutes(context.Context, *v1.ListMroutesRequest) (*v1.Mroutes, error)
	AddMroute(context.Context, *v1.AddMrouteRequest) (*v1.AddMrouteResponse, error)
	DelMroute(context.Context, *v1.DelMrouteRequest) (*v1.DelMrouteResponse, error)
}

// Meanings of errors, for errors.Is on both sides of the socket.
var (
	ErrInvalid      = errors.New("invalid request")
	ErrNotFound     = errors.New("not found")
	ErrExists       = errors.New("exists already")
	ErrConflict     = errors.New("not in this state") // such as Confirm with nothing to confirm
	ErrNotSupported = errors.New("not supported")
)
