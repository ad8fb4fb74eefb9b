// Millrace is a fast packet router: see `millrace --help`.
package main

import (
	"os"

	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"millrace/bench"
	"millrace/bench/demo"
	"millrace/control/cli"
	"millrace/control/config"
	"millrace/control/router"
)

// version is set by the linker: -ldflags "-X main.version=v1.2.3".
var version = "devel"

func main() {
	os.Exit(cli.Main(cli.Options{
		Version: version,
		Add:     []func(*cobra.Command){bench.Add, demo.Add},
		NewRouter: func(cfg *config.Config, log *zap.Logger, level zap.AtomicLevel) (cli.Router, error) {
			return router.New(cfg, router.Options{Log: log, Level: level, Version: version})
		},
	}))
}
