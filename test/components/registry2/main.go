// Command registry2 serves distribution 2.8.3, the generation before registry's, from its packages. Its own command
// cannot be built, because of a module for certificates that is gone; health checks and certificates are what this
// one lacks, so that less lies in the way of a request.
package main

import (
	"fmt"
	"net/http"
	"os"
	"time"

	"github.com/docker/distribution/configuration"
	"github.com/docker/distribution/context"
	"github.com/docker/distribution/registry/handlers"
	_ "github.com/docker/distribution/registry/storage/driver/filesystem"
	"github.com/sirupsen/logrus"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "registry2: want the file of its configuration")
		os.Exit(2)
	}
	if err := run(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "registry2:", err)
		os.Exit(1)
	}
}

func run(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	config, err := configuration.Parse(f)
	if err != nil {
		return err
	}
	level, err := logrus.ParseLevel(string(config.Log.Level))
	if err != nil {
		return err
	}
	logrus.SetLevel(level)
	app := handlers.NewApp(context.Background(), config)
	return (&http.Server{Addr: config.HTTP.Addr, Handler: app, ReadHeaderTimeout: 10 * time.Second}).ListenAndServe()
}
