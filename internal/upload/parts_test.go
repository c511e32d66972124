package upload

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/iotest"
	"time"

	"atcr.io/internal/blobstore"
	"atcr.io/internal/oci"
)

// split cuts data into parts of size.
func split(data []byte, size int) (parts [][]byte) {
	for len(data) > size {
		parts = append(parts, data[:size])
		data = data[size:]
	}
	return append(parts, data)
}

func (r *rig) put(s Session, number int, data []byte) blobstore.Part {
	r.t.Helper()
	etag, err := r.PutPart(r.t.Context(), alice, s.ID, number, bytes.NewReader(data))
	if err != nil {
		r.t.Fatalf("part %d: %v", number, err)
	}
	return blobstore.Part{Number: number, ETag: etag}
}

// Would catch parts joined in the order in which they came, lost, or hashed out of turn.
func TestParts(t *testing.T) {
	t.Parallel()
	data := noise(1_000_000, 1)
	chunks := split(data, 70_000)
	d := oci.FromBytes(data)
	for name, order := range map[string][]int{
		"in order": nil, "reversed": {14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0}, "shuffled": rand.New(rand.NewPCG(1, 2)).Perm(15),
	} {
		for _, keep := range []bool{false, true} {
			m := newMemory()
			m.keepKeys = keep
			r := newRig(t, m, nil)
			s := r.begin(alice)
			parts := make([]blobstore.Part, len(chunks))
			for i := range chunks {
				n := i
				if order != nil {
					n = order[i]
				}
				parts[n] = r.put(s, n+1, chunks[n])
				if again := r.put(s, n+1, chunks[n]); again != parts[n] {
					t.Errorf("%s: part %d again: %v, not %v", name, n+1, again, parts[n])
				}
				if _, err := r.PutPart(t.Context(), alice, s.ID, n+1, bytes.NewReader(noise(70_000, 99))); !errors.Is(err, ErrPartDiffers) {
					t.Errorf("%s: other bytes: %v", name, err)
				}
				if order == nil && n%4 == 3 {
					r.reopen()
				}
			}
			for range 2 { // repeated: the same answer
				if blob, err := r.Complete(t.Context(), alice, s.ID, d, parts); err != nil || blob.Digest != d || !blob.Verified {
					t.Fatalf("%s: %+v, %v", name, blob, err)
				}
			}
			if _, err := r.Complete(t.Context(), alice, s.ID, oci.FromBytes(nil), parts); !errors.Is(err, ErrUnknown) {
				t.Errorf("another digest afterwards: %v", err)
			}
			if _, err := r.Complete(t.Context(), bob, s.ID, d, parts); !errors.Is(err, ErrUnknown) {
				t.Errorf("somebody else afterwards: %v", err)
			}
			if _, err := r.PutPart(t.Context(), alice, s.ID, 16, bytes.NewReader(data)); !errors.Is(err, ErrUnknown) {
				t.Errorf("a part after completion: %v", err)
			}
			r.content(d, "")
			r.walk()
			if r.spooled != 0 {
				t.Errorf("%d bytes spooled", r.spooled)
			}
		}
	}
}

// Would catch parts that come at once and deadlock, get lost, or land in another's place.
func TestPartsTogether(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	data := noise(2_000_000, 3)
	chunks := split(data, 90_000)
	s := r.begin(alice)
	parts := make([]blobstore.Part, len(chunks))
	var wg sync.WaitGroup
	for i, chunk := range chunks {
		wg.Go(func() { parts[i] = r.put(s, i+1, chunk) })
	}
	wg.Wait()
	if _, err := r.Complete(t.Context(), alice, s.ID, oci.FromBytes(data), parts); err != nil {
		t.Fatal(err)
	}
	r.content(oci.FromBytes(data), "")
}

// Would catch half a part that stays in the blob, and a part that cannot be sent again.
func TestPartBreaksOff(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	data := noise(300_000, 1)
	chunks := split(data, 100_000)
	s := r.begin(alice)
	var parts []blobstore.Part
	for i, chunk := range chunks {
		for _, number := range []int{i + 1, i + 2} { // in its turn, and ahead of it
			broken := io.MultiReader(bytes.NewReader(chunk[:77_777]), iotest.ErrReader(io.ErrUnexpectedEOF))
			if _, err := r.PutPart(t.Context(), alice, s.ID, number, broken); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Fatal(err)
			}
		}
		parts = append(parts, r.put(s, i+1, chunk))
	}
	if _, err := r.Complete(t.Context(), alice, s.ID, oci.FromBytes(data), parts); err != nil {
		t.Fatal(err)
	}
	r.content(oci.FromBytes(data), "")
}

// Would catch a completion that believes the list of parts, whatever came.
func TestCompleteChecksParts(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	data := noise(3000, 1)
	d := oci.FromBytes(data)
	s := r.begin(alice)
	if _, err := r.Complete(t.Context(), alice, s.ID, d, nil); !errors.Is(err, ErrMissingParts) {
		t.Errorf("nothing sent: %v", err)
	}
	var p []blobstore.Part
	for i, chunk := range split(data, 1000) {
		p = append(p, r.put(s, i+1, chunk))
	}
	for name, parts := range map[string][]blobstore.Part{
		"none": nil, "first missing": p[1:], "last missing": p[:2], "middle missing": {p[0], p[2]}, "twice": {p[0], p[1], p[1], p[2]},
		"never sent": {p[0], p[1], p[2], {Number: 4, ETag: p[0].ETag}}, "swapped etags": {{Number: 1, ETag: p[1].ETag}, {Number: 2, ETag: p[0].ETag}, p[2]},
		"no etag": {p[0], p[1], {Number: 3}}, "number zero": {{Number: 0, ETag: "x"}, p[0], p[1], p[2]}, "negative": {{Number: -1, ETag: "x"}},
	} {
		if _, err := r.Complete(t.Context(), alice, s.ID, d, parts); !errors.Is(err, ErrMissingParts) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := r.Complete(t.Context(), bob, s.ID, d, p); !errors.Is(err, ErrUnknown) {
		t.Errorf("somebody else: %v", err)
	}
	r.put(s, 5, []byte("beyond a gap"))
	if _, err := r.Complete(t.Context(), alice, s.ID, d, p); !errors.Is(err, ErrMissingParts) {
		t.Errorf("a gap: %v", err)
	}
	r.reopen() // parts ahead of their turn go with the process
	quoted := []blobstore.Part{p[2], p[0], {Number: 2, ETag: `"` + p[1].ETag + `"`}}
	if _, err := r.Complete(t.Context(), alice, s.ID, d, quoted); err != nil {
		t.Errorf("any order, quoted etags: %v", err)
	}
	s = r.begin(alice)
	p = []blobstore.Part{r.put(s, 1, data)}
	if _, err := r.Complete(t.Context(), alice, s.ID, oci.FromBytes([]byte("other")), p); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("another digest: %v", err)
	}
	r.absent(oci.FromBytes([]byte("other")))
	s = r.begin(alice)
	for _, empty := range []oci.Digest{oci.FromBytes(nil), sha512Of(nil)} {
		s = r.begin(alice)
		if _, err := r.Complete(t.Context(), alice, s.ID, empty, nil); err != nil {
			t.Errorf("the empty blob: %v", err)
		}
		r.content(empty, "")
	}
}

// Would catch a spool without bounds and part numbers that are none.
func TestPartNumbers(t *testing.T) {
	t.Parallel()
	r := newRig(t, newMemory(), nil)
	s := r.begin(alice)
	for _, number := range []int{-1, 0, maxPartNumber + 1} {
		if _, err := r.PutPart(t.Context(), alice, s.ID, number, bytes.NewReader(nil)); !errors.Is(err, ErrPartNumber) {
			t.Errorf("%d: %v", number, err)
		}
	}
	r.put(s, 1, []byte("one"))
	for i := range maxSpoolParts {
		r.put(s, i+3, []byte("ahead"))
	}
	_, err := r.PutPart(t.Context(), alice, s.ID, 9000, bytes.NewReader(nil))
	if wrong, ok := errors.AsType[*PartNumberError](err); !ok || wrong.Next != 2 || !errors.Is(err, ErrPartNumber) {
		t.Errorf("too many ahead: %v", err)
	}
	r.put(s, 2, []byte("two")) // all of them follow
	r.put(s, 9000, nil)
	other := r.begin(alice)
	if _, err := r.PutPart(t.Context(), alice, other.ID, 2, io.LimitReader(zeros{}, maxSpoolBytes+1)); !errors.Is(err, ErrPartNumber) {
		t.Errorf("too much ahead: %v", err)
	}
	if r.spooled != 0 {
		t.Errorf("%d bytes spooled", r.spooled)
	}
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// Would catch bytes that come two ways into one upload.
func TestMixedWays(t *testing.T) {
	t.Parallel()
	m := presigning{newMemory()}
	r := newRig(t, m, nil)
	ways := map[string]func(s Session) error{
		"stream": func(s Session) error {
			_, err := r.Append(t.Context(), s.Secret, nil, bytes.NewReader([]byte("x")))
			return err
		},
		"part": func(s Session) error {
			_, err := r.PutPart(t.Context(), alice, s.ID, 1, bytes.NewReader([]byte("x")))
			return err
		},
		"presigned": func(s Session) error {
			_, _, err := r.PartURL(t.Context(), alice, s.ID, 1)
			return err
		},
	}
	for first, begin := range ways {
		for second, other := range ways {
			s := r.begin(alice)
			if err := begin(s); err != nil {
				t.Fatal(err)
			}
			r.reopen()
			if err := other(s); first != second && !errors.Is(err, ErrMixed) || first == second && err != nil {
				t.Errorf("%s, then %s: %v", first, second, err)
			}
		}
	}
	s := r.begin(alice)
	if err := ways["stream"](s); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Complete(t.Context(), alice, s.ID, oci.FromBytes([]byte("x")), nil); !errors.Is(err, ErrMixed) {
		t.Errorf("complete of a stream: %v", err)
	}
}

// direct sends data by presigned parts and completes it as claimed.
func (r *rig) direct(m presigning, s Session, data []byte, claimed oci.Digest) (Blob, error) {
	r.t.Helper()
	var parts []blobstore.Part
	for i, chunk := range split(data, 100_000) {
		url, headers, err := r.PartURL(r.t.Context(), alice, s.ID, i+1)
		if err != nil || headers["X-Test"] == "" {
			r.t.Fatalf("part %d: %v, %v", i+1, headers, err)
		}
		parts = append(parts, blobstore.Part{Number: i + 1, ETag: m.send(url, chunk)})
	}
	return r.Complete(r.t.Context(), alice, s.ID, claimed, parts)
}

// Would catch presigned bytes that are readable by others before they were hashed, under a wrong digest,
// or that are never hashed after a restart.
func TestPresigned(t *testing.T) {
	t.Parallel()
	data := noise(450_000, 1)
	for _, d := range []oci.Digest{oci.FromBytes(data), sha512Of(data)} {
		for _, inline := range []bool{true, false} {
			m := presigning{newMemory()}
			r := newRig(t, m, nil)
			if !inline {
				r.inline = 1000
				m.fault.set(func(step string) error {
					if step == "before open" {
						return errors.New("the storage is slow today")
					}
					return nil
				})
			}
			s := r.begin(alice)
			blob, err := r.direct(m, s, data, d)
			if err != nil || blob.Verified != inline {
				t.Fatalf("%+v, %v", blob, err)
			}
			if !inline {
				if _, err := r.Stat(t.Context(), d, bob); !errors.Is(err, ErrNoBlob) {
					t.Errorf("bob: %v", err)
				}
				if _, err := r.Stat(t.Context(), d, ""); !errors.Is(err, ErrNoBlob) {
					t.Errorf("nobody: %v", err)
				}
				if n, size, err := r.Usage(t.Context(), alice); n != 1 || size != int64(len(data)) || err != nil {
					t.Errorf("usage: %d, %d, %v", n, size, err)
				}
				again, err := r.Complete(t.Context(), alice, s.ID, d, nil)
				if err != nil || again.Verified {
					t.Errorf("complete again: %+v, %v", again, err)
				}
				if err := r.Close(t.Context()); err != nil {
					t.Fatal(err)
				}
				m.fault.clear()
				r.open()
				if err := r.verifyAll(t.Context()); err != nil {
					t.Fatal(err)
				}
				r.settled()
			}
			r.content(d, bob)
			if _, ok := m.objects[blobstore.PointerKey(d)]; !ok {
				t.Error("no pointer")
			}
			r.walk()
		}
	}
}

// settled waits until the background has looked at every unverified blob.
func (r *rig) settled() {
	r.t.Helper()
	for {
		r.mu.Lock()
		busy := len(r.verifying)
		r.mu.Unlock()
		if busy == 0 {
			return
		}
		_ = r.verifyAll(r.t.Context())
	}
}

// Would catch wrong presigned bytes that stay readable to anyone, or lie in the storage for ever.
func TestPresignedMismatch(t *testing.T) {
	t.Parallel()
	for _, inline := range []bool{true, false} {
		m := presigning{newMemory()}
		r := newRig(t, m, nil)
		if !inline {
			r.inline = 0
		}
		wrong := oci.FromBytes([]byte("wrong"))
		s := r.begin(alice)
		_, err := r.direct(m, s, noise(200_000, 1), wrong)
		if inline && !errors.Is(err, ErrDigestMismatch) || !inline && err != nil {
			t.Fatal(err)
		}
		if err := r.verifyAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.settled()
		r.absent(wrong)
		if _, err := r.Complete(t.Context(), alice, s.ID, wrong, nil); !errors.Is(err, ErrDigestMismatch) {
			t.Errorf("completed again: %v", err)
		}
		if len(m.objects) != 0 {
			t.Errorf("left: %d objects", len(m.objects))
		}
	}
}

// Would catch a blob that goes because an earlier upload of it, which was being read when it was replaced, had other
// bytes: the new row may have the old one's id.
func TestPresignedAgainWhileRead(t *testing.T) {
	t.Parallel()
	m := presigning{newMemory()}
	r := newRig(t, m, nil)
	r.inline = 0
	data := noise(200_000, 1)
	d := oci.FromBytes(data)
	reading, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	m.fault.set(func(step string) error {
		if step == "after open" {
			once.Do(func() { close(reading); <-goOn })
		}
		return nil
	})
	if _, err := r.direct(m, r.begin(alice), noise(200_000, 2), d); err != nil { // damaged on the way
		t.Fatal(err)
	}
	<-reading
	if _, err := r.direct(m, r.begin(alice), data, d); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	r.settled()
	r.content(d, alice)
	if err := r.verifyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.settled()
	r.content(d, bob)
	r.walk()
}

// Would catch a yes for bytes that the background reads, and finds wrong, before the request does.
func TestPresignedMismatchFoundByOthers(t *testing.T) {
	t.Parallel()
	m := presigning{newMemory()}
	r := newRig(t, m, nil)
	reading, goOn := make(chan struct{}), make(chan struct{})
	var once, begin sync.Once
	m.fault.set(func(step string) error {
		if step == "after open" {
			once.Do(func() { close(reading); <-goOn })
		}
		return nil
	})
	var background sync.WaitGroup
	r.db.fault.set(func(step string) error {
		if step == "after db write" {
			begin.Do(func() {
				background.Go(func() {
					if err := r.verifyAll(context.WithoutCancel(t.Context())); err != nil {
						t.Error(err)
					}
				})
				<-reading
				close(goOn)
			})
		}
		return nil
	})
	d := oci.FromBytes([]byte("other"))
	if blob, err := r.direct(m, r.begin(alice), noise(200_000, 2), d); !errors.Is(err, ErrDigestMismatch) {
		t.Errorf("%+v, %v", blob, err)
	}
	background.Wait()
	r.absent(d)
}

// Would catch a claim on a digest that keeps somebody else from uploading it, or one of two copies that is lost.
func TestPresignedClaimBlocksNobody(t *testing.T) {
	t.Parallel()
	m := presigning{newMemory()}
	r := newRig(t, m, nil)
	data := noise(200_000, 1)
	d := oci.FromBytes(data)
	slow := errors.New("the storage is slow today")
	m.fault.set(func(step string) error {
		if step == "before open" {
			return slow
		}
		return nil
	})
	claims := []Session{r.begin(alice), r.begin(alice)}
	if _, err := r.direct(m, claims[0], noise(200_000, 2), d); err != nil { // alice lies
		t.Fatal(err)
	}
	if _, err := r.direct(m, claims[1], data, d); err != nil { // and tries again, honestly
		t.Fatal(err)
	}
	s := r.begin(bob)
	if blob, err := r.Finish(t.Context(), s.Secret, d, nil, bytes.NewReader(data)); err != nil || blob.Owner != bob {
		t.Fatalf("%+v, %v", blob, err)
	}
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.fault.clear()
	r.open()
	if err := r.verifyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.settled()
	if err := r.Sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.content(d, "")
	r.walk()
	if blob, _ := r.Stat(t.Context(), d, alice); blob.Key != blobstore.BlobKey(d) || blob.Owner != bob {
		t.Errorf("%+v", blob)
	}
	if ok, err := r.UploadedBy(t.Context(), d, alice); !ok || err != nil {
		t.Errorf("alice uploaded it too: %v", err)
	}
	if len(m.objects) != 1 {
		t.Errorf("%d objects of one blob", len(m.objects))
	}
}

// Would catch a store without presigning that is asked for it, part lists that are believed, and unverified
// blobs that stay for ever.
func TestPresignedEdges(t *testing.T) {
	t.Parallel()
	m := presigning{newMemory()}
	r := newRig(t, m, func(c *Config) { c.NoPresign = true })
	s := r.begin(alice)
	if _, _, err := r.PartURL(t.Context(), alice, s.ID, 1); !errors.Is(err, ErrNoPresign) {
		t.Errorf("switched off: %v", err)
	}
	if _, ok, err := r.Presign(t.Context(), Blob{Key: "k"}, "GET", 1); ok || err != nil {
		t.Errorf("switched off: %v", err)
	}
	r.cfg.NoPresign = false
	if err := r.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.open()
	if url, ok, err := r.Presign(t.Context(), Blob{Key: "k"}, "HEAD", 1); !ok || err != nil || url != "https://storage.test/k?method=HEAD" {
		t.Errorf("%s, %v", url, err)
	}
	s = r.begin(alice)
	if _, _, err := r.PartURL(t.Context(), bob, s.ID, 1); !errors.Is(err, ErrUnknown) {
		t.Errorf("somebody else: %v", err)
	}
	if _, _, err := r.PartURL(t.Context(), alice, s.ID, maxPartNumber+1); !errors.Is(err, ErrPartNumber) {
		t.Errorf("number: %v", err)
	}
	url, _, err := r.PartURL(t.Context(), alice, s.ID, 1)
	if err != nil {
		t.Fatal(err)
	}
	data := noise(1000, 1)
	d := oci.FromBytes(data)
	etag := m.send(url, data)
	for name, parts := range map[string][]blobstore.Part{
		"none": nil, "never sent": {{Number: 1, ETag: etag}, {Number: 2, ETag: `"2"`}}, "other etag": {{Number: 1, ETag: "x"}},
	} {
		if _, err := r.Complete(t.Context(), alice, s.ID, d, parts); !errors.Is(err, ErrMissingParts) {
			t.Errorf("%s: %v", name, err)
		}
	}
	m.fault.set(func(step string) error {
		if step == "before open" {
			return errors.New("the storage cannot read")
		}
		return nil
	})
	if blob, err := r.Complete(t.Context(), alice, s.ID, d, []blobstore.Part{{Number: 1, ETag: etag}}); err != nil || blob.Verified {
		t.Fatalf("%+v, %v", blob, err)
	}
	r.clock.move(UnverifiedFor + 1e9)
	there := true
	for end := time.Now().Add(time.Minute); there && time.Now().Before(end); { // a round leaves alone what the background reads
		if err := r.Sweep(t.Context()); err != nil {
			t.Fatal(err)
		}
		_, err := r.Stat(t.Context(), d, alice)
		there = !errors.Is(err, ErrNoBlob)
	}
	r.absent(d)
	if len(m.objects) != 0 {
		t.Errorf("%d objects", len(m.objects))
	}
}

// Would catch several requests for URLs at once that begin several uploads in the storage.
func TestPartURLsTogether(t *testing.T) {
	t.Parallel()
	m := presigning{newMemory()}
	r := newRig(t, m, nil)
	s := r.begin(alice)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			if url, _, err := r.PartURL(context.WithoutCancel(t.Context()), alice, s.ID, i+1); err != nil || url != fmt.Sprintf("s1/%d", i+1) {
				t.Errorf("%s, %v", url, err)
			}
		})
	}
	wg.Wait()
}
