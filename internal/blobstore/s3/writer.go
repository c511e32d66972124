package s3

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/minio/minio-go/v7"

	"atcr.io/internal/blobstore"
)

// chunkBytes are read at a time, while a part buffer is not held by a sender who sends nothing.
const chunkBytes = 64 << 10

var errTailGone = fmt.Errorf("%w: the tail is gone", blobstore.ErrNotFound)

// writer cuts the stream into parts. An object of one part is put at once by Commit; a longer one is a
// multipart upload, begun when the second part begins, while bytes go on being taken.
type writer struct {
	store *Store
	st    state
	size  int64

	// The part being filled is in a buffer of the pool, or, after a pause, in a spool file.
	tail  []byte
	live  *live // the tail's request, where it goes to the storage while it is filled
	spool *os.File
	taken time.Time // since when the sender has the buffer
	// tailSent: the tail was sent ahead as the last part, and is sent again if more comes.
	tailSent *part
	ahead    int64 // the tail's size when it was last sent ahead
	// kept are tails that the last two States vouch for: the caller has one of these, and may come back to it.
	kept    [2]string
	resumed bool // by a later process, which does not know all that is in the spool folder
	gone    bool // the tail's file is gone: an earlier Commit may have made the object

	begun  chan struct{} // closed when there is an UploadID, or failed says why not; nil: nobody needs one yet
	flight sync.WaitGroup
	mu     sync.Mutex // of what is below and st.Parts, while parts are in flight
	failed error

	sending int           // full parts on their way
	fewer   sync.Cond     // of them, or more may be
	timed   int           // parts of which the time is known
	fastest time.Duration // of them
}

// Create sends nothing yet.
func (s *Store) Create(_ context.Context, key string) (blobstore.Writer, error) {
	if key == "" {
		key = blobstore.StagingPrefix + rand.Text()
	}
	if err := checkKey(key); err != nil {
		return nil, err
	}
	return s.newWriter(state{ID: rand.Text(), Key: key}), nil
}

func (s *Store) newWriter(st state) *writer {
	w := &writer{store: s, st: st}
	w.fewer.L = &w.mu
	return w
}

// Resume needs the tail's file; parts are believed.
func (s *Store) Resume(_ context.Context, raw []byte) (blobstore.Writer, error) {
	st, err := parseState(raw)
	if err != nil {
		return nil, err
	}
	w := s.newWriter(st)
	w.size = st.TailSize
	for _, p := range st.Parts {
		w.size += p.Size
	}
	w.resumed, w.kept[1] = true, st.Tail
	if w.st.ID == "" {
		w.st.ID = rand.Text()
	}
	if st.TailSize == 0 {
		return w, nil
	}
	if st.Boot != blobstore.BootID() {
		return nil, fmt.Errorf("%w: the machine was restarted, and the tail may be lost", blobstore.ErrNotFound)
	}
	w.spool, err = os.OpenFile(filepath.Join(s.config.SpoolDir, st.Tail), os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		w.gone = true
		return w, nil
	}
	if err != nil {
		return nil, err
	}
	info, err := w.spool.Stat()
	if err == nil && info.Size() < st.TailSize {
		err = fmt.Errorf("%w: the tail is cut: the machine went down", blobstore.ErrNotFound)
	}
	if err == nil {
		err = w.spool.Truncate(st.TailSize)
	}
	if err != nil {
		return nil, errors.Join(err, w.spool.Close())
	}
	return w, nil
}

func (w *writer) Size() int64 { return w.size }

// chunk is what a read brought.
type chunk struct {
	data []byte
	err  error
}

var chunks = sync.Pool{New: func() any { b := make([]byte, chunkBytes); return &b }}

// ReadFrom reads in a goroutine of its own, so that a sender who stalls can be parted from its buffer.
func (w *writer) ReadFrom(r io.Reader) (int64, error) {
	if err := w.failure(); err != nil {
		return 0, err
	}
	if w.gone {
		return 0, errTailGone
	}
	a, b := chunks.Get().(*[]byte), chunks.Get().(*[]byte)
	free, full, quit := make(chan []byte, 2), make(chan chunk, 2), make(chan struct{})
	free <- *a
	free <- *b
	var reader sync.WaitGroup
	reader.Go(func() {
		for {
			select {
			case p := <-free:
				n, err := r.Read(p)
				full <- chunk{p[:n], err}
				if err != nil {
					return
				}
			case <-quit:
				return
			}
		}
	})
	defer func() {
		close(quit)
		reader.Wait() // r belongs to the caller again
		chunks.Put(a)
		chunks.Put(b)
	}()
	var total int64
	slow := time.NewTimer(w.store.config.Slow)
	defer slow.Stop()
	for {
		select {
		case c := <-full:
			n, err := w.take(c.data)
			total += int64(n)
			if err == nil {
				err = c.err
			}
			if errors.Is(err, io.EOF) && err == io.EOF { //nolint:errorlint // the reader's own end, not one that wraps it
				return total, nil
			}
			if err != nil {
				return total, err
			}
			free <- c.data[:chunkBytes]
		case <-slow.C:
			if err := w.part(); err != nil {
				return total, err
			}
			slow.Reset(w.untilSlow())
		}
	}
}

// part moves a part that its sender has not filled in time to a file, so that others get the buffer.
func (w *writer) part() error {
	if w.tail == nil || time.Since(w.taken) < w.store.config.Slow {
		return nil
	}
	return w.toSpool()
}

// untilSlow is when the buffer's time is over.
func (w *writer) untilSlow() time.Duration {
	if w.tail == nil {
		return w.store.config.Slow
	}
	return max(w.store.config.Slow-time.Since(w.taken), time.Millisecond)
}

func (w *writer) tailLen() int64 {
	if w.spool != nil {
		return w.st.TailSize
	}
	return int64(len(w.tail))
}

// take appends p to the tail, sending parts as they are full and more comes.
func (w *writer) take(p []byte) (n int, err error) {
	for len(p) > 0 {
		if w.tailLen() == PartBytes {
			if err := w.sendTail(); err != nil {
				return n, err
			}
		}
		if w.tailLen() == 0 && w.spool == nil && w.tail == nil {
			buffer, err := w.store.buffer(context.Background()) // nobody keeps one for longer than Slow
			if err != nil {
				return n, err
			}
			w.tail, w.taken = buffer[:0], time.Now()
			if w.near() {
				w.goLive()
			}
		}
		m := min(len(p), int(PartBytes-w.tailLen()))
		if w.spool != nil {
			if _, err := w.spool.WriteAt(p[:m], w.st.TailSize); err != nil {
				return n, spoolError(err)
			}
			w.st.TailSize += int64(m)
		} else {
			w.tail = append(w.tail, p[:m]...)
			w.live.fill(len(w.tail))
		}
		w.tailSent = nil
		w.size, n, p = w.size+int64(m), n+m, p[m:]
	}
	return n, nil
}

// toSpool moves the tail from its buffer to its file.
func (w *writer) toSpool() error {
	if err := w.copyToSpool(); err != nil {
		return err
	}
	w.dropBuffer()
	return nil
}

// copyToSpool is toSpool that leaves the buffer to whoever sends it.
func (w *writer) copyToSpool() error {
	if w.tail == nil {
		return nil
	}
	w.st.Tail = fmt.Sprintf("%s.%d", w.st.ID, len(w.st.Parts))
	f, err := os.OpenFile(filepath.Join(w.store.config.SpoolDir, w.st.Tail), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return spoolError(err)
	}
	if _, err := f.Write(w.tail); err != nil {
		return errors.Join(spoolError(err), f.Close())
	}
	w.spool, w.st.TailSize = f, int64(len(w.tail))
	return nil
}

func spoolError(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return fmt.Errorf("%w: spool: %w", blobstore.ErrNoSpace, err)
	}
	return fmt.Errorf("spool: %w", err)
}

func (w *writer) dropBuffer() {
	w.cutLive()
	if w.tail != nil {
		w.store.giveBack(w.tail)
		w.tail = nil
	}
}

// dropSpool closes the tail's file, and removes it where no State that the caller may have vouches for it.
func (w *writer) dropSpool() error {
	if w.spool == nil {
		return nil
	}
	err := errors.Join(w.spool.Close(), w.dropTail(w.st.Tail))
	w.spool, w.st.Tail, w.st.TailSize = nil, "", 0
	return err
}

func (w *writer) dropTail(name string) error {
	if name == "" || name == w.kept[0] || name == w.kept[1] {
		return nil
	}
	if err := os.Remove(filepath.Join(w.store.config.SpoolDir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// done removes all that the upload has in the spool folder, when its object is there.
func (w *writer) done(ctx context.Context) error {
	var errs []error
	w.dropBuffer()
	if w.spool != nil {
		errs = append(errs, w.spool.Close())
		w.spool, w.st.TailSize = nil, 0
	}
	if w.resumed && w.st.UploadID == "" { // an earlier process may have begun one that is not needed now
		errs = append(errs, w.store.abort(ctx, w.st))
	}
	if w.resumed || w.st.UploadID != "" || w.st.Tail != "" || w.kept != [2]string{} {
		errs = append(errs, w.store.clearSpool(w.st))
	}
	return errors.Join(errs...)
}

func (w *writer) failure() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.failed
}

func (w *writer) fail(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failed == nil {
		w.failed = err
	}
	return err
}

// begin makes the multipart upload when it is first needed, in the background: the first part waits for it, the sender
// does not.
func (w *writer) begin() {
	if w.begun != nil {
		return
	}
	w.begun = make(chan struct{})
	if w.st.UploadID != "" {
		close(w.begun)
		return
	}
	st := state{ID: w.st.ID, Key: w.st.Key} // the rest goes on changing
	w.flight.Go(func() {
		defer close(w.begun)
		id, err := w.store.beginUpload(st)
		if err != nil {
			_ = w.fail(err)
			return
		}
		w.st.UploadID = id // read by who waited for begun
	})
}

// beginUpload makes the multipart upload of st, unless an earlier process did. It has a context of its own: that of a
// request must not end what later ones go on with.
func (s *Store) beginUpload(st state) (id string, err error) {
	if id := s.begun(st); id != "" {
		return id, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	if st.UploadID, err = s.newUpload(ctx, st.Key); err != nil {
		return "", err
	}
	// A crash before the next State must not leave parts in the bucket of which nobody knows.
	if err := os.WriteFile(s.begunFile(st), []byte(st.UploadID), 0o600); err != nil {
		return "", errors.Join(spoolError(err), s.abort(ctx, st))
	}
	return st.UploadID, nil
}

// multipart tells whether a part is on its way or there.
func (w *writer) multipart() bool { return len(w.st.Parts) > 0 }

// sendTail sends the full tail as the next part, in the background where it is in a buffer.
func (w *writer) sendTail() error {
	if err := w.failure(); err != nil {
		return err
	}
	w.begin()
	w.mu.Lock()
	number := len(w.st.Parts) + 1
	w.st.Parts = append(w.st.Parts, part{Size: w.tailLen()})
	w.mu.Unlock()
	if number > maxParts {
		return w.fail(fmt.Errorf("the blob is larger than %d parts of %d bytes", maxParts, PartBytes))
	}
	w.ahead = 0
	if w.tailSent != nil {
		w.finish(number, *w.tailSent)
		w.tailSent = nil
		w.dropBuffer()
		return w.dropSpool()
	}
	if w.spool != nil {
		p, err := w.sendPart(number, io.NewSectionReader(w.spool, 0, w.st.TailSize), w.st.TailSize)
		if err != nil {
			return w.fail(err)
		}
		w.finish(number, p)
		return w.dropSpool()
	}
	data, l := w.tail, w.live
	w.tail, w.live = nil, nil
	w.awaitRoom()
	w.flight.Go(func() {
		defer w.sent(data)
		p, err := w.sendBuffer(l, number, data)
		if err != nil {
			_ = w.fail(err)
			return
		}
		w.finish(number, p)
	})
	return nil
}

func (w *writer) finish(number int, p part) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.st.Parts[number-1] = p
}

// sendBuffer sends data, unless l has sent it.
func (w *writer) sendBuffer(l *live, number int, data []byte) (part, error) {
	if l != nil {
		if p, err := l.result(); err == nil {
			return p, nil
		}
	}
	b := newBody(data)
	defer b.end()
	start := time.Now()
	p, err := w.sendPart(number, b, int64(len(data)))
	if err == nil && len(data) == PartBytes {
		w.took(time.Since(start))
	}
	return p, err
}

func (w *writer) sendPart(number int, body io.Reader, size int64) (part, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	return w.sendPartWithin(ctx, number, body, size)
}

func (w *writer) sendPartWithin(ctx context.Context, number int, body io.Reader, size int64) (part, error) {
	if w.begun != nil {
		<-w.begun
	}
	if err := w.failure(); err != nil {
		return part{}, err
	}
	sent, err := w.store.core.PutObjectPart(ctx, w.store.config.Bucket, w.st.Key, w.st.UploadID, number, body, size,
		minio.PutObjectPartOptions{DisableContentSha256: true})
	return part{ETag: sent.ETag, Size: size}, translate(err)
}

// took notes how long the storage took for a part that was there as a whole.
func (w *writer) took(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.timed++; w.timed == 1 || d < w.fastest {
		w.fastest = d
	}
	w.fewer.Broadcast()
}

// near tells whether the storage takes parts so fast that it does not matter when one was begun in vain.
func (w *writer) near() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.timed >= timedParts && w.fastest <= w.store.config.Near
}

// awaitRoom waits until one more full part may be on its way. A far storage is idle without many; a near one has the one
// that is being filled, too, and is done earlier when the bytes end.
func (w *writer) awaitRoom() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.sending >= w.room() {
		w.fewer.Wait()
	}
	w.sending++
}

func (w *writer) room() int {
	switch {
	case w.timed < timedParts:
		return 2
	case w.fastest <= w.store.config.Near:
		return 1
	}
	return PartsInFlight
}

// sent ends what awaitRoom began.
func (w *writer) sent(data []byte) {
	w.store.giveBack(data)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sending--
	w.fewer.Broadcast()
}

// live is a request for a part that goes to the storage while its buffer is filled, in the hope that it will be full. So
// little is left to send when the bytes end, and they are sent while they are in the processor's cache.
type live struct {
	body   *body
	filled int // what the request was told of
	cancel context.CancelFunc
	done   chan struct{} // closed when the rest is set
	part   part
	err    error
}

// goLive begins the request for the tail, which is empty.
func (w *writer) goLive() {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	l := &live{body: newBody(w.tail[:PartBytes]), cancel: cancel, done: make(chan struct{})}
	l.body.filled = 0
	number := len(w.st.Parts) + 1
	w.live = l
	w.flight.Go(func() {
		defer close(l.done)
		defer l.body.end()
		defer cancel()
		l.part, l.err = w.sendPartWithin(ctx, number, l.body, PartBytes)
	})
}

// fill lets the request have the first n bytes, or leaves it for later.
func (l *live) fill(n int) {
	if l != nil && (n-l.filled >= liveBytes || n == PartBytes) {
		l.filled = n
		l.body.fill(n)
	}
}

// result is that of a part that is full.
func (l *live) result() (part, error) {
	<-l.done
	return l.part, l.err
}

// cutLive ends the request for a tail that is not to be that part, or not in that buffer.
func (w *writer) cutLive() {
	if w.live == nil {
		return
	}
	w.live.cancel()
	w.live.body.end()
	<-w.live.done
	w.live = nil
}

// State waits for the parts on their way and puts the tail into its file. Where there are parts already,
// the tail is sent ahead too, so that Commit has nothing left to send; but only once it has doubled, so that
// many small steps do not send it many times.
func (w *writer) State(context.Context) ([]byte, error) {
	if w.gone {
		return nil, errTailGone
	}
	if err := w.settle(w.tailLen() >= 2*w.ahead, w.copyToSpool); err != nil {
		return nil, w.fail(err)
	}
	w.dropBuffer()
	if old := w.kept[0]; w.kept[1] != w.st.Tail {
		w.kept = [2]string{w.kept[1], w.st.Tail}
		if err := w.dropTail(old); err != nil {
			return nil, err
		}
	}
	w.st.Boot = blobstore.BootID()
	return json.Marshal(w.st)
}

// settle waits for the parts on their way. Beside them it sends the tail where that is to be the last part (and send
// says so), and calls meanwhile.
func (w *writer) settle(send bool, meanwhile func() error) error {
	if err := w.failure(); err != nil {
		return err
	}
	if w.multipart() && w.tailLen() == PartBytes {
		if err := w.sendTail(); err != nil {
			return err
		}
	}
	w.cutLive()
	var sent part
	var sendErr error
	if send = send && w.multipart() && w.tailLen() > 0 && w.tailSent == nil; send {
		number, spool, size, data := len(w.st.Parts)+1, w.spool, w.tailLen(), w.tail
		w.flight.Go(func() {
			if spool != nil {
				sent, sendErr = w.sendPart(number, io.NewSectionReader(spool, 0, size), size)
				return
			}
			sent, sendErr = w.sendBuffer(nil, number, data)
		})
	}
	err := meanwhile()
	w.flight.Wait()
	if err := errors.Join(w.failure(), sendErr, err); err != nil {
		return err
	}
	if send {
		w.tailSent, w.ahead = &sent, w.tailLen()
	}
	return nil
}

// Seal makes the tail the last part of an upload that has parts. It is left to Commit to find out that an earlier one was
// all but done.
func (w *writer) Seal(context.Context) (bool, error) {
	if err := w.failure(); err != nil {
		return false, err
	}
	if w.gone || !w.multipart() {
		return false, nil
	}
	err := w.settle(true, func() error { return nil })
	if errors.Is(err, blobstore.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, w.fail(err)
	}
	if w.tailLen() == 0 {
		return true, nil
	}
	w.st.Parts = append(w.st.Parts, *w.tailSent)
	w.tailSent = nil
	w.dropBuffer()
	return true, w.dropSpool()
}

// Key is that of the multipart upload.
func (w *writer) Key() string {
	if !w.multipart() {
		return ""
	}
	return w.st.Key
}

// Commit puts a single part under its final key, or completes the multipart upload under the key it has.
func (w *writer) Commit(ctx context.Context, final string) (string, error) {
	if err := checkKey(final); err != nil {
		return "", err
	}
	if err := w.failure(); err != nil {
		return "", err
	}
	if w.gone {
		key := w.st.Key
		if !w.multipart() {
			key = final
		}
		return w.committed(ctx, key, errTailGone)
	}
	if !w.multipart() {
		return final, w.putWhole(ctx, final)
	}
	if err := w.settle(true, func() error { return nil }); err != nil {
		if errors.Is(err, blobstore.ErrNotFound) {
			return w.committed(ctx, w.st.Key, w.fail(err))
		}
		return "", w.fail(err)
	}
	parts := w.st.Parts
	if w.tailLen() > 0 {
		parts = append(parts[:len(parts):len(parts)], *w.tailSent)
	}
	done := make([]minio.CompletePart, len(parts))
	for i, p := range parts {
		done[i] = minio.CompletePart{PartNumber: i + 1, ETag: p.ETag}
	}
	_, err := w.store.joiner.CompleteMultipartUpload(ctx, w.store.config.Bucket, w.st.Key, w.st.UploadID, done, minio.PutObjectOptions{})
	if code := minio.ToErrorResponse(err).Code; code == "NoSuchUpload" || code == "InvalidPart" {
		return w.committed(ctx, w.st.Key, translate(err))
	}
	if err != nil { // also a 404 of which no storage says what is not there: a proxy's, say
		return "", fmt.Errorf("join the parts: %w", err)
	}
	return w.st.Key, w.done(ctx)
}

// committed is what Commit answers when the upload is gone: an earlier one may have made the object, and not have lived to
// say so. Only where that is not so the bytes are lost, which lost says.
func (w *writer) committed(ctx context.Context, key string, lost error) (string, error) {
	size, err := w.store.Stat(ctx, key)
	switch {
	case errors.Is(err, blobstore.ErrNotFound) || err == nil && size != w.size:
		return "", lost
	case err != nil:
		return "", fmt.Errorf("look whether the object was made before: %w", err)
	}
	return key, w.done(ctx)
}

func (w *writer) putWhole(ctx context.Context, final string) error {
	data := w.tail
	if w.spool != nil {
		buffer, err := w.store.buffer(ctx)
		if err != nil {
			return err
		}
		defer w.store.giveBack(buffer)
		data = buffer[:w.st.TailSize]
		if _, err := w.spool.ReadAt(data, 0); err != nil {
			return spoolError(err)
		}
	}
	if err := w.store.put(ctx, final, data); err != nil {
		return err
	}
	return w.done(ctx)
}

// Close waits for the parts on their way, since their buffers are the process's.
func (w *writer) Close() error {
	w.cutLive()
	w.flight.Wait()
	w.dropBuffer()
	if w.spool == nil {
		return nil
	}
	err := errors.Join(w.spool.Close(), w.dropTail(w.st.Tail))
	w.spool = nil
	return err
}
