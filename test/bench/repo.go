package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/xrpc"
	"atcr.io/test/components"
)

const (
	benchCollection = "com.example.bench"
	ownerDID        = syntax.DID("did:plc:benchbenchbenchbenchbenc")
	// createCalls and batchCalls stay within the 1,000 tokens that a hold takes of one person in five minutes.
	createCalls = 960
	batchCalls  = 20
	batchSize   = 200
	callers     = 8
	exported    = 100_000
)

// person is the owner of the holds of this section: somebody whose key signs service tokens here, so that no PDS is
// part of what is measured.
type person struct {
	key *atcrypto.PrivateKeyK256
	plc *httptest.Server
}

func newPerson() (*person, error) {
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		return nil, err
	}
	public, err := key.PublicKey()
	if err != nil {
		return nil, err
	}
	document, err := json.Marshal(map[string]any{
		"@context": []string{"https://www.w3.org/ns/did/v1"}, "id": ownerDID, "alsoKnownAs": []string{},
		"verificationMethod": []any{map[string]any{"id": ownerDID + "#atproto", "type": "Multikey", "controller": ownerDID, "publicKeyMultibase": public.Multibase()}},
		"service":            []any{map[string]any{"id": "#atproto_pds", "type": "AtprotoPersonalDataServer", "serviceEndpoint": "https://pds.example.com"}},
	})
	if err != nil {
		return nil, err
	}
	return &person{key, httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(document) }))}, nil
}

// repoServer is a server with a repo that this section writes and reads.
type repoServer struct {
	name, url, did string
	process        *process                                        // nil for the reference PDS, whose own server has it
	tokens         func(n int, nsid string) (func() string, error) // makes those of n calls before the clock runs
}

// repoHold starts a hold of the person's with its default budget of events: half of the 2,600 an hour that a public
// relay reads are spent before any commit waits for others, and no measurement here spends as many.
func (b *bench) repoHold(ctx context.Context, p *person, name string, port int) (*repoServer, error) {
	if port == 0 {
		var err error
		if port, err = freePort(); err != nil {
			return nil, err
		}
	}
	s := &repoServer{name: "hold", url: fmt.Sprintf("http://localhost:%d", port), did: fmt.Sprintf("did:web:localhost%%3A%d", port)}
	var err error
	s.process, err = start(ctx, b.dir, name, s.url, s.url+"/xrpc/_health", []string{
		"STORAGE_DRIVER=filesystem", "STORAGE_ROOT_DIR=" + filepath.Join(b.dir, name), "HOLD_PUBLIC_URL=" + s.url, fmt.Sprintf("HOLD_SERVER_ADDR=127.0.0.1:%d", port),
		"HOLD_DEBUG_ADDR=", "HOLD_LOG_LEVEL=warn", "HOLD_DATABASE_DIR=" + filepath.Join(b.dir, name+"-db"), "HOLD_PLC_URL=" + p.plc.URL, "HOLD_OWNER=" + ownerDID.String(), "HOLD_RELAYS=",
	}, filepath.Join(b.bin, "atcr-hold"))
	if err != nil {
		return nil, err
	}
	s.tokens = func(n int, nsid string) (func() string, error) {
		made := make([]string, n)
		for i := range made {
			var err error
			if made[i], err = xrpc.SignServiceToken(p.key, ownerDID, s.did, nsid, time.Now(), 4*time.Minute); err != nil {
				return nil, err
			}
		}
		var next atomic.Int64
		return func() string { return made[next.Add(1)-1] }, nil
	}
	return s, nil
}

// reference starts the reference PDS with one account.
func (b *bench) reference(ctx context.Context) (s *repoServer, err error) {
	tb := &benchTB{ctx: ctx, dir: b.dir}
	defer func() {
		if p := recover(); p != nil {
			failure, ok := p.(benchFailure)
			if !ok {
				panic(p)
			}
			err = errors.New(string(failure))
		}
	}()
	b.stoppers = append(b.stoppers, tb.end)
	pds := components.StartReferencePDS(tb, "bench.test")
	var session struct {
		AccessJwt string `json:"accessJwt"`
	}
	err = callJSON(ctx, http.MethodPost, pds.URL+"/xrpc/com.atproto.server.createSession", "",
		fmt.Sprintf(`{"identifier":%q,"password":%q}`, pds.Accounts[0].Handle, pds.Accounts[0].Password), &session)
	return &repoServer{name: "reference PDS", url: pds.URL, did: pds.Accounts[0].DID, tokens: func(int, string) (func() string, error) {
		return func() string { return session.AccessJwt }, nil
	}}, err
}

// benchTB lets the components of the tests run outside of one.
type benchTB struct {
	ctx   context.Context //nolint:containedctx // it is what a test has
	dir   string
	mu    sync.Mutex
	after []func()
}

type benchFailure string

func (*benchTB) Helper()                        {}
func (t *benchTB) Cleanup(f func())             { t.mu.Lock(); defer t.mu.Unlock(); t.after = append(t.after, f) }
func (t *benchTB) Context() context.Context     { return t.ctx }
func (*benchTB) Failed() bool                   { return false }
func (*benchTB) Fatalf(format string, a ...any) { panic(benchFailure(fmt.Sprintf(format, a...))) }
func (*benchTB) Logf(string, ...any)            {}
func (t *benchTB) TempDir() string {
	dir, err := os.MkdirTemp(t.dir, "component-")
	if err != nil {
		t.Fatalf("%v", err)
	}
	return dir
}

func (t *benchTB) end() error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := len(t.after) - 1; i >= 0; i-- {
		t.after[i]()
	}
	return nil
}

// benchRecord is about as large as a hold's layer record.
func benchRecord(i int) map[string]any {
	return map[string]any{"$type": benchCollection, "n": i, "text": strings.Repeat("a layer record is about as long as this one ", 6)}
}

// call sends a procedure with a token of its own.
func (s *repoServer) call(ctx context.Context, nsid, token string, in any) error {
	raw, err := json.Marshal(in)
	if err != nil {
		return err
	}
	return callJSON(ctx, http.MethodPost, s.url+"/xrpc/"+nsid, "Bearer "+token, string(raw), &struct{}{})
}

// create makes records one by one, by several callers, and returns how many a second.
func (s *repoServer) create(ctx context.Context, n int) (float64, error) {
	const nsid = "com.atproto.repo.createRecord"
	token, err := s.tokens(n, nsid)
	if err != nil {
		return 0, err
	}
	var next atomic.Int64
	start := time.Now()
	err = each(callers, func() error {
		for i := next.Add(1); i <= int64(n); i = next.Add(1) {
			if err := s.call(ctx, nsid, token(), map[string]any{"repo": s.did, "collection": benchCollection, "record": benchRecord(int(i))}); err != nil {
				return err
			}
		}
		return nil
	})
	return float64(n) / time.Since(start).Seconds(), err
}

// batches makes records in batches, by one caller, and returns how many records a second.
func (s *repoServer) batches(ctx context.Context, calls int, prefix string) (float64, error) {
	const nsid = "com.atproto.repo.applyWrites"
	token, err := s.tokens(calls, nsid)
	if err != nil {
		return 0, err
	}
	start := time.Now()
	for call := range calls {
		writes := make([]any, batchSize)
		for i := range writes {
			n := call*batchSize + i
			writes[i] = map[string]any{"$type": nsid + "#create", "collection": benchCollection, "rkey": fmt.Sprintf("%s%07d", prefix, n), "value": benchRecord(n)}
		}
		if err := s.call(ctx, nsid, token(), map[string]any{"repo": s.did, "writes": writes}); err != nil {
			return 0, err
		}
	}
	return float64(calls*batchSize) / time.Since(start).Seconds(), nil
}

// each runs fn n times at once.
func each(n int, fn func() error) (err error) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range n {
		wg.Go(func() {
			if failed := fn(); failed != nil {
				mu.Lock()
				defer mu.Unlock()
				err = errors.Join(err, failed)
			}
		})
	}
	wg.Wait()
	return err
}

// download reads the whole repo, and returns its size and how long that took.
func (s *repoServer) download(ctx context.Context) (int64, time.Duration, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/xrpc/com.atproto.sync.getRepo?did="+strings.ReplaceAll(s.did, "%", "%25"), nil)
	if err != nil {
		return 0, 0, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	start := time.Now()
	res, err := client.Do(req)
	if err != nil {
		return 0, 0, err
	}
	n, err := io.Copy(io.Discard, res.Body)
	if err = errors.Join(err, res.Body.Close()); err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("getRepo: %s", res.Status)
	}
	return n, time.Since(start), err
}
