package ingest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/bluesky-social/indigo/atproto/repo"
	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/internal/identity"
	"atcr.io/internal/xrpc"
)

const (
	backfillWorkers = 2
	backfillLook    = 5 * time.Second
	backfillBatch   = 32
	// maxRepoBytes is what is read of a repo at once. Of a larger one each record is asked for by itself.
	maxRepoBytes   = 16 << 20
	maxProofBytes  = 4 << 20
	recordPages    = 1000
	recordPageSize = 100
	retryFirst     = time.Minute
	retryLongest   = 6 * time.Hour
	repoTimeout    = 5 * time.Minute
)

func upstreamCall(base, nsid string, query url.Values) xrpc.UpstreamCall {
	return xrpc.UpstreamCall{Base: base, NSID: nsid, Query: query, Limit: 8 << 20}
}

func upstreamError(err error) (*xrpc.UpstreamError, bool) {
	return errors.AsType[*xrpc.UpstreamError](err)
}

// backfill reads repos that are due.
func (i *Ingester) backfill(ctx context.Context) {
	tick := time.NewTicker(backfillLook)
	defer tick.Stop()
	for {
		if i.next(ctx) {
			i.poke() // another may find more
			continue
		}
		select {
		case <-ctx.Done():
			return
		case <-i.wake:
		case <-tick.C:
		}
	}
}

// next reads one repo that is due and that nobody reads; false where there is none.
func (i *Ingester) next(ctx context.Context) bool {
	if ctx.Err() != nil {
		return false
	}
	due, err := i.config.Sink.Due(ctx, backfillBatch)
	if err != nil {
		if ctx.Err() == nil {
			i.log.Error("repos to be read", "error", err)
		}
		return false
	}
	for _, r := range due {
		if i.claim(r.DID) {
			defer i.release(r.DID)
			if err := i.ReadRepo(ctx, r); err != nil && ctx.Err() == nil {
				i.log.Info("a repo could not be read", "did", r.DID, "attempts", r.Attempts+1, "error", err)
			}
			return ctx.Err() == nil
		}
	}
	return false
}

func (i *Ingester) claim(did syntax.DID) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	if i.busy[did] {
		return false
	}
	i.busy[did] = true
	return true
}

func (i *Ingester) release(did syntax.DID) {
	i.mu.Lock()
	defer i.mu.Unlock()
	delete(i.busy, did)
}

// ReadRepo reads a repo whole and gives it to the Sink. A failure is noted there, with when to try again.
func (i *Ingester) ReadRepo(ctx context.Context, r Repo) error {
	ctx, cancel := context.WithTimeout(ctx, repoTimeout)
	defer cancel()
	outcome, err := i.readRepo(ctx, r)
	if err == nil {
		i.metrics.repos.WithLabelValues(outcome).Inc()
		return nil
	}
	i.metrics.repos.WithLabelValues("failed").Inc()
	if gone := accountGone(err); gone != "" && i.stillAt(ctx, r.DID, gone) {
		return errors.Join(err, i.config.Sink.Mark(context.WithoutCancel(ctx), r.DID, Mark{Status: gone}), i.retryLater(ctx, r))
	}
	return errors.Join(err, i.retryLater(ctx, r))
}

func (i *Ingester) retryLater(ctx context.Context, r Repo) error {
	pause := min(retryFirst<<min(r.Attempts, 12), retryLongest)
	return i.config.Sink.Mark(context.WithoutCancel(ctx), r.DID, Mark{RetryAt: i.now().Add(pause)})
}

func (i *Ingester) readRepo(ctx context.Context, r Repo) (outcome string, err error) {
	now, _, err := i.config.Sink.Repo(ctx, r.DID) // what is doubted from here on, nothing that is asked now answers
	if err != nil {
		return "", err
	}
	who, err := i.config.Directory.LookupDID(ctx, r.DID)
	if err != nil {
		return "", err
	}
	base := who.PDS()
	if base == "" {
		return "", errors.New("the account has no PDS")
	}
	if err := i.config.Sink.Meet(ctx, r.DID, i.handle(ctx, who), base, ""); err != nil {
		return "", err
	}
	if r.Rev != "" {
		rev, err := i.latest(ctx, base, r.DID)
		if err != nil {
			return "", err
		}
		if rev == r.Rev && r.Data != "" {
			return "confirmed", i.config.Sink.Mark(ctx, r.DID, Mark{Confirmed: rev, Doubts: now.Doubts})
		}
	}
	commit, err := i.whole(ctx, base, r.DID)
	if err != nil {
		return "", err
	}
	if commit.Rev < r.Rev {
		return "", fmt.Errorf("the repo stands at %s, and stood at %s before", commit.Rev, r.Rev)
	}
	return "done", i.config.Sink.Replace(ctx, commit, now.Doubts)
}

// handle is what an identity's document claims, if the handle leads back: "" where that cannot be found out now.
func (i *Ingester) handle(ctx context.Context, who *identity.Identity) syntax.Handle {
	if who.Handle == "" || who.Handle.IsInvalidHandle() {
		return syntax.HandleInvalid
	}
	found, err := i.config.Directory.Lookup(ctx, who.Handle.AtIdentifier())
	switch {
	case err == nil && found.DID == who.DID:
		return who.Handle
	case errors.Is(err, identity.ErrUnavailable):
		return ""
	}
	return syntax.HandleInvalid
}

func (i *Ingester) latest(ctx context.Context, base string, did syntax.DID) (string, error) {
	var out struct {
		Rev string `json:"rev"`
	}
	err := i.upstream.JSON(ctx, upstreamCall(base, "com.atproto.sync.getLatestCommit", url.Values{"did": {did.String()}}), &out)
	return out.Rev, err
}

// whole is all that a repo has in the collections, proved.
func (i *Ingester) whole(ctx context.Context, base string, did syntax.DID) (Commit, error) {
	res, err := i.upstream.Do(ctx, upstreamCall(base, "com.atproto.sync.getRepo", url.Values{"did": {did.String()}}))
	if err != nil {
		return Commit{}, err
	}
	raw, err := readAll(res.Body, maxRepoBytes)
	err = errors.Join(err, res.Body.Close())
	if errors.Is(err, errTooLarge) {
		return i.singly(ctx, base, did)
	}
	if err != nil {
		return Commit{}, err
	}
	return i.verifyRepo(ctx, did, raw)
}

// singly reads the records of a repo that is too large one by one, each with its proof. What it returns has no
// values of records that it wrote meanwhile: their CIDs say that they are there.
func (i *Ingester) singly(ctx context.Context, base string, did syntax.DID) (Commit, error) {
	rev, err := i.latest(ctx, base, did)
	if err != nil {
		return Commit{}, err
	}
	out := Commit{DID: did, Rev: rev}
	for _, collection := range i.config.Collections {
		err := i.eachKey(ctx, base, did, collection, func(rkey string) error {
			proved, err := i.proof(ctx, base, did, collection, rkey)
			if err != nil {
				return err
			}
			if err := i.config.Sink.Write(ctx, []Commit{proved}, "", 0); err != nil {
				return err
			}
			change := proved.Changes[0]
			if change.Value != nil {
				change.Value = noRecord
				out.Changes = append(out.Changes, change)
			}
			return nil
		})
		if err != nil {
			return Commit{}, err
		}
	}
	return out, nil
}

// eachKey visits the keys of a collection. Errors: visit's; *xrpc.UpstreamError, of a list without end too.
func (i *Ingester) eachKey(ctx context.Context, base string, did syntax.DID, collection string, visit func(rkey string) error) error {
	type page struct {
		Cursor  string `json:"cursor"`
		Records []struct {
			URI string `json:"uri"`
		} `json:"records"`
	}
	query := url.Values{"repo": {did.String()}, "collection": {collection}, "limit": {strconv.Itoa(recordPageSize)}}
	return xrpc.Pages(ctx, i.upstream, upstreamCall(base, "com.atproto.repo.listRecords", query), recordPages, func(p page) (int, string, error) {
		for _, r := range p.Records {
			rkey := r.URI[strings.LastIndexByte(r.URI, '/')+1:]
			if _, err := syntax.ParseRecordKey(rkey); err != nil {
				continue
			}
			if err := visit(rkey); err != nil {
				return 0, "", err
			}
		}
		return len(p.Records), p.Cursor, nil
	})
}

// proof asks the owner's PDS what is at a path now, and for what proves it.
func (i *Ingester) proof(ctx context.Context, base string, did syntax.DID, collection, rkey string) (Commit, error) {
	call := upstreamCall(base, "com.atproto.sync.getRecord", url.Values{"did": {did.String()}, "collection": {collection}, "rkey": {rkey}})
	call.Limit = maxProofBytes
	raw, _, err := i.upstream.Bytes(ctx, call)
	if err != nil {
		return Commit{}, err
	}
	return i.verifyRecord(ctx, did, collection, rkey, raw)
}

// openSync reads the CAR of a #sync event: a commit alone.
func (i *Ingester) openSync(ctx context.Context, did syntax.DID, raw []byte) (c *car, commit repo.Commit, err error) {
	defer i.caught(&err)
	return i.openCAR(ctx, did, raw)
}

// meet takes up a repo.
func (i *Ingester) meet(ctx context.Context, did syntax.DID, source string) error {
	who, err := i.config.Directory.LookupDID(ctx, did)
	if err != nil {
		i.drop(dropIdentity, "did", did, "error", err)
		return ctx.Err()
	}
	if err := i.config.Sink.Meet(ctx, did, "", who.PDS(), source); err != nil {
		return err
	}
	i.poke()
	return nil
}

func (i *Ingester) doubt(ctx context.Context, did syntax.DID) error {
	if err := i.config.Sink.Mark(ctx, did, Mark{Doubt: true}); err != nil {
		return err
	}
	i.poke()
	return nil
}

func (i *Ingester) doubtSource(ctx context.Context, source string) error {
	if err := i.config.Sink.DoubtSource(ctx, source); err != nil {
		return err
	}
	i.poke()
	return nil
}

// hasCollections asks a PDS whether a repo has records that are kept.
func (i *Ingester) hasCollections(ctx context.Context, did syntax.DID) bool {
	who, err := i.config.Directory.LookupDID(ctx, did)
	if err != nil || who.PDS() == "" {
		return false
	}
	var out struct {
		Collections []string `json:"collections"`
	}
	if err := i.upstream.JSON(ctx, upstreamCall(who.PDS(), "com.atproto.repo.describeRepo", url.Values{"repo": {did.String()}}), &out); err != nil {
		return false
	}
	for _, collection := range out.Collections {
		if i.kept[collection] {
			return true
		}
	}
	return false
}

// identityChanged asks who a followed account is now; where it is reached by its handle is found out when its
// repo is looked at.
func (i *Ingester) identityChanged(ctx context.Context, name, source string) error {
	did, err := syntax.ParseDID(name)
	if err != nil {
		i.drop(dropMalformed, "source", source, "error", err)
		return nil
	}
	if _, followed, err := i.config.Sink.Repo(ctx, did); err != nil || !followed {
		return err
	}
	i.metrics.events.WithLabelValues("identity").Inc()
	who, err := i.config.Directory.Refresh(ctx, did)
	if errors.Is(err, identity.ErrUnavailable) { // asked a moment ago, or down: what is known stays
		who, err = i.config.Directory.LookupDID(ctx, did)
	}
	if err != nil {
		i.drop(dropIdentity, "did", did, "error", err)
		return ctx.Err()
	}
	if err := i.config.Sink.Meet(ctx, did, "", who.PDS(), source); err != nil {
		return err
	}
	return i.doubt(ctx, did)
}

// accountChanged takes what an event says of a followed account's status, which nobody signed: it is asked at
// the account's PDS. Where that does not answer, a relay is believed as far as the account is hidden, and nothing of it
// removed; a Jetstream, which proves nothing, is not.
func (i *Ingester) accountChanged(ctx context.Context, name string, active bool, said, source string) error {
	did, err := syntax.ParseDID(name)
	if err != nil {
		i.drop(dropMalformed, "source", source, "error", err)
		return nil
	}
	state, followed, err := i.config.Sink.Repo(ctx, did)
	if err != nil || !followed || active && state.Active {
		return err
	}
	i.metrics.events.WithLabelValues("account").Inc()
	found, err := i.accountStatus(ctx, did)
	if err != nil {
		if active || source == JetstreamSource {
			return i.doubt(ctx, did)
		}
		found = "deactivated"
		if said == "takendown" || said == "suspended" {
			found = said
		}
	}
	mark := Mark{Status: found}
	if !active && found == "active" { // whoever said so has it no longer: it is at another PDS, or hidden there alone
		mark = Mark{Left: true}
	}
	if err := i.config.Sink.Mark(ctx, did, mark); err != nil {
		return err
	}
	i.poke()
	return nil
}

// accountStatus is what an account's PDS says of it. Errors: where it says nothing.
func (i *Ingester) accountStatus(ctx context.Context, did syntax.DID) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, hintTimeout)
	defer cancel()
	who, err := i.config.Directory.LookupDID(ctx, did)
	if err != nil {
		return "", err
	}
	var out struct {
		Active bool   `json:"active"`
		Status string `json:"status"`
	}
	err = i.upstream.JSON(ctx, upstreamCall(who.PDS(), "com.atproto.sync.getRepoStatus", url.Values{"did": {did.String()}}), &out)
	if gone := accountGone(err); gone != "" && i.stillAt(ctx, did, gone) {
		return gone, nil
	}
	switch {
	case err != nil:
		return "", err
	case out.Active:
		return "active", nil
	case out.Status == "deleted" || out.Status == "takendown" || out.Status == "suspended":
		return out.Status, nil
	}
	return "deactivated", nil
}

// stillAt tells whether a refusal counts: one that would remove everything must come from the PDS that the
// account is at now, not from one that it left.
func (i *Ingester) stillAt(ctx context.Context, did syntax.DID, gone string) bool {
	if gone != "deleted" {
		return true
	}
	before, err := i.config.Directory.LookupDID(ctx, did)
	if err != nil {
		return false
	}
	now, err := i.config.Directory.Refresh(ctx, did)
	return errors.Is(err, identity.ErrNotFound) || err == nil && now.PDS() == before.PDS()
}

// accountGone is the status that a PDS's refusal stands for, "" for none.
func accountGone(err error) string {
	e, ok := upstreamError(err)
	if !ok || e.Status != http.StatusBadRequest && e.Status != http.StatusNotFound {
		return ""
	}
	switch e.Name {
	case "RepoNotFound":
		return "deleted"
	case "RepoTakendown":
		return "takendown"
	case "RepoSuspended":
		return "suspended"
	case "RepoDeactivated":
		return "deactivated"
	}
	return ""
}
