// Package oracle lets others judge a hold's repo: what the network's own software makes of it. It is a module
// of its own, so that the relay and all that it needs are no dependency of the product.
package oracle

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/bluesky-social/indigo/cmd/relay/stream"
	relay "github.com/bluesky-social/indigo/cmd/relay/testing"
	"github.com/gorilla/websocket"

	"atcr.io/test/components"
)

// body is a message of the firehose.
type body interface {
	UnmarshalCBOR(r io.Reader) error
	MarshalCBOR(w io.Writer) error
}

// event is a message without its place in a server's own sequence.
type event struct {
	kind string
	raw  []byte
}

// follow reads a firehose from its beginning.
func follow(t *testing.T, host string) <-chan event {
	t.Helper()
	conn, res, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+host+"/xrpc/com.atproto.sync.subscribeRepos?cursor=0", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	t.Cleanup(func() { _ = conn.Close() })
	events := make(chan event, 10_000)
	go func() {
		defer close(events)
		for {
			_, frame, err := conn.ReadMessage()
			if err != nil {
				return
			}
			e, err := decode(frame)
			if err != nil {
				t.Errorf("%s: %v", host, err)
				return
			}
			events <- e
		}
	}()
	return events
}

func decode(frame []byte) (event, error) {
	r := bytes.NewReader(frame)
	var header stream.EventHeader
	if err := header.UnmarshalCBOR(r); err != nil {
		return event{}, err
	}
	if header.Op != stream.EvtKindMessage {
		return event{}, fmt.Errorf("op %d: %q", header.Op, frame)
	}
	var out bytes.Buffer
	var b body
	switch header.MsgType {
	case "#commit":
		b = &comatproto.SyncSubscribeRepos_Commit{}
	case "#sync":
		b = &comatproto.SyncSubscribeRepos_Sync{}
	case "#identity":
		b = &comatproto.SyncSubscribeRepos_Identity{}
	case "#account":
		b = &comatproto.SyncSubscribeRepos_Account{}
	default:
		return event{kind: header.MsgType}, nil
	}
	if err := b.UnmarshalCBOR(r); err != nil {
		return event{}, fmt.Errorf("%s: %w", header.MsgType, err)
	}
	switch m := b.(type) { // the sequence is each server's own
	case *comatproto.SyncSubscribeRepos_Commit:
		m.Seq = 0
	case *comatproto.SyncSubscribeRepos_Sync:
		m.Seq = 0
	case *comatproto.SyncSubscribeRepos_Identity:
		m.Seq = 0
	case *comatproto.SyncSubscribeRepos_Account:
		m.Seq = 0
	}
	err := b.MarshalCBOR(&out)
	return event{header.MsgType, out.Bytes()}, err
}

// next is the next event, which must come.
func next(t *testing.T, events <-chan event, what string) event {
	t.Helper()
	select {
	case e, ok := <-events:
		if !ok {
			t.Fatalf("%s: the stream ended", what)
		}
		return e
	case <-time.After(60 * time.Second):
		t.Fatalf("%s: nothing comes", what)
	}
	return event{}
}

// live is a directory that asks the hold itself, as a did:web's readers do.
type live struct {
	t *testing.T
	h *holdServer
}

func (d live) LookupDID(ctx context.Context, did syntax.DID) (*identity.Identity, error) {
	if did != d.h.did {
		return nil, identity.ErrDIDNotFound
	}
	document := d.h.document(ctx, d.t)
	who := identity.ParseIdentity(&document)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.h.url+"/.well-known/atproto-did", nil)
	if err != nil {
		return nil, err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = res.Body.Close() }()
	said, err := io.ReadAll(res.Body)
	if handle, declared := who.DeclaredHandle(); declared == nil && string(said) == did.String() {
		who.Handle = handle
	}
	return &who, err
}

func (d live) LookupHandle(context.Context, syntax.Handle) (*identity.Identity, error) {
	return nil, identity.ErrHandleNotFound
}

func (d live) Lookup(ctx context.Context, id syntax.AtIdentifier) (*identity.Identity, error) {
	did, err := id.AsDID()
	if err != nil {
		return nil, identity.ErrHandleNotFound
	}
	return d.LookupDID(ctx, did)
}

func (d live) Purge(context.Context, syntax.AtIdentifier) error { return nil }

// Would catch commits that a strict relay refuses, or passes on changed: whoever follows the network would not
// see this hold. The relay remembers identities, so that it learns of a new key by what the hold says alone.
func TestRelay(t *testing.T) {
	t.Run("web", func(t *testing.T) {
		h := startHold(t)
		relayed(t, h, live{t, h})
	})
	t.Run("plc", func(t *testing.T) {
		network := components.StartReferencePDS(t)
		h := startPLCHold(t, network.PLCURL)
		if h.did.Method() != "plc" {
			t.Fatalf("the hold is %s", h.did)
		}
		relayed(t, h, &identity.BaseDirectory{PLCURL: network.PLCURL, SkipDNSDomainSuffixes: []string{"test"}})
	})
}

// fromTheFirst is an address of the hold's firehose that begins with the first event, where the relay, which knows no
// event of a new host, would begin with the next.
func fromTheFirst(t *testing.T, h *holdServer) string {
	t.Helper()
	target, err := url.Parse(h.url)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(target)
		if r.In.URL.RawQuery == "" {
			r.Out.URL.RawQuery = "cursor=0"
		}
	}, ErrorLog: log.New(io.Discard, "", 0)})
	t.Cleanup(s.Close)
	return strings.Replace(strings.TrimPrefix(s.URL, "http://"), "127.0.0.1", "localhost", 1)
}

func relayed(t *testing.T, h *holdServer, directory identity.Directory) {
	t.Helper()
	r := relay.MustSimpleRelay(identity.NewCacheDirectory(directory, 100, time.Hour, time.Hour, time.Hour), t.TempDir(), false)
	host := strings.TrimPrefix(h.url, "http://")
	if err := r.Relay.SubscribeToHost(t.Context(), fromTheFirst(t, h), true, true); err != nil {
		t.Fatal(err)
	}
	ours, theirs := follow(t, host), follow(t, fmt.Sprintf("localhost:%d", r.Port))
	seen := 0
	skip := func(n int, what string) {
		t.Helper()
		for range n {
			next(t, ours, what)
		}
	}
	compare := func(kind, what string) {
		t.Helper()
		seen++
		sent, passed := next(t, ours, what+" at the hold"), next(t, theirs, what+" at the relay")
		if sent.kind != kind || sent.kind != passed.kind || !bytes.Equal(sent.raw, passed.raw) {
			t.Fatalf("%s: the relay passed on another %s (%d bytes) than the hold's %s (%d bytes)", what, passed.kind, len(passed.raw), sent.kind, len(sent.raw))
		}
	}
	restart := func() {
		t.Helper()
		h.restart(t)
		ours = follow(t, host)
		skip(seen, "what was kept over a restart")
	}
	announced := func(what string) {
		t.Helper()
		for _, kind := range []string{"#identity", "#account", "#sync"} {
			compare(kind, what)
		}
	}
	announced("a new account")
	compare("#commit", "captain and crew")
	compare("#commit", "the profile")
	h.call(t, "com.atproto.repo.createRecord", h.record("a", "one"))
	compare("#commit", "a create")
	h.call(t, "com.atproto.repo.putRecord", h.record("a", "two"))
	compare("#commit", "an update")
	for round := range 3 {
		var writes []map[string]any
		for i := range 200 {
			writes = append(writes, map[string]any{
				"$type": "com.atproto.repo.applyWrites#create", "collection": "com.example.note", "rkey": fmt.Sprintf("batch%d-%d", round, i),
				"value": map[string]any{"$type": "com.example.note", "text": strings.Repeat("x", i), "createdAt": "2026-01-01T00:00:00Z"},
			})
		}
		h.call(t, "com.atproto.repo.applyWrites", map[string]any{"repo": h.did, "writes": writes})
		compare("#commit", "a batch")
	}
	h.call(t, "com.atproto.repo.deleteRecord", h.record("a", ""))
	compare("#commit", "a delete")
	before := keyOf(t, h)
	h.command(t, "key rotate")
	announced("a change of key")
	if after := keyOf(t, h); after == before {
		t.Fatalf("the key is still %s", after)
	}
	h.call(t, "com.atproto.repo.createRecord", h.record("c", "with the new key"))
	compare("#commit", "a create with the new key")
	restart()
	h.call(t, "com.atproto.repo.createRecord", h.record("b", "after the restart"))
	compare("#commit", "a create after a restart")
	h.stop(t)
	h.command(t, "key rotate") // on a hold that does not run
	h.serve(t, listen(t, h.address))
	ours = follow(t, host)
	skip(seen, "what was kept over a rotation")
	announced("a change of key of a stopped hold")
	// All but one record go, which makes the tree small again: where trees are wrong, they are wrong here.
	var writes []map[string]any
	for i := range 200 {
		writes = append(writes, map[string]any{"$type": "com.atproto.repo.applyWrites#delete", "collection": "com.example.note", "rkey": fmt.Sprintf("batch1-%d", i)})
	}
	h.call(t, "com.atproto.repo.applyWrites", map[string]any{"repo": h.did, "writes": writes})
	compare("#commit", "a batch of deletes")
}

// keyOf is the key that the hold's document names.
func keyOf(t *testing.T, h *holdServer) string {
	t.Helper()
	document := h.document(t.Context(), t)
	who := identity.ParseIdentity(&document)
	key, err := who.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return key.DIDKey()
}
