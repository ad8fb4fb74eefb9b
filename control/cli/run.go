package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"golang.org/x/sys/unix"

	"millrace/control/api"
	v1 "millrace/control/api/v1"
	"millrace/control/config"
)

func (a *app) run() *cobra.Command {
	var file, level string
	c := &cobra.Command{
		Use:     "run [--config FILE] [INTERFACE...]",
		Short:   "Forward packets between interfaces, until stopped",
		GroupID: groupRun,
		Long: `Forwards packets between the interfaces named, or the ports of a configuration file
(by default ` + config.DefaultPath + `, where it exists and no interfaces are named).

The kernel keeps the interfaces, their addresses and everything that is addressed to
this machine: ping, SSH and routing daemons go on working. Packets for others are taken
over. Routes and neighbours come from the kernel, as they change, and from the file.

Ctrl-C or SIGTERM stops the router and leaves the interfaces as they were; SIGHUP
reads the file again and applies what changed. Under systemd use Type=notify.

It needs the capabilities CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF and CAP_IPC_LOCK, and gives
all others up once it forwards: run it as root, or see ` + "`millrace doctor`" + `.`,
		Example: `  sudo millrace run eth0 eth1
  sudo millrace run --config /etc/millrace.yaml
  sudo millrace run --socket /run/lab.sock --config lab.yaml`,
		RunE: func(c *cobra.Command, names []string) error {
			cfg, err := loadFor(file, names)
			if err != nil {
				return err
			}
			if level != "" && !slices.Contains([]string{"debug", "info", "warn", "error"}, level) {
				return usage("--log-level %s: debug, info, warn or error", level)
			}
			// What the command line says is not part of the configuration: applying the
			// same file later changes nothing.
			socket := cfg.API.Socket
			if c.Flags().Changed("socket") || socket == "" {
				socket = a.socket
			}
			return a.runRouter(c.Context(), cfg, socket, cmp.Or(level, cfg.Log.Level))
		},
	}
	c.Flags().StringVarP(&file, "config", "c", "", "configuration file")
	c.Flags().StringVar(&level, "log-level", "", "debug, info, warn or error; instead of the file's")
	c.ValidArgsFunction = func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return interfaceNames(), cobra.ShellCompDirectiveNoFileComp
	}
	return c
}

func interfaceNames() []string {
	ifs, _ := net.Interfaces() // completion: nothing to offer on error
	var names []string
	for _, i := range ifs {
		if i.Flags&net.FlagLoopback == 0 {
			names = append(names, i.Name)
		}
	}
	return names
}

// loadFor is the configuration that a command line asks for.
func loadFor(file string, names []string) (*config.Config, error) {
	switch {
	case file != "" && len(names) != 0:
		return nil, usage("interfaces and --config together: list the interfaces in %s", file)
	case file != "":
		return config.Load(file)
	case len(names) != 0:
		cfg, err := config.FromInterfaces(names)
		if err != nil {
			return nil, usage("%w", err)
		}
		return cfg, nil
	}
	cfg, err := config.Load(config.DefaultPath)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, usage("nothing to run: name interfaces (`millrace run eth0 eth1`), or write %s (`millrace config sample` prints one); this machine has %v", config.DefaultPath, interfaceNames())
	}
	return cfg, err
}

func newLogger(level string) (*zap.Logger, zap.AtomicLevel, error) {
	l, err := zap.ParseAtomicLevel(level)
	if err != nil {
		return nil, l, err
	}
	zc := zap.NewProductionConfig()
	zc.Level = l
	zc.Encoding = "console"
	zc.DisableCaller, zc.DisableStacktrace = true, true
	zc.EncoderConfig.EncodeTime = zapcore.ISO8601TimeEncoder
	zc.EncoderConfig.ConsoleSeparator = " "
	if os.Getenv("JOURNAL_STREAM") != "" {
		zc.EncoderConfig.TimeKey = "" // the journal has its own
	}
	log, err := zc.Build()
	return log, l, err
}

func (a *app) runRouter(ctx context.Context, cfg *config.Config, socket, logLevel string) error {
	if a.NewRouter == nil {
		return errors.New("this build cannot run a router")
	}
	log, level, err := newLogger(logLevel)
	if err != nil {
		return err
	}
	defer log.Sync() //nolint:errcheck // standard error cannot always be synced
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	l, err := api.Listen(socket)
	if err != nil {
		return err
	}
	defer l.Close()
	r, err := a.NewRouter(cfg, log, level)
	if err != nil {
		return err
	}
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	stop := make(chan os.Signal, 2)
	signal.Notify(stop, syscall.SIGINT, syscall.SIGTERM)
	defer signal.Stop(stop)

	failed := make(chan error, 2)
	go func() { failed <- l.Serve(ctx, r) }()
	servers := 1
	if cfg.Metrics.Listen != "" {
		servers++
		go func() { failed <- api.ServeMetrics(ctx, cfg.Metrics.Listen, r) }()
	}
	done := make(chan error, 1)
	go func() {
		done <- r.Run(ctx, func() {
			if !a.keepPrivileges {
				if err := dropPrivileges(); err != nil {
					log.Warn("privileges kept", zap.Error(err))
				}
			}
			log.Info("forwarding", zap.String("socket", socket), zap.Int("ports", len(cfg.Ports)))
			notify(log, "READY=1\nSTATUS=forwarding")
		})
	}()
	var cause error
	var stopping time.Time
	for {
		select {
		case err := <-done:
			cancel()
			for range servers {
				if e := <-failed; err == nil {
					err = e
				}
			}
			if cause != nil {
				return cause
			}
			return err
		case err := <-failed:
			servers--
			if err != nil && cause == nil {
				cause = err
				cancel()
			}
		case s := <-stop:
			if ctx.Err() != nil {
				if time.Since(stopping) < time.Second {
					continue // the same wish twice: timeout(1) and shells tell the process and its group
				}
				return fmt.Errorf("second %v: gave up waiting for the router to stop", s)
			}
			stopping = time.Now()
			log.Info("stopping", zap.Stringer("signal", s))
			notify(log, "STOPPING=1")
			cancel()
		case <-hup:
			go reload(ctx, r, cfg.File(), log)
		}
	}
}

// reload applies the file again.
func reload(ctx context.Context, r Router, file string, log *zap.Logger) {
	notify(log, fmt.Sprintf("RELOADING=1\nMONOTONIC_USEC=%d", monotonic()/1000))
	defer notify(log, "READY=1")
	text, err := os.ReadFile(file)
	if err != nil {
		log.Error("reload: configuration unchanged, no file to read", zap.Error(err))
		return
	}
	res, err := r.ApplyConfig(ctx, &v1.ApplyConfigRequest{Yaml: string(text), Path: file})
	switch {
	case err != nil:
		log.Error("reload: configuration unchanged", zap.Error(err))
	case !res.Applied && len(res.NeedRestart) > 0:
		log.Error("reload: configuration unchanged, it needs a restart", zap.Strings("because", res.NeedRestart))
	default:
		log.Info("reload", zap.Strings("changes", res.Changes))
	}
}

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return 0
	}
	return ts.Nano()
}

// notify tells systemd about the service's state (sd_notify(3)); without systemd it does nothing.
func notify(log *zap.Logger, state string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err == nil {
		_, err = c.Write([]byte(state))
		c.Close()
	}
	if err != nil {
		log.Warn("systemd was not told", zap.String("state", state), zap.Error(err))
	}
}
