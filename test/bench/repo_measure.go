package main

import (
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bluesky-social/indigo/atproto/atcrypto"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/pds"
	"atcr.io/internal/sqldb"
)

const (
	largeRepo       = 1_000_000
	subscribers     = 1000
	eventsASecond   = 50
	subscribedFor   = 10 * time.Second
	referenceExport = 10_000
)

// benchRepo compares a hold's repo with the reference PDS, call by call.
func benchRepo(ctx context.Context, b *bench) error {
	p, err := newPerson()
	if err != nil {
		return err
	}
	defer p.plc.Close()
	reference, err := b.reference(ctx)
	if err != nil {
		return err
	}
	b.printf("\n## A hold's repo beside the reference PDS\n\n@atproto/pds 0.5.35, on Node. Both over HTTP on this machine, which the callers share. A hold takes a service token of its own with each\nwrite, and keeps its budget of events, 2,600 an hour: no measurement spends half of it, from where on commits would wait for others.\n\n| call | reference PDS | hold | of the reference PDS |\n|---|---|---|---|\n")
	if err := b.benchWrites(ctx, p, reference); err != nil {
		return err
	}
	return b.benchExport(ctx, p, reference)
}

// benchAlone measures what has no peer.
func benchAlone(ctx context.Context, b *bench) error {
	p, err := newPerson()
	if err != nil {
		return err
	}
	defer p.plc.Close()
	b.printf("\n## A hold by itself\n\nThe subscribers are of this process, on the same machine.\n\n| | |\n|---|---|\n")
	for _, run := range []func(context.Context, *person) error{b.benchIdle, b.benchStart, b.benchFirehose} {
		if err := run(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// benchWrites compares single writes, batches and reads; each round at a new hold.
func (b *bench) benchWrites(ctx context.Context, p *person, reference *repoServer) error {
	rates := map[string][2][]float64{}
	note := func(what string, i int, v float64, err error) error {
		r := rates[what]
		r[i] = append(r[i], v)
		rates[what] = r
		return err
	}
	for round := range min(b.rounds, 3) {
		h, err := b.repoHold(ctx, p, fmt.Sprintf("hold-repo%d", round), 0)
		if err != nil {
			return err
		}
		for i, s := range []*repoServer{reference, h} {
			v, err := s.create(ctx, map[int]int{0: createCalls / 4, 1: createCalls}[i])
			if err := note("create", i, v, err); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		if err := h.process.stop(); err != nil {
			return err
		}
		if h, err = b.repoHold(ctx, p, fmt.Sprintf("hold-batch%d", round), 0); err != nil {
			return err
		}
		for i, s := range []*repoServer{reference, h} {
			prefix := fmt.Sprintf("r%d", round)
			v, err := s.batches(ctx, map[int]int{0: batchCalls / 4, 1: batchCalls}[i], prefix)
			if err := note("batch", i, v, err); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			v, err = rate(ctx, s.url+"/xrpc/com.atproto.repo.getRecord?repo="+strings.ReplaceAll(s.did, "%", "%25")+"&collection="+benchCollection+"&rkey="+prefix+"0000007", "", 200, 16, 2*time.Second)
			if err := note("get", i, v, err); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
		if err := h.process.stop(); err != nil {
			return err
		}
	}
	for _, row := range []struct{ key, what, unit string }{
		{"create", fmt.Sprintf("createRecord, %d callers", callers), "/s"}, {"batch", fmt.Sprintf("applyWrites of %d, one caller", batchSize), " records/s"}, {"get", "getRecord, 16 connections", "/s"},
	} {
		theirs, ours := median(rates[row.key][0]), median(rates[row.key][1])
		b.printf("| %s | %.0f%s | %.0f%s | %.1f× |\n", row.what, theirs, row.unit, ours, row.unit, ours/theirs)
	}
	return nil
}

// benchExport downloads a repo of a hundred thousand records from a hold that has just started, and a smaller one
// from the reference PDS, which takes minutes to fill.
func (b *bench) benchExport(ctx context.Context, p *person, reference *repoServer) error {
	if _, err := reference.batches(ctx, referenceExport/batchSize, "export"); err != nil {
		return err
	}
	port, err := freePort()
	if err != nil {
		return err
	}
	h, err := b.repoHold(ctx, p, "hold-export", port)
	if err != nil {
		return err
	}
	if _, err := h.batches(ctx, exported/batchSize, "export"); err != nil {
		return err
	}
	var speeds [2][]float64
	var extra []int64
	for range min(b.rounds, 3) {
		if err := h.process.stop(); err != nil {
			return err
		}
		if h, err = b.repoHold(ctx, p, "hold-export", port); err != nil {
			return err
		}
		before, err := h.process.memory("VmRSS:")
		if err != nil {
			return err
		}
		if err := h.process.resetPeak(); err != nil {
			return err
		}
		for i, s := range []*repoServer{reference, h} {
			n, took, err := s.download(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			speeds[i] = append(speeds[i], float64(n)/1e6/took.Seconds())
		}
		peak, err := h.process.peakMemory()
		if err != nil {
			return err
		}
		extra = append(extra, peak-before)
	}
	theirs, ours := median(speeds[0]), median(speeds[1])
	b.printf("| getRepo of %d records (reference PDS: %d) | %.0f MB/s | %.0f MB/s | %.1f× |\n", exported, referenceExport, theirs, ours, ours/theirs)
	b.printf("| memory that it takes beside | | %.0f MB | |\n", float64(median(extra))/1e6)
	return h.process.stop()
}

// benchIdle is the memory of a hold that has nothing to do.
func (b *bench) benchIdle(ctx context.Context, p *person) error {
	h, err := b.repoHold(ctx, p, "hold-idle", 0)
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(5 * time.Second):
	}
	size, err := h.process.memory("VmRSS:")
	if err != nil {
		return err
	}
	b.printf("| memory of an idle hold | %.0f MB |\n", float64(size)/1e6)
	return h.process.stop()
}

// benchStart is the time from the start of the process to its first answer, with a large repo.
func (b *bench) benchStart(ctx context.Context, p *person) error {
	port, err := freePort()
	if err != nil {
		return err
	}
	dir := filepath.Join(b.dir, "hold-large-db")
	if err := buildRepo(ctx, dir, syntax.DID(fmt.Sprintf("did:web:localhost%%3A%d", port)), largeRepo); err != nil {
		return err
	}
	var took, worked []time.Duration
	var size int64
	for range min(b.rounds, 3) {
		start := time.Now()
		h, err := b.repoHold(ctx, p, "hold-large", port)
		if err != nil {
			return err
		}
		took = append(took, time.Since(start))
		busy, err := h.process.cpu()
		if err != nil {
			return err
		}
		worked = append(worked, busy)
		if size, err = h.process.memory("VmRSS:"); err != nil {
			return err
		}
		if err := h.process.stop(); err != nil {
			return err
		}
	}
	b.printf("| start to first answer, %d records | %s |\n| the processor time in it | %s |\n| its memory then | %.0f MB |\n",
		largeRepo, median(took).Round(100*time.Millisecond), median(worked).Round(100*time.Millisecond), float64(size)/1e6)
	return os.RemoveAll(dir)
}

// buildRepo makes a hold's database with n records, without the hold.
func buildRepo(ctx context.Context, dir string, did syntax.DID, n int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := atcrypto.GeneratePrivateKeyK256()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "signing.key"), key.Bytes(), 0o600); err != nil {
		return err
	}
	db, err := sqldb.Open(ctx, filepath.Join(dir, "db.sqlite3"))
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	host, err := pds.Open(ctx, pds.Config{DB: db})
	if err != nil {
		return err
	}
	repo, err := host.AddRepo(ctx, did, key, "")
	if err != nil {
		return err
	}
	for at := 0; at < n; at += batchSize {
		writes := make([]pds.Write, batchSize)
		for i := range writes {
			value, err := json.Marshal(benchRecord(at + i))
			if err != nil {
				return err
			}
			writes[i] = pds.Write{Action: pds.Create, Collection: benchCollection, Rkey: syntax.RecordKey(fmt.Sprintf("r%07d", at+i)), Value: value}
		}
		if _, err := repo.Apply(ctx, writes, nil); err != nil {
			return err
		}
		if at%(100*batchSize) == 0 { // the frames are not what is measured
			err := db.WriteRelaxed(ctx, func(tx *sql.Tx) error {
				_, err := tx.ExecContext(ctx, `DELETE FROM event WHERE seq < (SELECT max(seq) FROM event)`)
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// benchFirehose has many follow, in this process, while events come at a steady pace, whether or not those before are
// answered.
func (b *bench) benchFirehose(ctx context.Context, p *person) error {
	h, err := b.repoHold(ctx, p, "hold-firehose", 0)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, subscribedFor+time.Minute)
	defer cancel()
	f := &followers{}
	if err := f.follow(ctx, strings.Replace(h.url, "http://localhost", "127.0.0.1", 1)); err != nil {
		return err
	}
	sent, pace, err := h.produce(ctx, f)
	if err != nil {
		return err
	}
	late, whole, lagged := f.judge(sent)
	size, err := h.process.peakMemory()
	if err != nil {
		return err
	}
	quantile := func(q float64) int64 {
		if len(late) == 0 {
			return 0
		}
		return late[min(int(q*float64(len(late))), len(late)-1)].Milliseconds()
	}
	b.printf("| %d subscribers, %.0f events/s for %s, in %d commits: have them all | %d |\n| lagged: were cut off, or had an event %s late | %d |\n| from the call to the frame, of all deliveries | median %d ms, p99 %d ms, worst %d ms |\n| peak memory with them | %.0f MB |\n",
		subscribers, pace, subscribedFor, len(sent), whole, lagging, lagged, quantile(0.5), quantile(0.99), quantile(1), float64(size)/1e6)
	return h.process.stop()
}

// produce makes a record at each tick. It returns when each commit was asked for, in their order: calls that meet share
// one, and the first of them counts. The last commit comes alone, when f knows how many there are.
func (s *repoServer) produce(ctx context.Context, f *followers) (sent []time.Time, pace float64, err error) {
	const nsid, events = "com.atproto.repo.createRecord", int(eventsASecond * subscribedFor / time.Second)
	token, err := s.tokens(events+1, nsid)
	if err != nil {
		return nil, 0, err
	}
	var mu sync.Mutex
	commits := map[string]time.Time{}
	create := func(i int) error {
		var out struct{ Commit struct{ Rev string } }
		raw, err := json.Marshal(map[string]any{"repo": s.did, "collection": benchCollection, "record": benchRecord(i)})
		if err != nil {
			return err
		}
		asked := time.Now()
		if err := callJSON(ctx, http.MethodPost, s.url+"/xrpc/"+nsid, "Bearer "+token(), string(raw), &out); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		if first, ok := commits[out.Commit.Rev]; !ok || asked.Before(first) {
			commits[out.Commit.Rev] = asked
		}
		return nil
	}
	start := time.Now()
	answers := make(chan error, events)
	for i := range events {
		time.Sleep(time.Until(start.Add(time.Duration(i+1) * time.Second / eventsASecond))) // a ticker leaves out what it is late for
		go func() { answers <- create(i) }()
	}
	pace = float64(events) / time.Since(start).Seconds()
	for range events {
		err = errors.Join(err, <-answers)
	}
	if err != nil {
		return nil, 0, err
	}
	f.want.Store(int64(len(commits)) + 1)
	if err := create(events); err != nil {
		return nil, 0, err
	}
	for _, rev := range slices.Sorted(maps.Keys(commits)) {
		sent = append(sent, commits[rev])
	}
	return sent, pace, nil
}
