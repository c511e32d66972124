package upload

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"net/url"
	"strings"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/oci"
)

// BeginOptions says what is known when an upload begins.
type BeginOptions struct {
	// Location is where the blob will be found once it is there: an http or https URL of at most 2,048
	// bytes, given to whoever finishes the upload. One that ends in "/" gets the digest behind it; "" means
	// the hold's own address of the blob.
	Location string
	// Algorithm of the digest that will be named at the end; "" means sha256. A PUT that brings all bytes
	// goes by its own digest's.
	Algorithm string
}

// Session is a new upload.
type Session struct {
	ID     string // for the calls bound to the owner; at most 256 bytes
	Secret string // for the calls by URL: 256 random bits in 43 letters. Never log it
}

// Begin makes an upload for owner. Nothing is stored before its first bytes.
//
// Errors: ErrInvalid, ErrTooManyOpen, ErrClosed.
func (u *Uploads) Begin(ctx context.Context, owner syntax.DID, o BeginOptions) (Session, error) {
	if o.Algorithm == "" {
		o.Algorithm = oci.SHA256
	}
	if _, err := oci.NewHash(o.Algorithm); err != nil {
		return Session{}, fmt.Errorf("%w: digest algorithm", ErrInvalid)
	}
	if err := checkLocation(o.Location); err != nil {
		return Session{}, err
	}
	secret := randomText(32)
	s := &session{
		id: "u" + randomText(24), secretHash: sha256.Sum256([]byte(secret)), owner: owner,
		location: o.Location, created: u.now(), algorithm: o.Algorithm,
	}
	s.active.Store(s.created.UnixMilli())
	for {
		idle, err := u.admit(s)
		if err != nil {
			return Session{}, err
		}
		if idle == nil {
			return Session{ID: s.id, Secret: secret}, nil
		}
		u.giveUp(ctx, idle, "expired")
	}
}

// admit enters s into the maps. Where the owner has too many open ones, it names one that never had bytes,
// to be given up instead: clients leave such behind when a layer turns out to be there.
func (u *Uploads) admit(s *session) (idle *session, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closing {
		return nil, ErrClosed
	}
	own := 0
	for _, other := range u.byID {
		if other.owner != s.owner {
			continue
		}
		own++
		if other.received.Load() == 0 && !other.claimed() && s.created.Sub(other.created) > emptySessionGrace &&
			(idle == nil || other.created.Before(idle.created)) {
			idle = other
		}
	}
	if own >= u.cfg.MaxOpenPerOwner || len(u.byID) >= u.cfg.MaxOpen {
		if idle == nil {
			return nil, ErrTooManyOpen
		}
		return idle, nil
	}
	u.byID[s.id] = s
	u.bySecret[s.secretHash] = s
	return nil, nil
}

func (s *session) claimed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mode != modeNone || s.working
}

func checkLocation(location string) error {
	if location == "" {
		return nil
	}
	l, err := url.Parse(location)
	if err != nil || len(location) > maxLocationBytes || l.Host == "" || l.User != nil ||
		l.Scheme != "https" && l.Scheme != "http" || strings.ContainsFunc(location, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return fmt.Errorf("%w: location must be an http or https URL of at most %d bytes", ErrInvalid, maxLocationBytes)
	}
	return nil
}

// randomText is n random bytes in URL-safe letters.
func randomText(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}

func (u *Uploads) lookSecret(secret string) (*session, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	s := u.bySecret[sha256.Sum256([]byte(secret))]
	if s == nil || s.gone.Load() {
		return nil, ErrUnknown
	}
	if err := s.joining(); err != nil {
		return nil, err
	}
	if u.expired(s) {
		return nil, ErrUnknown
	}
	return s, nil
}

// Append adds body to the upload and returns where it stands then. start, where not nil, must be where it
// stands now. When body breaks off, what came is kept, and Append returns body's error with the offset.
//
// Errors: ErrUnknown, ErrRange, ErrBusy, ErrMixed, ErrQuota, ErrTooLarge, ErrClosed, the storage's.
func (u *Uploads) Append(ctx context.Context, secret string, start *int64, body io.Reader) (int64, error) {
	return u.appendAs(ctx, secret, "", start, body)
}

// appendAs is Append with the digest algorithm announced; once bytes are there it cannot change.
func (u *Uploads) appendAs(ctx context.Context, secret, algorithm string, start *int64, body io.Reader) (int64, error) {
	s, err := u.beginStream(secret)
	if err != nil {
		return 0, err
	}
	defer u.inflight.Done()
	defer u.release(ctx, s)
	if s.stagedKey != "" || s.placed != "" { // the storage may have made an object of it already
		u.drop(ctx, s, "aborted")
		return 0, ErrUnknown
	}
	if err := s.checkStart(start); err != nil {
		return s.offset, err
	}
	if err := s.announce(algorithm); err != nil {
		return s.offset, err
	}
	if s.last == nil {
		s.keyDigest = "" // an earlier PUT may have named one and failed before it stored anything
	}
	err = u.stream(ctx, s, body, true)
	return s.offset, err
}

// beginStream finds an upload by its secret and makes the caller the one that works on it.
func (u *Uploads) beginStream(secret string) (*session, error) {
	s, err := u.lookSecret(secret)
	if err != nil {
		return nil, err
	}
	if err := u.enter(); err != nil {
		return nil, err
	}
	if err := s.acquire(modeStream); err != nil {
		u.inflight.Done()
		return nil, err
	}
	return s, nil
}

func (s *session) checkStart(start *int64) error {
	if start != nil && *start != s.offset {
		return &RangeError{Offset: s.offset}
	}
	return nil
}

func (s *session) announce(algorithm string) error {
	if algorithm == "" || algorithm == s.algorithm {
		return nil
	}
	if s.last != nil {
		return fmt.Errorf("%w before the first bytes", ErrAlgorithm)
	}
	if _, err := oci.NewHash(algorithm); err != nil {
		return err
	}
	s.algorithm, s.hash = algorithm, nil
	return nil
}

// stream appends body; keep says whether to persist a whole body too. A body that broke off always is.
func (u *Uploads) stream(ctx context.Context, s *session, body io.Reader, keep bool) error {
	err := u.append(ctx, s, body, appendOptions{metered: true, checkpoints: true})
	if cut(err) {
		u.drop(ctx, s, "cut")
		return err
	}
	if s.writer == nil || err == nil && !keep || s.gone.Load() {
		return err
	}
	if keepErr := u.persist(ctx, s, nil); keepErr != nil && err == nil {
		return keepErr
	}
	return err
}

// Status is how many bytes of the upload arrived. Errors: ErrUnknown.
func (u *Uploads) Status(_ context.Context, secret string) (int64, error) {
	s, err := u.lookSecret(secret)
	if err != nil {
		return 0, err
	}
	return s.received.Load(), nil
}

// Abort ends the upload and frees its bytes; a request that is adding to it ends with ErrUnknown.
// Errors: ErrUnknown.
func (u *Uploads) Abort(ctx context.Context, secret string) error {
	s, err := u.lookSecret(secret)
	if err != nil {
		return err
	}
	if err := u.enter(); err != nil {
		return err
	}
	defer u.inflight.Done()
	u.giveUp(ctx, s, "aborted")
	return nil
}
