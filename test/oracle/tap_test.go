package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"atcr.io/test/components"
	"atcr.io/test/components/toolbox"
)

// tap is a running indexer of the network's makers, which follows one hold.
type tap struct {
	url    string
	events chan tapEvent
}

// tapEvent is what it tells of a record.
type tapEvent struct {
	Type   string
	Record struct {
		Live                               bool
		Did, Rev, Collection, Rkey, Action string
	}
}

// startTap has tap follow the hold directly, with the identities of the directory at plcURL.
func startTap(t *testing.T, h *holdServer, plcURL string) *tap {
	t.Helper()
	path, err := toolbox.Path("tap")
	if err != nil {
		t.Fatal(err)
	}
	free := listen(t, "127.0.0.1:0")
	address := free.Addr().String()
	_ = free.Close()
	ctx, stop := context.WithCancel(context.Background())
	cmd := exec.CommandContext(ctx, path, "run", "--db-url", "sqlite://"+filepath.Join(t.TempDir(), "tap.db"), "--bind", address,
		"--plc-url", plcURL, "--relay-url", h.url, "--full-network", "--disable-acks", "--log-level", "warn")
	said := &tail{}
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		stop()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("tap said:\n%s", said)
		}
	})
	w := &tap{url: "http://" + address, events: make(chan tapEvent, 10_000)}
	w.until(t, "it listens", func() bool {
		var d net.Dialer
		conn, err := d.DialContext(t.Context(), "tcp", address)
		if err != nil {
			return false
		}
		return conn.Close() == nil
	})
	conn, res, err := websocket.DefaultDialer.DialContext(t.Context(), "ws://"+address+"/channel", nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close()
	t.Cleanup(func() { _ = conn.Close() })
	go func() {
		defer close(w.events)
		for {
			var e tapEvent
			if conn.ReadJSON(&e) != nil {
				return
			}
			w.events <- e
		}
	}()
	return w
}

// until waits for what must come; it looks again as long as that takes.
func (w *tap) until(t *testing.T, what string, ready func() bool) {
	t.Helper()
	deadline := time.After(2 * time.Minute)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !ready() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("tap: not so: %s", what)
		}
	}
}

// info is what tap says of a repo.
func (w *tap) info(t *testing.T, did string) (out struct {
	State, Rev, Error string
	Records           int
}) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, w.url+"/info/"+did, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return out
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode == http.StatusOK {
		if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

// tail keeps the end of what a program says.
type tail struct{ raw []byte }

func (o *tail) Write(p []byte) (int, error) {
	o.raw = append(o.raw, p...)
	o.raw = o.raw[max(0, len(o.raw)-16<<10):]
	return len(p), nil
}

func (o *tail) String() string { return string(o.raw) }

// Would catch a hold that an indexer of the network cannot read whole, or cannot follow: over batches, deletes,
// a change of key and a restart. Tap checks signatures against the real directory's document.
func TestTap(t *testing.T) {
	t.Parallel()
	network := components.StartReferencePDS(t)
	h := startPLCHold(t, network.PLCURL)
	asked := map[string]int{} // by action, since tap follows
	write := func(action string, from, to int) {
		t.Helper()
		var writes []map[string]any
		for i := from; i < to; i++ {
			w := map[string]any{"$type": "com.atproto.repo.applyWrites#" + action, "collection": "com.example.note", "rkey": fmt.Sprintf("n%d", i)}
			if action != "delete" {
				w["value"] = map[string]any{"$type": "com.example.note", "text": fmt.Sprint(action, i), "createdAt": "2026-01-01T00:00:00Z"}
			}
			writes = append(writes, w)
		}
		h.call(t, "com.atproto.repo.applyWrites", map[string]any{"repo": h.did, "writes": writes})
		asked[action] += to - from
	}
	write("create", 0, 150)
	write("create", 150, 300)
	w := startTap(t, h, network.PLCURL)
	did := h.did.String()
	were := map[string]bool{} // all that the hold ever said it has
	agree := func(what string) {
		t.Helper()
		have := h.records(t)
		maps.Copy(were, have)
		w.until(t, fmt.Sprintf("%s: active with %d records; it says %+v", what, len(have), w.info(t, did)), func() bool {
			i := w.info(t, did)
			return i.State == "active" && i.Records == len(have) && i.Error == ""
		})
	}
	agree("backfilled")
	clear(asked)
	write("create", 300, 320)
	write("update", 0, 40)
	write("delete", 40, 100)
	agree("followed")
	h.command(t, "key rotate")
	write("create", 400, 410)
	agree("after a change of key")
	h.restart(t)
	write("delete", 0, 10)
	agree("after a restart")
	// What came after the backfill came from the firehose: nothing was fetched anew because it did not fit.
	live, seen := map[string]int{}, map[string]bool{}
	for live["create"]+live["update"]+live["delete"] < asked["create"]+asked["update"]+asked["delete"] {
		select {
		case e := <-w.events:
			if e.Type != "record" {
				continue
			}
			seen[e.Record.Collection+"/"+e.Record.Rkey] = true
			if e.Record.Live {
				live[e.Record.Action]++
			}
		case <-time.After(time.Minute):
			t.Fatalf("tap told of %d records, and of %v as they happened", len(seen), live)
		}
	}
	if !maps.Equal(seen, were) || !maps.Equal(live, asked) {
		t.Errorf("tap told of %d records, the hold had %d; of %v as they happened, which were %v", len(seen), len(were), live, asked)
	}
	if i := w.info(t, did); i.State != "active" || i.Records != len(h.records(t)) {
		t.Errorf("%+v", i)
	}
}
