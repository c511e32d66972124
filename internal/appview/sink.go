package appview

import (
	"context"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/index"
	"atcr.io/internal/ingest"
)

// sink gives what was read of the network to the index: ingest.Sink.
type sink struct{ index *index.Index }

func (s sink) Repo(ctx context.Context, did syntax.DID) (ingest.Repo, bool, error) {
	r, found, err := s.index.Repo(ctx, did)
	return sinkRepo(r), found, err
}

func sinkRepo(r index.Repo) ingest.Repo {
	return ingest.Repo{
		DID: r.DID, PDS: r.PDS, Rev: r.Rev, Data: r.Data, Source: r.Source, Active: r.Status == index.StatusActive, Complete: r.Complete, Attempts: r.Attempts,
		Doubts: r.Doubts,
	}
}

func (s sink) CID(ctx context.Context, did syntax.DID, collection, rkey string) (string, error) {
	return s.index.RecordCID(ctx, did, collection, rkey)
}

func (s sink) Due(ctx context.Context, limit int) ([]ingest.Repo, error) {
	due, err := s.index.Due(ctx, limit)
	out := make([]ingest.Repo, len(due))
	for i, r := range due {
		out[i] = sinkRepo(r)
	}
	return out, err
}

func (s sink) Cursor(ctx context.Context, source string) (int64, error) {
	return s.index.Cursor(ctx, source)
}

func (s sink) Write(ctx context.Context, commits []ingest.Commit, source string, cursor int64) error {
	out := make([]index.Commit, len(commits))
	for i, c := range commits {
		out[i] = index.Commit{
			DID: c.DID, Rev: c.Rev, InOrder: c.InOrder, Since: c.Since, PrevData: c.PrevData, Data: c.Data, Source: c.Source, Changes: indexChanges(c.Changes),
		}
	}
	return s.index.Write(ctx, out, index.Cursor{Source: source, Value: cursor})
}

func indexChanges(changes []ingest.Change) []index.Change {
	out := make([]index.Change, len(changes))
	for i, c := range changes {
		out[i] = index.Change{Collection: c.Collection, Rkey: c.Rkey, CID: c.CID, Value: c.Value}
	}
	return out
}

func (s sink) Replace(ctx context.Context, c ingest.Commit, doubts int64) error {
	return s.index.Replace(ctx, c.DID, c.Rev, c.Data, doubts, indexChanges(c.Changes))
}

func (s sink) Meet(ctx context.Context, did syntax.DID, handle syntax.Handle, pds, source string) error {
	return s.index.Meet(ctx, did, handle, pds, source)
}

func (s sink) Mark(ctx context.Context, did syntax.DID, m ingest.Mark) error {
	switch {
	case m.Doubt:
		return s.index.Doubt(ctx, did, false)
	case m.Left:
		return s.index.Leave(ctx, did)
	case m.Confirmed != "":
		return s.index.Confirm(ctx, did, m.Confirmed, m.Doubts)
	case m.Status != "":
		return s.index.SetStatus(ctx, did, m.Status)
	}
	return s.index.Postpone(ctx, did, m.RetryAt)
}

func (s sink) DoubtSource(ctx context.Context, source string) error {
	return s.index.DoubtSource(ctx, source)
}
