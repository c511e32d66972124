package pds

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/coder/websocket"

	"atcr.io/internal/xrpc"
)

const (
	pingEvery    = 30 * time.Second
	writeTimeout = 20 * time.Second
)

// subscribeRepos streams the events behind `cursor` and those to come.
//
// Source: com.atproto.sync.subscribeRepos; https://atproto.com/specs/event-stream
func (h *Host) subscribeRepos(w http.ResponseWriter, r *http.Request) error {
	text, err := xrpc.Param(r, "cursor")
	if err != nil {
		return err
	}
	cursor := int64(-1)
	if text != "" {
		if cursor, err = strconv.ParseInt(text, 10, 64); err != nil || cursor < 0 {
			return xrpc.InvalidRequest("parameter \"cursor\" must be a whole number")
		}
	}
	if r.Header.Get("Upgrade") == "" {
		w.Header().Set("Upgrade", "websocket")
		w.Header().Set("Connection", "Upgrade")
		return xrpc.Errorf(http.StatusUpgradeRequired, "InvalidRequest", "this is a stream: connect with a WebSocket")
	}
	leave, err := h.enter(r)
	if err != nil {
		return err
	}
	defer leave()
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{InsecureSkipVerify: true}) // public, without cookies: any origin
	if err != nil {
		return nil //nolint:nilerr // Accept has answered
	}
	defer func() { _ = conn.CloseNow() }()
	ctx := conn.CloseRead(r.Context())
	s := &stream{host: h, conn: conn, cursor: cursor}
	if err := s.run(ctx); err != nil {
		h.log.Debug("a subscriber left", "error", err)
	}
	return nil
}

type stream struct {
	host   *Host
	conn   *websocket.Conn
	cursor int64
}

// run sends until the subscriber leaves, errs or lags.
func (s *stream) run(ctx context.Context) error {
	if done, err := s.start(ctx); done || err != nil {
		return err
	}
	ping := time.NewTicker(pingEvery)
	defer ping.Stop()
	for {
		page, newer, err := s.host.events.after(ctx, s.cursor)
		if errors.Is(err, errTooSlow) {
			return errors.Join(err, s.send(ctx, errorFrame("ConsumerTooSlow", err.Error())),
				s.conn.Close(websocket.StatusPolicyViolation, "ConsumerTooSlow"))
		}
		if err != nil {
			return err
		}
		for _, event := range page {
			if err := s.send(ctx, event.Frame); err != nil {
				return err
			}
			s.cursor = event.Seq
		}
		if len(page) > 0 {
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-newer:
			if s.host.events.isClosed() {
				return s.conn.Close(websocket.StatusGoingAway, "the server is stopping")
			}
		case <-ping.C:
			pong, cancel := context.WithTimeout(ctx, writeTimeout)
			err := s.conn.Ping(pong)
			cancel()
			if err != nil {
				return err
			}
		}
	}
}

// start places the cursor. done: the subscriber was told that it is in the future.
func (s *stream) start(ctx context.Context) (done bool, err error) {
	first, last, err := s.host.events.bounds(ctx)
	switch {
	case err != nil:
		return false, err
	case s.cursor < 0:
		s.cursor = last
	case s.cursor > last:
		err := s.send(ctx, errorFrame("FutureCursor", "the cursor is ahead of this server"))
		if err == nil {
			err = s.conn.Close(websocket.StatusPolicyViolation, "FutureCursor")
		}
		return true, err
	case s.cursor > 0 && s.cursor < first-1 && first > 0:
		err = s.send(ctx, infoFrame("OutdatedCursor", "events before the oldest kept one are gone"))
	}
	s.cursor = max(s.cursor, first-1) // from here on, an event that is gone is a gap
	return false, err
}

func (s *stream) send(ctx context.Context, frame []byte) error {
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	err := s.conn.Write(ctx, websocket.MessageBinary, frame)
	if err != nil && ctx.Err() != nil {
		// Too late to say it on the same connection, but the close says why.
		_ = s.conn.Close(websocket.StatusPolicyViolation, "ConsumerTooSlow")
	}
	return err
}

// errorFrame is {"op": -1} and {"error", "message"}.
func errorFrame(name, message string) []byte {
	var b bytes.Buffer
	b.Write([]byte{0xa1, 0x62, 'o', 'p', 0x20})
	writePair(&b, "error", name, message)
	return b.Bytes()
}

// infoFrame is {"op": 1, "t": "#info"} and {"name", "message"}.
func infoFrame(name, message string) []byte {
	var b bytes.Buffer
	b.Write([]byte{0xa2, 0x61, 't', 0x65, '#', 'i', 'n', 'f', 'o', 0x62, 'o', 'p', 0x01})
	writePair(&b, "name", name, message)
	return b.Bytes()
}

// writePair is a map of two strings whose first key is no longer than "message".
func writePair(b *bytes.Buffer, key, value, message string) {
	b.WriteByte(0xa2)
	for _, s := range []string{key, value, "message", message} {
		if len(s) < 24 {
			b.WriteByte(0x60 | byte(len(s)))
		} else {
			b.Write([]byte{0x78, byte(len(s))}) // all our texts are under 256 bytes
		}
		b.WriteString(s)
	}
}
