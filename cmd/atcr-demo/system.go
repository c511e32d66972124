package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"atcr.io/internal/appview"
	"atcr.io/internal/devnet"
	"atcr.io/internal/envconf"
	"atcr.io/internal/hold"
)

// ports are those of an earlier run in the same folder: a hold's DID has its port in it, so they stay.
type ports struct {
	Hold        int `json:"hold"`
	PrivateHold int `json:"privateHold"`
	AppView     int `json:"appview"`
}

// service is a hold as the demo shows it.
type service struct{ url, did, storage string }

// system is everything that the demo starts.
type system struct {
	network         *devnet.Network
	registry        string // host:port of the AppView
	public, private service
	data            string
	temporary       bool
	logger          *slog.Logger
	cancel          context.CancelCauseFunc
	running         sync.WaitGroup
	alice, bob      devnet.Account
}

// startSystem starts all and returns when all answer. The context that it returns ends with ctx, or when a
// part of the system fails, with that as its cause.
func startSystem(ctx context.Context, o *options, logger *slog.Logger) (context.Context, *system, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	s := &system{data: o.data, temporary: o.data == "", logger: logger, cancel: cancel}
	if err := s.start(ctx, o); err != nil {
		return nil, nil, errors.Join(err, s.close())
	}
	return ctx, s, nil
}

func (s *system) start(ctx context.Context, o *options) (err error) {
	if s.temporary {
		s.data, err = os.MkdirTemp("", "atcr-demo-")
	} else {
		s.data, err = filepath.Abs(s.data)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.data, 0o700); err != nil {
		return fmt.Errorf("--data: %w", err)
	}
	p, err := loadPorts(s.data)
	if err != nil {
		return err
	}
	if o.port != 0 {
		p.AppView = o.port
	}
	s.network, err = devnet.Start(ctx, devnet.Config{
		Dir: filepath.Join(s.data, "network"), Accounts: []string{"alice.test", "bob.test"}, Logger: s.logger.With("server", "network"),
	})
	if err != nil {
		return err
	}
	s.alice, s.bob = s.network.Accounts[0], s.network.Accounts[1]
	if err := s.startHold(ctx, &s.public, "hold", &p.Hold, s.alice.DID, true); err != nil {
		return fmt.Errorf("start the public hold: %w", err)
	}
	if err := s.startHold(ctx, &s.private, "private-hold", &p.PrivateHold, s.bob.DID, false); err != nil {
		return fmt.Errorf("start the private hold: %w", err)
	}
	if o.port == 0 { // that of last time, where nobody else has it: it stands in no DID
		p.AppView = free(ctx, p.AppView)
	}
	if err := s.startAppView(ctx, &p.AppView); err != nil {
		return fmt.Errorf("start the AppView: %w", err)
	}
	return p.save(s.data)
}

// startHold starts a hold in a folder of its own. It is called localhost, the AppView 127.0.0.1: clients
// forward credentials between ports of one host name.
func (s *system) startHold(ctx context.Context, to *service, name string, port *int, owner string, public bool) error {
	listener, err := listen(ctx, port)
	if err != nil {
		return err
	}
	dir := filepath.Join(s.data, name)
	to.url, to.storage = "http://localhost:"+strconv.Itoa(*port), filepath.Join(dir, "blobs")
	to.did = "did:web:localhost%3A" + strconv.Itoa(*port)
	var config hold.Config
	err = envconf.Load([]string{
		"HOLD_PUBLIC_URL=" + to.url, "HOLD_OWNER=" + owner, "HOLD_PLC_URL=" + s.network.PLCURL,
		"HOLD_PUBLIC=" + strconv.FormatBool(public), "HOLD_ALLOW_ALL_CREW=" + strconv.FormatBool(public),
		"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + to.storage, "HOLD_DATABASE_DIR=" + filepath.Join(dir, "database"),
		"HOLD_DEBUG_ADDR=", "HOLD_SHUTDOWN_GRACE=2s",
	}, hold.Prefix, &config)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return s.serve(ctx, func(ready func()) error {
		return hold.Run(ctx, config, hold.Options{
			Logger: s.logger.With("server", name), Listener: listener, Ready: func(*hold.Hold) { ready() },
		})
	})
}

func (s *system) startAppView(ctx context.Context, port *int) error {
	listener, err := listen(ctx, port)
	if err != nil {
		return err
	}
	s.registry = "127.0.0.1:" + strconv.Itoa(*port)
	var config appview.Config
	err = envconf.Load([]string{
		"ATCR_HTTP_ADDR=" + s.registry, "ATCR_BASE_URL=http://" + s.registry, "ATCR_DEFAULT_HOLD_DID=" + s.public.did,
		"ATCR_DATABASE_DIR=" + filepath.Join(s.data, "appview"), "ATCR_PLC_URL=" + s.network.PLCURL,
		"ATCR_HANDLE_RESOLVER_URL=" + s.network.PDSURL, "ATCR_DEBUG_ADDR=", "ATCR_SHUTDOWN_GRACE=2s", "TEST_MODE=true",
	}, appview.Prefix, &config)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	return s.serve(ctx, func(ready func()) error {
		return appview.Run(ctx, config, appview.Options{
			Logger: s.logger.With("server", "appview"), Listener: listener, Ready: func(*appview.AppView) { ready() },
		})
	})
}

// serve runs a server until ctx ends and returns when it is ready. A server that ends before the system
// does ends the system.
func (s *system) serve(ctx context.Context, run func(ready func()) error) error {
	ready, failed := make(chan struct{}), make(chan error, 1)
	s.running.Go(func() {
		err := run(func() { close(ready) })
		if ctx.Err() == nil && err == nil {
			err = errors.New("it stopped by itself")
		}
		failed <- err
		s.cancel(err)
	})
	select {
	case <-ready:
		return nil
	case err := <-failed:
		return err
	}
}

// listen takes the port, any free one where it is 0, and says which.
func listen(ctx context.Context, port *int) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", "127.0.0.1:"+strconv.Itoa(*port))
	if err != nil {
		return nil, fmt.Errorf("port %d cannot be had (is another demo running?): %w", *port, err)
	}
	*port = l.Addr().(*net.TCPAddr).Port
	return l, nil
}

// free is the port where it can be had, else 0.
func free(ctx context.Context, port int) int {
	l, err := listen(ctx, &port)
	if err != nil {
		return 0
	}
	_ = l.Close() // nobody connected to it
	return port
}

// close stops all and removes temporary data.
func (s *system) close() error {
	s.cancel(nil)
	s.running.Wait()
	var errs []error
	if s.network != nil {
		errs = append(errs, s.network.Close())
	}
	if s.temporary && s.data != "" {
		errs = append(errs, os.RemoveAll(s.data))
	}
	return errors.Join(errs...)
}

func loadPorts(dir string) (*ports, error) {
	var p ports
	raw, err := os.ReadFile(filepath.Join(dir, "ports.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return &p, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", filepath.Join(dir, "ports.json"), err)
	}
	return &p, nil
}

func (p *ports) save(dir string) error {
	raw, err := json.Marshal(p)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "ports.json"), raw, 0o600)
}
