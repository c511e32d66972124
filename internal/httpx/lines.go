package httpx

import (
	"context"
	"errors"
	"sync"
)

// Lines bound what goes on at once for each key (a host, a caller): some have a turn, some wait for one, and more are
// refused. They are kept in memory, by each process for itself. Safe for concurrent use.
type Lines struct {
	atOnce, room int
	mu           sync.Mutex
	of           map[string]*line // of keys for which anybody is in
}

// line is those who have a turn, and those who wait for one.
type line struct {
	turn chan struct{}
	in   int // both, by Lines.mu
}

// ErrNoTurn says: others of the same key have all turns, and nobody waits, or too many wait already.
var ErrNoTurn = errors.New("too many at once")

// NewLines lets atOnce go on for each key, and waiting wait.
func NewLines(atOnce, waiting int) *Lines {
	return &Lines{atOnce: atOnce, room: atOnce + waiting, of: map[string]*line{}}
}

// Enter waits for a turn of key, which leave ends. Errors: ErrNoTurn where too many wait; ctx's.
func (l *Lines) Enter(ctx context.Context, key string) (leave func(), err error) {
	own, ok := l.join(key, l.room)
	if !ok {
		return nil, ErrNoTurn
	}
	select {
	case own.turn <- struct{}{}:
		return func() { <-own.turn; l.leave(key, own) }, nil
	case <-ctx.Done():
		l.leave(key, own)
		return nil, ctx.Err()
	}
}

// Try is Enter without a wait. Errors: ErrNoTurn.
func (l *Lines) Try(key string) (leave func(), err error) {
	own, ok := l.join(key, l.atOnce)
	if !ok {
		return nil, ErrNoTurn
	}
	own.turn <- struct{}{} // all that are in have a turn, or one waits for them that is free
	return func() { <-own.turn; l.leave(key, own) }, nil
}

// join is in the line of key, unless room are.
func (l *Lines) join(key string, room int) (own *line, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	own = l.of[key]
	if own == nil {
		own = &line{turn: make(chan struct{}, l.atOnce)}
		l.of[key] = own
	}
	if own.in >= room {
		return nil, false
	}
	own.in++
	return own, true
}

func (l *Lines) leave(key string, own *line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if own.in--; own.in == 0 {
		delete(l.of, key)
	}
}

// Len is the number of keys for which anybody is in.
func (l *Lines) Len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.of)
}
