// Package oracle lets others judge a hold's repo: what the network's own software makes of it. It is a module
// of its own, so that the relay and all that it needs are no dependency of the product.
package oracle

import (
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/identity"
	"github.com/bluesky-social/indigo/cmd/relay/stream"
	relay "github.com/bluesky-social/indigo/cmd/relay/testing"
	"github.com/gorilla/websocket"
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

// Would catch commits that a strict relay refuses, or passes on changed: whoever follows the network would not
// see this hold.
func TestRelay(t *testing.T) {
	h := startHold(t)
	directory := identity.NewMockDirectory()
	document := h.document(t.Context(), t)
	who := identity.ParseIdentity(&document)
	if who.DID != h.did {
		t.Fatalf("the hold is %s", who.DID)
	}
	directory.Insert(who)
	r := relay.MustSimpleRelay(directory, t.TempDir(), false)
	host := strings.TrimPrefix(h.url, "http://")
	if err := r.Relay.SubscribeToHost(t.Context(), host, true, true); err != nil {
		t.Fatal(err)
	}
	ours := follow(t, host)
	for range 3 { // identity, account and sync of a new account
		next(t, ours, "the hold's beginning")
	}
	for range 2 { // captain and crew, profile: before the relay came
		next(t, ours, "the hold's first records")
	}
	theirs := follow(t, fmt.Sprintf("localhost:%d", r.Port))
	compare := func(what string) {
		t.Helper()
		sent, passed := next(t, ours, what+" at the hold"), next(t, theirs, what+" at the relay")
		if sent.kind != passed.kind || !bytes.Equal(sent.raw, passed.raw) {
			t.Fatalf("%s: the relay passed on another %s (%d bytes) than the hold's %s (%d bytes)", what, passed.kind, len(passed.raw), sent.kind, len(sent.raw))
		}
	}
	h.call(t, "com.atproto.repo.createRecord", h.record("a", "one"))
	compare("a create")
	h.call(t, "com.atproto.repo.putRecord", h.record("a", "two"))
	compare("an update")
	for round := range 3 {
		var writes []map[string]any
		for i := range 200 {
			writes = append(writes, map[string]any{
				"$type": "com.atproto.repo.applyWrites#create", "collection": "com.example.note", "rkey": fmt.Sprintf("batch%d-%d", round, i),
				"value": map[string]any{"$type": "com.example.note", "text": strings.Repeat("x", i), "createdAt": "2026-01-01T00:00:00Z"},
			})
		}
		h.call(t, "com.atproto.repo.applyWrites", map[string]any{"repo": h.did, "writes": writes})
		compare("a batch")
	}
	h.call(t, "com.atproto.repo.deleteRecord", h.record("a", ""))
	compare("a delete")
	h.restart(t)
	ours = follow(t, host)
	for range 3 + 2 + 2 + 3 + 1 {
		next(t, ours, "what was kept over a restart")
	}
	h.call(t, "com.atproto.repo.createRecord", h.record("b", "after the restart"))
	compare("a create after a restart")
	// All but one record go, which makes the tree small again: where trees are wrong, they are wrong here.
	var writes []map[string]any
	for i := range 200 {
		writes = append(writes, map[string]any{"$type": "com.atproto.repo.applyWrites#delete", "collection": "com.example.note", "rkey": fmt.Sprintf("batch1-%d", i)})
	}
	h.call(t, "com.atproto.repo.applyWrites", map[string]any{"repo": h.did, "writes": writes})
	compare("a batch of deletes")
}
