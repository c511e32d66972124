// Package outbox keeps messages to other servers until they were delivered.
//
// It owns their table, their order (the messages of one lane go one after the other, as they came), retries
// and bounds. It refuses to own what a message says and how it is sent: that is the Deliver function's.
package outbox

import (
	"cmp"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"atcr.io/internal/sqldb"
)

// ErrRefused is wrapped by Deliver to say that trying again would not help: the message is dropped, and logged.
var ErrRefused = errors.New("the message was refused")

// ErrTooEarly is wrapped by Deliver to say that what the message tells of is not so yet: it is tried again later, and
// meanwhile the messages behind it go.
var ErrTooEarly = errors.New("what the message tells of is not so yet")

// ErrFull says that a sender, or all together, have too many messages waiting.
var ErrFull = errors.New("too many messages wait to be delivered")

const (
	perSender     = 1000
	inAll         = 100_000
	atOnce        = 4
	firstPause    = 5 * time.Second
	longestPause  = time.Hour
	holdBackFor   = time.Minute
	deliverWithin = time.Minute
	// claimedFor is how long a message is one process's to deliver: where it ends meanwhile, another does it then.
	claimedFor = 2 * deliverWithin
	lookEvery  = 5 * time.Second
)

// Message is one to be delivered. Body is at most 1 MiB.
type Message struct {
	ID      int64 // set by Add
	Sender  string
	To      string // with Sender it makes the lane
	Kind    string
	Session string // by which the sender is spoken for
	Body    []byte
	Since   time.Time // when it was added
	// Released: its sender said that what it tells of was done. Else nobody knows, and it goes because its time is up.
	Released bool
}

// Config is what Open needs.
type Config struct {
	DB *sqldb.DB
	// Deliver sends a message. An error that wraps ErrRefused drops it; any other has it sent again later, with
	// ErrTooEarly out of its turn.
	Deliver func(ctx context.Context, m Message) error
	Logger  *slog.Logger
	Metrics prometheus.Registerer // may be nil
	Now     func() time.Time      // nil: time.Now
	// LookEvery is how often messages that became due are looked for. 0: every 5 seconds.
	LookEvery time.Duration
	// Prefix of the metrics, like atcr_appview.
	Prefix string
}

var migrations = []string{`
CREATE TABLE outbox (
	id INTEGER PRIMARY KEY AUTOINCREMENT, sender TEXT NOT NULL, recipient TEXT NOT NULL, kind TEXT NOT NULL, session TEXT NOT NULL,
	body BLOB NOT NULL, created_at INTEGER NOT NULL, due_at INTEGER NOT NULL, attempts INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_lane ON outbox (sender, recipient, id);
`, `
ALTER TABLE outbox ADD COLUMN claimed_until INTEGER NOT NULL DEFAULT 0;
`, `
ALTER TABLE outbox ADD COLUMN released INTEGER NOT NULL DEFAULT 0;
`, `
ALTER TABLE outbox ADD COLUMN aside INTEGER NOT NULL DEFAULT 0;
`}

// Personal is what waits to be said in people's names.
var Personal = []sqldb.Personal{{Table: "outbox", Where: "sender = ?", Show: "recipient, kind, created_at, attempts"}}

// Outbox delivers in the background until Close, beside the outboxes of other processes that share the database.
type Outbox struct {
	config    Config
	wake      chan struct{}
	stop      context.CancelFunc
	running   sync.WaitGroup
	delivered *prometheus.CounterVec

	mu      sync.Mutex
	waiters map[int64]chan error // for the outcome of an attempt
}

// Open migrates the table and takes up what an earlier process left.
func Open(ctx context.Context, c Config) (*Outbox, error) {
	if err := c.DB.Migrate(ctx, "outbox", migrations); err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	o := &Outbox{config: c, wake: make(chan struct{}, 1), waiters: map[int64]chan error{}}
	if err := o.measure(); err != nil {
		return nil, err
	}
	background, stop := context.WithCancel(context.WithoutCancel(ctx))
	o.stop = stop
	for range atOnce {
		o.running.Go(func() { o.run(background) })
	}
	return o, nil
}

func (o *Outbox) measure() error {
	o.delivered = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: o.config.Prefix + "_outbox_deliveries_total", Help: "Attempts to deliver a message, by outcome: done, later, refused.",
	}, []string{"outcome"})
	if o.config.Metrics == nil {
		return nil
	}
	waiting := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: o.config.Prefix + "_outbox_messages", Help: "Messages that wait to be delivered."}, func() float64 {
		var n int64
		if err := o.config.DB.Reader().QueryRow(`SELECT count(*) FROM outbox`).Scan(&n); err != nil { //nolint:noctx // a scrape has none
			return -1
		}
		return float64(n)
	})
	return errors.Join(o.config.Metrics.Register(o.delivered), o.config.Metrics.Register(waiting))
}

// Add keeps a message; on a nil error it outlives the process. It is held back until Release, or for a
// minute where the process ends before that: so it can be kept before the deed that it tells of.
// Errors: ErrFull, the database's.
func (o *Outbox) Add(ctx context.Context, m Message) (id int64, err error) {
	now := o.config.Now()
	var own, all int
	// Not in the transaction, which would then meet every other one: a few messages too many do no harm.
	err = o.config.DB.Reader().QueryRowContext(ctx, `SELECT (SELECT count(*) FROM outbox WHERE sender = ?), (SELECT count(*) FROM outbox)`, m.Sender).
		Scan(&own, &all)
	if err == nil && (own >= perSender || all >= inAll) {
		err = ErrFull
	}
	if err != nil {
		return 0, fmt.Errorf("keep a message: %w", err)
	}
	err = o.config.DB.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		return tx.QueryRowContext(ctx, `INSERT INTO outbox (sender, recipient, kind, session, body, created_at, due_at, attempts) VALUES (?,?,?,?,?,?,?,0)
			RETURNING id`, m.Sender, m.To, m.Kind, m.Session, m.Body, now.UnixMilli(), now.Add(holdBackFor).UnixMilli()).Scan(&id)
	})
	if err != nil {
		return 0, fmt.Errorf("keep a message: %w", err)
	}
	return id, nil
}

// Release lets a message go.
func (o *Outbox) Release(ctx context.Context, id int64) error {
	err := o.exec(ctx, `UPDATE outbox SET due_at = ?, released = 1 WHERE id = ?`, o.config.Now().UnixMilli(), id)
	o.poke()
	return err
}

// ReleaseAndWait is Release, and waits for what the first attempt of this process to deliver it comes to, but no longer
// than ctx. It returns what Deliver did; nil too where nothing is known yet: the message is then on its way.
func (o *Outbox) ReleaseAndWait(ctx context.Context, id int64) error {
	outcome := make(chan error, 1)
	o.mu.Lock()
	o.waiters[id] = outcome
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.waiters, id)
	}()
	if err := o.Release(context.WithoutCancel(ctx), id); err != nil {
		return err
	}
	select {
	case err := <-outcome:
		return err
	case <-ctx.Done():
		return nil
	}
}

func (o *Outbox) tell(id int64, outcome error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if waiter, ok := o.waiters[id]; ok {
		delete(o.waiters, id) // one attempt is told of
		waiter <- outcome
	}
}

// Drop forgets a message: what it would have told of did not happen.
func (o *Outbox) Drop(ctx context.Context, id int64) error {
	return o.exec(ctx, `DELETE FROM outbox WHERE id = ?`, id)
}

func (o *Outbox) exec(ctx context.Context, query string, args ...any) error {
	return o.config.DB.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		_, err := tx.ExecContext(ctx, query, args...)
		return err
	})
}

func (o *Outbox) poke() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// run delivers what is due, one message after the other.
func (o *Outbox) run(ctx context.Context) {
	tick := time.NewTicker(cmp.Or(o.config.LookEvery, lookEvery))
	defer tick.Stop()
	for {
		delivered, err := o.next(ctx)
		if err != nil && ctx.Err() == nil {
			o.config.Logger.Error("deliver messages", "error", err)
		}
		if delivered && ctx.Err() == nil {
			o.poke() // another may find more
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-o.wake:
		case <-tick.C:
		}
	}
}

// next delivers the message that is due longest, is the first of its lane, and that nobody else delivers.
func (o *Outbox) next(ctx context.Context) (delivered bool, err error) {
	m, attempts, err := o.claim(ctx)
	if err != nil || m.ID == 0 {
		return false, err
	}
	deliver, cancel := context.WithTimeout(ctx, deliverWithin)
	failed := o.config.Deliver(deliver, m)
	cancel()
	o.tell(m.ID, failed)
	keep := context.WithoutCancel(ctx)
	switch {
	case failed == nil:
		o.delivered.WithLabelValues("done").Inc()
		return true, o.Drop(keep, m.ID)
	case errors.Is(failed, ErrRefused):
		o.delivered.WithLabelValues("refused").Inc()
		o.config.Logger.Warn("a message is given up", "kind", m.Kind, "sender", m.Sender, "to", m.To, "error", failed)
		return true, o.Drop(keep, m.ID)
	case ctx.Err() != nil: // stopping: it stays due
		return false, o.exec(keep, `UPDATE outbox SET claimed_until = 0 WHERE id = ?`, m.ID)
	}
	o.delivered.WithLabelValues("later").Inc()
	o.config.Logger.Info("a message is sent again later", "kind", m.Kind, "sender", m.Sender, "to", m.To, "attempts", attempts+1, "error", failed)
	pause := min(firstPause<<min(attempts, 20), longestPause)
	return true, o.exec(keep, `UPDATE outbox SET attempts = attempts + 1, claimed_until = 0, aside = ?, due_at = CASE WHEN released = ? THEN ? ELSE due_at END WHERE id = ?`,
		errors.Is(failed, ErrTooEarly), m.Released, o.config.Now().Add(pause).UnixMilli(), m.ID) // one released meanwhile is due
}

// due are messages that may be delivered: their time has come, no older one of their lane is there, and nobody
// else delivers them. So who claims a message has its lane. One put aside is not in its lane until its time comes.
const due = `FROM outbox o WHERE o.due_at <= ?1 AND o.claimed_until <= ?1
	AND NOT EXISTS (SELECT 1 FROM outbox p WHERE p.sender = o.sender AND p.recipient = o.recipient AND p.id < o.id
		AND (p.aside = 0 OR p.due_at <= ?1 OR p.claimed_until > ?1))
	ORDER BY o.due_at LIMIT 1`

// claim takes the message that is due longest; its ID is 0 for none.
func (o *Outbox) claim(ctx context.Context) (m Message, attempts int, err error) {
	now := o.config.Now()
	var id int64 // most often there is none, which a look without a lock tells
	err = o.config.DB.Reader().QueryRowContext(ctx, `SELECT o.id `+due, now.UnixMilli()).Scan(&id)
	if errors.Is(err, sql.ErrNoRows) {
		return Message{}, 0, nil
	}
	if err != nil {
		return Message{}, 0, err
	}
	err = o.config.DB.WriteRelaxed(ctx, func(tx *sql.Tx) error {
		m = Message{}
		var since, released int64
		err := tx.QueryRowContext(ctx, `SELECT o.id, o.sender, o.recipient, o.kind, o.session, o.body, o.created_at, o.released, o.attempts `+due+o.config.DB.SkipLocked(), now.UnixMilli()).
			Scan(&m.ID, &m.Sender, &m.To, &m.Kind, &m.Session, &m.Body, &since, &released, &attempts)
		m.Since, m.Released = time.UnixMilli(since), released != 0
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		if err != nil {
			return err
		}
		_, err = tx.ExecContext(ctx, `UPDATE outbox SET claimed_until = ? WHERE id = ?`, now.Add(claimedFor).UnixMilli(), m.ID)
		return err
	})
	if err != nil {
		return Message{}, 0, err
	}
	return m, attempts, nil
}

// Close stops delivering; what is left goes at the next start.
func (o *Outbox) Close() {
	o.stop()
	o.running.Wait()
}
