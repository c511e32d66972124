package ingest_test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	comatproto "github.com/bluesky-social/indigo/api/atproto"
	"github.com/bluesky-social/indigo/atproto/syntax"
	"github.com/coder/websocket"

	"atcr.io/internal/identity"
	"atcr.io/internal/ingest"
	"atcr.io/internal/xrpc"
)

// mover gives alice the handle alicia.test, and a PDS at another address, once it is told to.
type mover struct {
	url   string // of the directory, and of who resolves handles
	pds   string // where alice moves to
	moved atomic.Bool
	asked atomic.Int64 // requests at the other address
}

func newMover(t *testing.T, w *world) *mover {
	t.Helper()
	m := &mover{}
	proxy := func(to string) *httputil.ReverseProxy {
		target, err := url.Parse(to)
		if err != nil {
			t.Fatal(err)
		}
		return &httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) { r.SetURL(target); r.Out.Header.Del("Accept-Encoding") }}
	}
	pds, plc := proxy(w.PDSURL), proxy(w.PLCURL)
	elsewhere := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		m.asked.Add(1)
		pds.ServeHTTP(rw, r)
	}))
	plc.ModifyResponse = func(res *http.Response) error {
		raw, err := io.ReadAll(res.Body)
		if err == nil && m.moved.Load() {
			raw = bytes.ReplaceAll(raw, []byte("at://alice.test"), []byte("at://alicia.test"))
			if bytes.Contains(raw, []byte("alicia.test")) {
				raw = bytes.ReplaceAll(raw, []byte(w.PDSURL), []byte(m.pds))
			}
		}
		res.Body, res.ContentLength = io.NopCloser(bytes.NewReader(raw)), int64(len(raw))
		res.Header.Set("Content-Length", fmt.Sprint(len(raw)))
		return err
	}
	front := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		handle := r.URL.Query().Get("handle")
		switch {
		case !strings.HasPrefix(r.URL.Path, "/xrpc/"):
			plc.ServeHTTP(rw, r)
		case m.moved.Load() && handle == "alicia.test":
			xrpc.WriteJSON(rw, http.StatusOK, map[string]string{"did": w.alice.DID})
		case m.moved.Load() && handle == "alice.test":
			xrpc.WriteError(rw, xrpc.Errorf(http.StatusBadRequest, "HandleNotFound", "nobody"))
		default:
			pds.ServeHTTP(rw, r)
		}
	}))
	t.Cleanup(front.Close)
	t.Cleanup(elsewhere.Close)
	m.url, m.pds = front.URL, elsewhere.URL
	return m
}

func identityFrame(t *testing.T, seq int64, did string) []byte {
	t.Helper()
	out := bytes.NewBuffer(append([]byte{0xa2, 0x61, 't', 0x69}, "#identity"...))
	_, _ = out.Write([]byte{0x62, 'o', 'p', 0x01}) // a Buffer takes all
	if err := (&comatproto.SyncSubscribeRepos_Identity{Did: did, Seq: seq, Time: "2026-11-25T00:00:00Z"}).MarshalCBOR(out); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// Would catch somebody who goes on under a handle that is theirs no longer, or is looked for at the PDS that they left,
// after a firehose told that it changed.
func TestIdentityChanges(t *testing.T) {
	t.Parallel()
	for _, from := range []string{"relay", "Jetstream"} {
		t.Run(from, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			m := newMover(t, w)
			w.directory = identity.New(identity.Config{PLCURL: m.url, HandleResolverURL: m.url, AllowPrivate: true})
			w.tag(w.alice, "1", "one")
			kind, first := websocket.MessageBinary, w.frames(7)
			seq := int64(1 << 54)
			changed := func(did string) []byte { seq++; return identityFrame(t, seq, did) }
			if from == "Jetstream" {
				kind, first = websocket.MessageText, [][]byte{said(w.alice.DID, "create", "io.atcr.tag", "app:1", "", time.Now())}
				changed = func(did string) []byte {
					return fmt.Appendf(nil, `{"did":%q,"time_us":%d,"kind":"identity","identity":{"did":%q,"handle":"mallory.test"}}`, did, time.Now().UnixMicro(), did)
				}
			}
			f := newFirehose(t, kind, first...)
			_, _ = w.run(func(c *ingest.Config) {
				if from == "relay" {
					c.Relays = []string{f.URL}
				} else {
					c.Jetstreams = []string{f.URL}
				}
			})
			w.eventually("alice", w.complete(w.alice))
			is := func(handle, pds string) func() bool {
				return func() bool {
					r, _, err := w.sink.Index.Repo(t.Context(), syntax.DID(w.alice.DID))
					return err == nil && r.Handle == handle && r.PDS == pds && r.Complete
				}
			}
			w.eventually("who she is", is("alice.test", w.PDSURL))
			m.moved.Store(true)
			f.send(changed("did:plc:nobodyfollowsthem"), changed(w.alice.DID), changed("x"))
			w.eventually("who she is now", is("alicia.test", m.pds))
			w.eventually("what is no DID is left out", func() bool { return w.metric("dropped_total", "malformed") == 1 })
			for handle, want := range map[string]bool{"alice.test": false, "alicia.test": true, "mallory.test": false} {
				if _, found, err := w.sink.Person(t.Context(), syntax.Handle(handle)); err != nil || found != want {
					t.Errorf("%s: %v, %v", handle, found, err)
				}
			}
			if n := w.metric("events_total", "identity"); n != 1 || !w.isTagged(w.alice, "1", "one")() || m.asked.Load() == 0 {
				t.Errorf("%v events, %d requests at the new PDS, tag %s", n, m.asked.Load(), w.tagged(w.alice, "1"))
			}
		})
	}
}
