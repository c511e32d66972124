// Package devnet is a local atproto network in one process, for the demo and for tests: a did:plc directory
// and a PDS with accounts.
//
// It owns identities, passwords, OAuth, sessions and service tokens; the repos themselves are internal/pds, the
// same code that a hold runs. It refuses to be a PDS for people: no mail, no relay, passwords in the clear. No
// daemon links it.
package devnet

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"atcr.io/internal/httpx"
	"atcr.io/internal/pds"
	"atcr.io/internal/xrpc"
)

// Config says what network to start. The zero value is an empty one on free ports.
type Config struct {
	// Dir keeps the network's state; started again with the same folder it is the same network, at the same
	// addresses. Empty: a temporary folder, removed by Close.
	Dir string
	// Addr is where the PDS listens; default 127.0.0.1:0. The directory listens on the same host, at a free
	// port.
	Addr string
	// Accounts are handles that end in .test, each made where it does not exist.
	Accounts []string
	// RateLimits limits createSession as the reference PDS does: 30 in 5 minutes and 300 a day for an
	// identifier and address.
	RateLimits bool
	Logger     *slog.Logger
	// OAuthClients fetches what OAuth clients say of themselves, where their names do not lead to them.
	OAuthClients *http.Client
	// Now replaces the clock.
	Now func() time.Time
}

// Account is a person on the network.
type Account struct {
	Handle      string `json:"handle"`
	DID         string `json:"did"`
	Password    string `json:"-"`        // the main one
	AppPassword string `json:"password"` // what clients of the PDS are meant to use
}

// Network is a running network. Everything is served once Start has returned.
type Network struct {
	PLCURL   string // http://localhost:PORT
	PDSURL   string // http://localhost:PORT
	PDSDID   string // did:web:localhost%3APORT
	Accounts []Account
	// PDS and PLC make the servers misbehave.
	PDS, PLC Faults
	OAuth    *OAuth

	dir       string
	temporary bool
	state     *state
	saving    sync.Mutex
	directory *directory
	accounts  *accounts
	repos     *repos
	stop      context.CancelFunc
	stopped   chan error
}

// shutdownGrace is how long Close waits for requests: long enough for an answer, and no stream ends by itself.
const shutdownGrace = time.Second

// Start starts a network. ctx is for the start alone: the network runs until Close.
func Start(ctx context.Context, c Config) (*Network, error) {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	n := &Network{dir: c.Dir, temporary: c.Dir == ""}
	err := n.start(ctx, c)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start the local network: %w", err), n.Close())
	}
	return n, nil
}

func (n *Network) start(ctx context.Context, c Config) (err error) {
	if n.temporary {
		n.dir, err = os.MkdirTemp("", "atcr-devnet-")
	} else {
		err = os.MkdirAll(n.dir, 0o700)
	}
	if err != nil {
		return err
	}
	if n.state, err = loadState(n.dir); err != nil {
		return err
	}
	rotation, err := n.state.rotation()
	if err != nil {
		return err
	}
	onPDS, onPLC, err := n.listen(ctx, c.Addr)
	if err != nil {
		return err
	}
	n.directory = newDirectory(n.state, c.Now)
	n.accounts = newAccounts(n.state)
	s := &server{
		url: n.PDSURL, did: n.PDSDID, rotation: rotation, directory: n.directory, accounts: n.accounts,
		tokens:  &tokens{key: n.state.TokenKey, audience: n.PDSDID, now: c.Now},
		limiter: newLimiter(c.Now, nil), save: n.save, now: c.Now,
	}
	if c.RateLimits {
		s.limiter = newLimiter(c.Now, sessionLimits)
	}
	if n.repos, err = openRepos(ctx, n.dir, s, c.Logger); err != nil {
		return errors.Join(err, onPDS.Close(), onPLC.Close())
	}
	s.makeRepo = n.repos.create
	n.OAuth = newOAuth(s, c.OAuthClients)
	n.serve(c.Logger, s, onPDS, onPLC)
	return n.openAccounts(ctx, c.Accounts, s)
}

// listen takes the addresses of the last run, if there was one.
func (n *Network) listen(ctx context.Context, address string) (onPDS, onPLC net.Listener, err error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, nil, err
	}
	plcAddress := net.JoinHostPort(host, "0")
	if n.state.PDSAddress != "" {
		address, plcAddress = n.state.PDSAddress, n.state.PLCAddress
	}
	var lc net.ListenConfig
	if onPDS, err = lc.Listen(ctx, "tcp", address); err != nil {
		return nil, nil, fmt.Errorf("the PDS cannot listen: %w", err)
	}
	if onPLC, err = lc.Listen(ctx, "tcp", plcAddress); err != nil {
		return nil, nil, errors.Join(fmt.Errorf("the directory cannot listen: %w", err), onPDS.Close())
	}
	n.state.PDSAddress, n.state.PLCAddress = onPDS.Addr().String(), onPLC.Addr().String()
	n.PDSURL, n.PLCURL = localURL(onPDS), localURL(onPLC)
	n.PDSDID = didWeb(n.PDSURL)
	return onPDS, onPLC, nil
}

// localURL names a listener localhost: the name that did:web can carry and that reference software accepts.
func localURL(l net.Listener) string {
	return "http://localhost:" + strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

func (n *Network) serve(logger *slog.Logger, s *server, onPDS, onPLC net.Listener) {
	adapter := &httpx.Adapter{Logger: logger}
	mux := http.NewServeMux()
	mux.Handle("GET /.well-known/atproto-did", adapter.Wrap("atproto-did", xrpc.WriteError, s.getAtprotoDID))
	mux.Handle("/xrpc/", pds.Serve(adapter, append(s.routes(), n.repos.host.Routes()...)))
	mux.Handle("/oauth/", n.OAuth.handler)
	mux.Handle("/.well-known/oauth-protected-resource", n.OAuth.handler)
	mux.Handle("/.well-known/oauth-authorization-server", n.OAuth.handler)
	ctx, cancel := context.WithCancel(context.Background())
	n.stop, n.stopped = cancel, make(chan error, 1)
	go func() {
		n.stopped <- httpx.Serve(ctx, logger, shutdownGrace,
			httpx.Endpoint{Server: httpx.NewServer(n.PDS.wrap(n.OAuth.guard(mux)), logger), Listener: onPDS},
			httpx.Endpoint{Server: httpx.NewServer(n.PLC.wrap(n.directory.handler(adapter)), logger), Listener: onPLC})
	}()
}

// openAccounts makes those that do not exist yet, each with an app password.
func (n *Network) openAccounts(ctx context.Context, handles []string, s *server) error {
	for _, handle := range handles {
		of, err := n.accounts.get(handle)
		if errors.Is(err, errNoAccount) {
			of, err = s.openAccount(ctx, handle, randomPassword())
		}
		if err != nil {
			return err
		}
		if len(of.AppPasswords) == 0 {
			if _, err := n.accounts.addAppPassword(of.DID, "devnet", s.now().UTC()); err != nil {
				return err
			}
			if of, err = n.accounts.get(handle); err != nil {
				return err
			}
		}
		n.Accounts = append(n.Accounts, Account{
			Handle: of.Handle.String(), DID: of.DID.String(), Password: of.Password, AppPassword: of.AppPasswords[0].Password,
		})
	}
	return n.save()
}

// Close ends the network and removes its folder if it was a temporary one.
func (n *Network) Close() error {
	var errs []error
	if n.stop != nil {
		n.stop()
		errs = append(errs, <-n.stopped)
	}
	if n.repos != nil {
		errs = append(errs, n.repos.close())
	}
	if n.temporary && n.dir != "" {
		errs = append(errs, os.RemoveAll(n.dir))
	}
	return errors.Join(errs...)
}
