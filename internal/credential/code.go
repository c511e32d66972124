package credential

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"
)

// What a device that polls is told.
//
// Source: RFC 8628, section 3.5.
var (
	ErrPending  = errors.New("authorization_pending")
	ErrSlowDown = errors.New("slow_down")
	ErrExpired  = errors.New("expired_token")
	ErrDenied   = errors.New("access_denied")
	// ErrCode says: no such code; it was never given out, or was used.
	ErrCode = errors.New("the code is not known, or no longer")
)

const (
	// CodeLifetime is how long a code can be approved and redeemed.
	CodeLifetime = 10 * time.Minute
	// PollInterval is how often a device may ask; who asks more often is told to wait longer.
	PollInterval = 2 * time.Second
	pollSlack    = 500 * time.Millisecond // what a network may add to one way and not to the other
	slowerBy     = 5 * time.Second        // RFC 8628, section 3.5
	// forgetAfter is how long it is remembered that a code has expired or was used.
	forgetAfter = time.Hour

	// With 20^8 codes, at most 10,000 open and 10 wrong ones in ten minutes an account and an address, a
	// guesser with a thousand accounts finds one in about ten days of trying without a pause.
	userCodeLetters    = "BCDFGHJKLMNPQRSTVWXZ" // no vowels: no words; nothing that looks like a digit
	userCodeLength     = 8
	maxOpenCodes       = 10_000
	maxCodesPerAddress = 30
	maxGuesses         = 10
	// maxPollsPerAddress is what the codes of one address need.
	maxPollsPerAddress = maxCodesPerAddress * int(CodeLifetime/PollInterval)
	limitWindow        = 10 * time.Minute
)

// Request is a machine that wants to act for somebody. Name and Platform are what it says of itself.
type Request struct {
	Name     string // of the machine
	Platform string
	Address  string // from where it asks, as people are shown it
	// Caller is what limits count: the address, or the network that one caller has. It is not kept.
	Caller string
	// Expires is when it can be approved no more.
	Expires time.Time
}

// Code is what a device shows and polls with.
type Code struct {
	DeviceCode string // secret
	UserCode   string // XXXX-XXXX
	ExpiresIn  time.Duration
	Interval   time.Duration
}

// Begin makes a code for a machine. Errors: *LimitError.
func (s *Store) Begin(ctx context.Context, r Request) (Code, error) {
	if wait, ok := s.asked.Take(r.Caller); !ok {
		return Code{}, &LimitError{wait}
	}
	now := s.now()
	c := Code{DeviceCode: rand.Text() + rand.Text(), UserCode: newUserCode(), ExpiresIn: CodeLifetime, Interval: PollInterval}
	err := s.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		if _, err := tx.ExecContext(ctx, `DELETE FROM device_code WHERE expires_at < ?`, now.Add(-forgetAfter).Unix()); err != nil {
			return err
		}
		open := 0
		if err := tx.QueryRowContext(ctx, `SELECT count(*) FROM device_code WHERE expires_at > ? AND state = 'pending'`, now.Unix()).Scan(&open); err != nil {
			return err
		}
		if open >= maxOpenCodes {
			return &LimitError{time.Minute}
		}
		_, err := tx.ExecContext(ctx, `INSERT INTO device_code
			(hash, user_hash, name, platform, address, state, did, step, polled_at, created_at, expires_at)
			VALUES (?, ?, ?, ?, ?, 'pending', '', ?, 0, ?, ?)`,
			s.hash("device code", c.DeviceCode), s.hash("user code", plainCode(c.UserCode)), clean(r.Name), clean(r.Platform), r.Address,
			int64(PollInterval/time.Second), now.Unix(), now.Add(CodeLifetime).Unix())
		return err
	})
	if err != nil {
		return Code{}, fmt.Errorf("write device code: %w", err)
	}
	return c, nil
}

// newUserCode is drawn evenly.
func newUserCode() string {
	var b strings.Builder
	var one [1]byte
	for n := 0; n < userCodeLength; {
		_, _ = rand.Read(one[:]) // never fails
		if one[0] >= 240 {
			continue
		}
		if n == userCodeLength/2 {
			b.WriteByte('-')
		}
		b.WriteByte(userCodeLetters[one[0]%20])
		n++
	}
	return b.String()
}

// plainCode is a user code as people may type it, without what they may add.
func plainCode(text string) string {
	return strings.Map(func(r rune) rune {
		if r == '-' || r == ' ' {
			return -1
		}
		return r
	}, strings.ToUpper(strings.TrimSpace(text)))
}

// Pending is the machine that shows a user code and waits for an answer. did and caller are who looks, and from
// where: wrong codes are limited for both.
//
// Errors: ErrCode, *LimitError.
func (s *Store) Pending(ctx context.Context, did syntax.DID, caller, userCode string) (Request, error) {
	for i, key := range []string{did.String(), caller} {
		if wait, ok := s.guessed.Take(key); !ok {
			if i > 0 {
				s.guessed.Give(did.String())
			}
			return Request{}, &LimitError{wait}
		}
	}
	var r Request
	var expires int64
	err := s.db.Reader().QueryRowContext(ctx, `SELECT name, platform, address, expires_at FROM device_code
		WHERE user_hash = ? AND state = 'pending' AND expires_at > ?`, s.hash("user code", plainCode(userCode)), s.now().Unix()).
		Scan(&r.Name, &r.Platform, &r.Address, &expires)
	if errors.Is(err, sql.ErrNoRows) {
		return Request{}, ErrCode
	}
	s.guessed.Give(did.String())
	s.guessed.Give(caller)
	if err != nil {
		return Request{}, fmt.Errorf("read device code: %w", err)
	}
	r.Expires = time.Unix(expires, 0)
	return r, nil
}

// Decide approves or refuses the machine that shows a user code, once. Errors: as Pending.
func (s *Store) Decide(ctx context.Context, did syntax.DID, caller, userCode string, approve bool) error {
	if _, err := s.Pending(ctx, did, caller, userCode); err != nil {
		return err
	}
	state := "denied"
	if approve {
		state = "approved"
	}
	n := int64(0)
	err := s.db.Write(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE device_code SET state = ?, did = ? WHERE user_hash = ? AND state = 'pending' AND expires_at > ?`,
			state, did.String(), s.hash("user code", plainCode(userCode)), s.now().Unix())
		if err != nil {
			return err
		}
		n, err = res.RowsAffected()
		return err
	})
	if err != nil {
		return fmt.Errorf("write device code: %w", err)
	}
	if n == 0 { // somebody else was faster
		return ErrCode
	}
	return nil
}

// Poll is the device asking, from caller. Once it is approved, the answer is its secret, one single time.
//
// Errors: ErrPending, ErrSlowDown, ErrExpired, ErrDenied, ErrCode, *LimitError.
func (s *Store) Poll(ctx context.Context, caller, deviceCode string) (secret string, c Credential, err error) {
	if wait, ok := s.polled.Take(caller); !ok {
		return "", Credential{}, &LimitError{wait}
	}
	var r Request
	var state, did string
	var step, polled, expires int64
	hash, now := s.hash("device code", deviceCode), s.now()
	err = s.db.Reader().QueryRowContext(ctx, `SELECT name, platform, address, state, did, step, polled_at, expires_at FROM device_code WHERE hash = ?`, hash).
		Scan(&r.Name, &r.Platform, &r.Address, &state, &did, &step, &polled, &expires)
	switch {
	case errors.Is(err, sql.ErrNoRows), state == "used":
		return "", Credential{}, ErrCode
	case err != nil:
		return "", Credential{}, fmt.Errorf("read device code: %w", err)
	case now.Unix() >= expires:
		return "", Credential{}, ErrExpired
	case state == "denied":
		return "", Credential{}, ErrDenied
	case state == "pending":
		outcome := ErrPending
		if now.UnixMilli()-polled < step*1000-pollSlack.Milliseconds() {
			outcome, step = ErrSlowDown, step+int64(slowerBy/time.Second)
		}
		err := s.db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
			_, err := tx.ExecContext(ctx, `UPDATE device_code SET step = ?, polled_at = ? WHERE hash = ?`, step, now.UnixMilli(), hash)
			return err
		})
		if err != nil {
			return "", Credential{}, fmt.Errorf("write device code: %w", err)
		}
		return "", Credential{}, outcome
	}
	secret = newSecret(DevicePrefix)
	c = Credential{ID: rand.Text(), Kind: Device, DID: syntax.DID(did), Name: r.Name, Platform: r.Platform, Address: r.Address, CreatedAt: now, UsedAt: now}
	err = s.db.Write(ctx, func(tx *sql.Tx) error {
		res, err := tx.ExecContext(ctx, `UPDATE device_code SET state = 'used' WHERE hash = ? AND state = 'approved'`, hash)
		if err != nil {
			return err
		}
		if n, err := res.RowsAffected(); err != nil {
			return err
		} else if n == 0 { // another poll was faster
			return ErrCode
		}
		return s.insert(ctx, tx, c, secret)
	})
	if err != nil {
		return "", Credential{}, fmt.Errorf("redeem device code: %w", err)
	}
	return secret, c, nil
}
