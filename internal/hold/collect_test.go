package hold

import (
	"database/sql"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/upload"
)

// collect is a round, and what it said of each blob.
func (s *server) collect(t *testing.T, o CollectOptions) map[oci.Digest]upload.Unnamed {
	t.Helper()
	seen := map[oci.Digest]upload.Unnamed{}
	o.Report = func(b upload.Unnamed) { seen[b.Digest] = b }
	c, err := s.Collect(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if int(c.Blobs+c.Kept) != len(seen) {
		t.Fatalf("%+v, but %d were reported", c, len(seen))
	}
	return seen
}

func (s *server) has(t *testing.T, d oci.Digest) bool {
	t.Helper()
	a := s.send(t, http.MethodGet, s.blobPath(d), "", nil)
	switch {
	case a.status == http.StatusOK && oci.FromBytes([]byte(a.body)) != d:
		t.Fatalf("%s has other bytes", d)
	case a.status != http.StatusOK && a.status != http.StatusNotFound:
		t.Fatalf("%s: %d %s", d, a.status, a.body)
	}
	return a.status == http.StatusOK
}

func exec(t *testing.T, h *Hold, query string) {
	t.Helper()
	err := h.db.Write(t.Context(), func(tx *sql.Tx) error {
		_, err := tx.ExecContext(t.Context(), query)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

// collecting is a hold that knows of one manifest, on a clock.
func collecting(t *testing.T) (*people, *clock, *server) {
	t.Helper()
	p, c := newPeople(t), &clock{}
	s := startHold(t, p, func(config *Config) { open(config); c.set(config); config.TestMode = true })
	other := s.push(t, owner, []byte("of another"))
	if a := s.notify(t, owner, message(owner, "other", "other", other)); a.status != http.StatusOK {
		t.Fatal(a.body)
	}
	return p, c, s
}

// Would catch blobs that are lost because the message of their push was: a manifest in the pusher's repo is
// enough, whoever sent the bytes, and a repo that cannot be read, or not to its end, keeps everything. It then has
// records here.
func TestLostNotification(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		by    syntax.DID // whose manifest it is; writer uploads
		short bool
	}{"uploaded": {writer, false}, "shortened record": {writer, true}, "another's upload": {reader, false}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, c, s := collecting(t)
			config, layer, unnamed := s.push(t, writer, []byte("config")), s.push(t, writer, []byte("layer")), s.push(t, writer, []byte("unnamed"))
			c.advance(24 * time.Hour)
			for _, d := range []oci.Digest{config, layer} { // as an AppView asks before it accepts
				path := strings.Replace(s.blobPath(d), "did:plc:any", test.by.String(), 1)
				if a := s.send(t, http.MethodHead, path, "", nil); a.status != http.StatusOK {
					t.Fatal(a.status)
				}
			}
			for i := range 7 {
				p.repos.publish(test.by, fmt.Sprintf("-other%d", i), s.manifestRecord("app", fmt.Sprint(i), oci.FromBytes(fmt.Append(nil, i))), false)
			}
			rkey := atcr.ManifestRkey(manifestDigest("m"))
			p.repos.publish(test.by, rkey, s.manifestRecord("app", "m", config, layer), test.short)
			c.advance(25 * time.Hour)
			p.repos.down.Store(true)
			if seen := s.collect(t, CollectOptions{}); len(seen) != 1 || !strings.Contains(seen[unnamed].Kept, "cannot be asked") || !s.has(t, unnamed) {
				t.Fatalf("the PDS is down, config and layer were promised a day ago: %+v", seen)
			}
			c.advance(25 * time.Hour)
			if seen := s.collect(t, CollectOptions{}); len(seen) != 3 || !s.has(t, config) || !s.has(t, layer) || !s.has(t, unnamed) {
				t.Fatalf("the PDS is down: %+v", seen)
			}
			p.repos.down.Store(false)
			p.repos.repeat.Store(true)
			seen := s.collect(t, CollectOptions{DryRun: true})
			if !strings.Contains(seen[config].Kept, "does not end") || !strings.Contains(seen[layer].Kept, "does not end") {
				t.Errorf("the PDS gives the same page and cursor again and again: %+v", seen)
			}
			p.repos.repeat.Store(false)
			for _, dryRun := range []bool{true, false} {
				seen := s.collect(t, CollectOptions{DryRun: dryRun})
				if seen[unnamed].Kept != "" || s.has(t, unnamed) != dryRun {
					t.Errorf("dry run %v: what nothing names: %+v", dryRun, seen)
				}
				for _, d := range []oci.Digest{config, layer} {
					if b, ok := seen[d]; ok && !strings.Contains(b.Kept, rkey) || !s.has(t, d) {
						t.Errorf("dry run %v: what the manifest names: %+v", dryRun, seen)
					}
				}
			}
			if layers := s.records(t, atcr.HoldLayerNSID); len(layers) != 3 {
				t.Errorf("%v", layers)
			}
			p.repos.remove(test.by, rkey)
			in := message(test.by, "app", "m", config, layer)
			in.Operation = "delete"
			if a := s.notify(t, test.by, in); a.status != http.StatusOK || len(s.records(t, atcr.HoldLayerNSID)) != 1 {
				t.Fatalf("%d %s", a.status, a.body)
			}
			c.advance(47 * time.Hour)
			if seen := s.collect(t, CollectOptions{}); len(seen) != 0 {
				t.Errorf("unnamed since less than two days: %+v", seen)
			}
			c.advance(2 * time.Hour)
			if seen := s.collect(t, CollectOptions{}); len(seen) != 2 || s.has(t, config) || s.has(t, layer) {
				t.Errorf("unnamed since more than two days: %+v", seen)
			}
		})
	}
}

// Would catch a blob that is lost because its pusher, who had sent none of its bytes, was told of it in the hour in
// which their last manifest that named it went, and the message of the next was lost.
func TestToldInTheHourOfADelete(t *testing.T) {
	t.Parallel()
	for name, before := range map[string]bool{"told before": true, "told while it was named": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, c, s := collecting(t)
			d := s.push(t, writer, []byte("of the writer"))
			told := func() {
				path := strings.Replace(s.blobPath(d), "did:plc:any", reader.String(), 1)
				if a := s.send(t, http.MethodHead, path, "", nil); a.status != http.StatusOK {
					t.Fatal(a.status)
				}
			}
			if before {
				told()
			}
			in := message(reader, "app", "first", d)
			for _, in.Operation = range []string{"push", "delete"} {
				if a := s.notify(t, reader, in); a.status != http.StatusOK {
					t.Fatal(a.body)
				}
				told()
			}
			p.repos.publish(reader, atcr.ManifestRkey(manifestDigest("second")), s.manifestRecord("app", "second", d), false)
			c.advance(upload.CollectAfter + 2*time.Hour)
			if seen := s.collect(t, CollectOptions{}); !s.has(t, d) {
				t.Errorf("the blob of the second manifest is lost: %+v", seen[d])
			}
		})
	}
}

// Would catch a HEAD that does not renew the time of a blob, so that a push relies on what is deleted.
func TestHeadRenews(t *testing.T) {
	t.Parallel()
	_, c, s := collecting(t)
	asked, not := s.push(t, writer, []byte("asked for")), s.push(t, writer, []byte("not asked for"))
	for range 4 {
		c.advance(47 * time.Hour)
		for _, method := range []string{http.MethodHead, http.MethodHead} {
			if a := s.send(t, method, s.blobPath(asked), "", nil); a.status != http.StatusOK {
				t.Fatal(a.status)
			}
		}
		s.collect(t, CollectOptions{})
	}
	if !s.has(t, asked) || s.has(t, not) {
		t.Error("HEAD does not keep a blob, or all of them")
	}
	c.advance(49 * time.Hour)
	if s.collect(t, CollectOptions{}); s.has(t, asked) {
		t.Error("it is kept for ever")
	}
}

// Would catch blobs of images that were pushed after the backup was made, which nobody but their owner's repo
// knows of, and which go two days after the restore.
func TestFoundInStorage(t *testing.T) {
	t.Parallel()
	p, c, s := collecting(t)
	d := s.push(t, writer, []byte("newer than the backup"))
	c.advance(time.Minute)
	exec(t, s.Hold, `DELETE FROM blob WHERE digest = '`+d.String()+`'`)
	exec(t, s.Hold, `DELETE FROM blob_uploader WHERE digest = '`+d.String()+`'`)
	c.advance(time.Minute)
	if got, err := s.uploads.Rebuild(t.Context()); err != nil || got.Added != 1 {
		t.Fatalf("%+v %v", got, err)
	}
	c.advance(100 * time.Hour)
	if seen := s.collect(t, CollectOptions{}); !strings.Contains(seen[d].Kept, "--unclaimed") || !s.has(t, d) {
		t.Errorf("%+v", seen)
	}
	// Somebody asks for it, as at a push of what they have: from then on they are asked.
	path := strings.Replace(s.blobPath(d), "did:plc:any", writer.String(), 1)
	if a := s.send(t, http.MethodHead, path, "", nil); a.status != http.StatusOK {
		t.Fatal(a.status)
	}
	p.repos.publish(writer, "m", s.manifestRecord("app", "m", d), false)
	c.advance(100 * time.Hour)
	if seen := s.collect(t, CollectOptions{Unclaimed: true}); !strings.Contains(seen[d].Kept, "names it") || !s.has(t, d) {
		t.Errorf("%+v", seen)
	}
}

// image is one that was accepted: its record is in its owner's repo.
type image struct {
	owner  syntax.DID
	name   string
	blobs  []oci.Digest
	record atcr.Manifest
}

// pushers push, delete and lose messages while the clock runs; no push takes longer than fortyHours.
type pushers struct {
	t *testing.T
	s *server
	p *people
	c *clock

	uploading sync.RWMutex // read: an upload runs, which would expire

	mu       sync.Mutex
	running  map[int]time.Time
	accepted map[string]image
	serial   int
}

const fortyHours = 40 * time.Hour

// begin notes that a push begins, which keeps the clock from running away from it.
func (ps *pushers) begin() (id int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	ps.serial++
	ps.running[ps.serial] = ps.c.now()
	return ps.serial
}

func (ps *pushers) end(id int) {
	ps.mu.Lock()
	defer ps.mu.Unlock()
	delete(ps.running, id)
}

// pass lets an hour go by, unless a push would be too old for it.
func (ps *pushers) pass() {
	ps.uploading.Lock()
	defer ps.uploading.Unlock()
	ps.mu.Lock()
	defer ps.mu.Unlock()
	for _, at := range ps.running {
		if ps.c.now().Sub(at) > fortyHours-time.Hour {
			return
		}
	}
	ps.c.advance(time.Hour)
}

// push is one by a client and an AppView: HEAD, upload what is missing, accept, tell the hold or not.
func (ps *pushers) push(random *rand.Rand, by syntax.DID) {
	id := ps.begin()
	defer ps.end(id)
	t, s := ps.t, ps.s
	img := image{owner: by, name: fmt.Sprintf("m%d", id)}
	for range 1 + random.IntN(3) {
		data := fmt.Appendf(nil, "blob %d", random.IntN(12))
		d := oci.FromBytes(data)
		if a := s.send(t, http.MethodHead, strings.Replace(s.blobPath(d), "did:plc:any", by.String(), 1), "", nil); a.status != http.StatusOK {
			ps.uploading.RLock()
			s.push(t, by, data)
			ps.uploading.RUnlock()
		}
		img.blobs = append(img.blobs, d)
		for range random.IntN(10) {
			ps.pass()
		}
	}
	in := message(by, "app", img.name, img.blobs[0], img.blobs[1:]...)
	img.record = s.manifestRecord("app", img.name, img.blobs[0], img.blobs[1:]...)
	rkey := atcr.ManifestRkey(in.ManifestDigest)
	ps.p.repos.publish(by, rkey, img.record, random.IntN(4) == 0)
	ps.mu.Lock()
	ps.accepted[img.name] = img
	ps.mu.Unlock()
	if random.IntN(3) > 0 { // else the message is lost
		if a := s.notify(t, by, in); a.status != http.StatusOK {
			t.Errorf("notify: %d %s", a.status, a.body)
		}
	}
}

// remove deletes an image of by's. Its message may be lost too.
func (ps *pushers) remove(random *rand.Rand, by syntax.DID) {
	ps.mu.Lock()
	var img image
	for _, one := range ps.accepted {
		if one.owner == by {
			img = one
			break
		}
	}
	delete(ps.accepted, img.name)
	ps.mu.Unlock()
	if img.name == "" {
		return
	}
	ps.p.repos.remove(by, atcr.ManifestRkey(manifestDigest(img.name)))
	in := message(by, "app", img.name, img.blobs[0], img.blobs[1:]...)
	in.Operation = "delete"
	if random.IntN(4) > 0 {
		if a := ps.s.notify(ps.t, by, in); a.status != http.StatusOK {
			ps.t.Errorf("notify: %d %s", a.status, a.body)
		}
	}
}

// check reads every blob of every image that is accepted, before and after the look.
func (ps *pushers) check() {
	ps.t.Helper()
	ps.mu.Lock()
	images := slices.Collect(maps.Values(ps.accepted))
	ps.mu.Unlock()
	for _, img := range images {
		for _, d := range img.blobs {
			if ps.s.has(ps.t, d) {
				continue
			}
			ps.mu.Lock()
			_, still := ps.accepted[img.name]
			ps.mu.Unlock()
			if still {
				ps.t.Errorf("the blob %s of the accepted manifest %s of %s is lost", d, img.name, img.owner)
			}
		}
	}
}

// Would catch any order of pushes, deletes, lost messages, collections and rebuilds in which a blob of an accepted
// manifest is lost, or one that nothing names stays for ever.
func TestCollectBesidePushes(t *testing.T) {
	t.Parallel()
	p, c, s := collecting(t)
	ps := &pushers{t: t, s: s, p: p, c: c, running: map[int]time.Time{}, accepted: map[string]image{}}
	done := make(chan struct{})
	var pushing, beside sync.WaitGroup
	for i, by := range []syntax.DID{writer, reader, stranger} {
		pushing.Go(func() {
			random := rand.New(rand.NewPCG(7, uint64(i)))
			for range 40 {
				if random.IntN(3) == 0 {
					ps.remove(random, by)
				} else {
					ps.push(random, by)
				}
			}
		})
	}
	collected := int64(0)
	until := func(fn func()) {
		beside.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
					fn()
				}
			}
		})
	}
	weather := rand.New(rand.NewPCG(3, 3))
	until(func() {
		p.repos.down.Store(weather.IntN(4) == 0)
		got, err := s.Collect(t.Context(), CollectOptions{})
		if err != nil {
			t.Error(err)
		}
		collected += got.Blobs
	})
	until(func() {
		if err := s.uploads.Sweep(t.Context()); err != nil {
			t.Error(err)
		}
		if _, err := s.uploads.Rebuild(t.Context()); err != nil {
			t.Error(err)
		}
	})
	until(ps.check)
	pushing.Wait()
	close(done)
	beside.Wait()
	p.repos.down.Store(false)
	ps.check()
	if collected == 0 {
		t.Error("nothing was collected beside the pushes: the test shows nothing")
	}
	ps.settle(t)
}

// settle deletes every image, and looks that nothing is left once the time is over.
func (ps *pushers) settle(t *testing.T) {
	t.Helper()
	for len(ps.accepted) > 0 {
		for _, img := range ps.accepted {
			ps.remove(rand.New(rand.NewPCG(1, 1)), img.owner)
			break
		}
	}
	// Deletes that the hold was not told of are found when it asks; those of named ones never: tell it again.
	for i := range ps.serial {
		for _, by := range []syntax.DID{writer, reader, stranger} {
			in := message(by, "app", fmt.Sprintf("m%d", i+1), oci.FromBytes(nil))
			in.Operation = "delete"
			if a := ps.s.notify(t, by, in); a.status != http.StatusOK {
				t.Fatal(a.body)
			}
		}
	}
	ps.c.advance(upload.CollectAfter + 2*time.Hour)
	ps.s.collect(t, CollectOptions{Unclaimed: true})
	left, _, err := ps.s.uploads.Usage(t.Context(), writer)
	if err != nil || left != 0 {
		t.Errorf("%d blobs are left: %v", left, err)
	}
	for i := range 12 {
		if d := oci.FromBytes(fmt.Appendf(nil, "blob %d", i)); ps.s.has(t, d) {
			t.Errorf("%s is left, which nothing names", d)
		}
	}
}
