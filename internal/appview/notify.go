package appview

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/bluesky-social/indigo/atproto/syntax"

	"atcr.io/api/atcr"
	"atcr.io/internal/oci"
	"atcr.io/internal/outbox"
	"atcr.io/internal/registry"
	"atcr.io/internal/session"
	"atcr.io/internal/xrpc"
)

// queue keeps messages until they are delivered: outbox.Outbox.
type queue interface {
	Add(ctx context.Context, m outbox.Message) (id int64, err error)
	Release(ctx context.Context, id int64) error
	ReleaseAndWait(ctx context.Context, id int64) error
	Drop(ctx context.Context, id int64) error
}

// keptFor is how long a message is tried to be delivered: a hold that is gone for good, and a person who never signs in
// again, must not have theirs wait beside everybody's.
const keptFor = 90 * 24 * time.Hour

// deedWithin is how long a PDS may take over a deletion that nobody waits for any more: after that the deletion is
// believed never to have been made.
const deedWithin = 6 * time.Hour

const operationDelete = "delete"

// patience is how long a push waits for what the hold says of it, where that may be a refusal.
const patience = 3 * time.Second

// notifier tells holds what happened to the images whose blobs they have, in the person's name.
//
// Source: contract, "notifyManifest" and "requestCrew".
type notifier struct {
	queue    queue
	holds    *holds
	calls    *holdCalls
	sessions interface {
		Another(ctx context.Context, did syntax.DID, not string) (session.Session, error)
	}
	logger *slog.Logger
	clock  clock
	joined *cache[membership, bool]
}

// membership is a person and a hold that they asked to be a member of.
type membership struct{ person, hold syntax.DID }

// toldPlatforms bounds the children whose platforms a hold is told, for its post about the image.
const toldPlatforms = 1000

// joinAgain is how long a person is believed to be a member whom a hold made one.
const joinAgain = 24 * time.Hour

func newNotifier(holds *holds, calls *holdCalls, sessions *session.Store, logger *slog.Logger, now clock) *notifier {
	n := &notifier{holds: holds, calls: calls, sessions: sessions, logger: logger, clock: now}
	n.joined = newCache(10_000, joinAgain, joinAgain, now, func(context.Context, membership) (bool, error) { return false, nil })
	return n
}

// outcome is what became of a push.
type outcome int

const (
	notWritten outcome = iota
	written
	// writtenOfOthers names blobs that its pusher has not just sent: the hold may refuse to keep those for them.
	writtenOfOthers
	// perhapsWritten is an answer of the PDS's that was lost, or made no sense.
	perhapsWritten
)

// pushing keeps the message of a push before the push is made, so that neither a crash nor an answer that is
// lost lets blobs go that a manifest names. done sends it, forgets it, or leaves it to be sent in a minute; it returns
// a refusal of the hold's to keep the image for this person.
// Errors: *oci.Error where it cannot be kept: then the push must not be made.
func (n *notifier) pushing(ctx context.Context, c registry.Caller, of owner, name oci.Name, at *hold, man registry.Manifest, parsed *oci.Manifest, tags []string) (done func(outcome) error, err error) {
	in := atcr.HoldNotifyManifestInput{
		Operation: "push", Repository: name.Repository, UserDid: of.DID.String(), ManifestDigest: man.Digest.String(),
		Manifest: atcr.HoldNotifyManifestManifestInfo{MediaType: man.MediaType},
	}
	if len(tags) > 0 {
		in.Tag = tags[0]
	}
	if parsed.Config != nil {
		config := blobInfo(*parsed.Config)
		in.Manifest.Config = &config
	}
	for _, l := range parsed.Layers {
		if len(l.URLs) == 0 { // the others are kept elsewhere
			in.Manifest.Layers = append(in.Manifest.Layers, blobInfo(l))
		}
	}
	for _, m := range parsed.Manifests {
		child := atcr.HoldNotifyManifestManifestChild{Digest: m.Digest.String(), Size: m.Size, MediaType: m.MediaType}
		if p := m.Platform; p != nil && len(parsed.Manifests) <= toldPlatforms {
			child.Platform = &atcr.ManifestPlatform{Architecture: p.Architecture, Os: p.OS, Variant: p.Variant}
		}
		in.Manifest.Manifests = append(in.Manifest.Manifests, child)
	}
	var ids []int64
	if at.AllowAllCrew {
		who := membership{of.DID, at.DID}
		if known, err := n.joined.get(ctx, who); err == nil && !known {
			id, err := n.keep(ctx, c, of, at.DID, atcr.HoldRequestCrewNSID, atcr.HoldRequestCrewInput{})
			if err != nil {
				return nil, err
			}
			n.joined.put(who, true)
			ids = append(ids, id)
		}
	}
	id, err := n.keep(ctx, c, of, at.DID, atcr.HoldNotifyManifestNSID, in)
	done = func(what outcome) error {
		if what == notWritten {
			n.joined.forget(membership{of.DID, at.DID})
		}
		return overQuota(of, at, n.settle(context.WithoutCancel(ctx), ids, what))
	}
	if err != nil {
		return nil, errors.Join(err, done(notWritten))
	}
	ids = append(ids, id)
	return done, nil
}

// settle sends or forgets messages. It returns what came of the last one, where that is waited for.
func (n *notifier) settle(ctx context.Context, ids []int64, what outcome) (answer error) {
	settle := n.queue.Release
	switch what {
	case written, writtenOfOthers:
	case notWritten:
		settle = n.queue.Drop
	case perhapsWritten: // they go when the time is up for which they are held back
		return nil
	}
	for i, id := range ids {
		if what == writtenOfOthers && i == len(ids)-1 {
			bounded, cancel := context.WithTimeout(ctx, patience)
			answer = n.queue.ReleaseAndWait(bounded, id)
			cancel()
			continue
		}
		if err := settle(ctx, id); err != nil {
			n.logger.Warn("a message to a hold is not settled", "id", id, "error", err)
		}
	}
	return answer
}

// overQuota is the refusal of a hold to keep more for somebody, in words; nil for every other answer. The records are
// written by then: the image can be pulled while others keep its blobs.
func overQuota(of owner, at *hold, err error) error {
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok || e.Name != atcr.HoldNotifyManifestErrorQuotaExceeded {
		return nil
	}
	out := oci.Errorf(oci.CodeDenied, "the quota of %s at the hold %s is used up: it does not keep this image for you, and its blobs go when nobody else needs them. "+
		"Delete images, ask its owner for more, or choose another hold, and push again%s", of.DID, at.DID, said(e))
	out.Err = err
	return out
}

// deleting keeps messages to the holds that have a manifest's blobs, as pushing does, before the manifest is deleted.
// Errors: *oci.Error where they cannot be kept: then nothing must be deleted.
func (n *notifier) deleting(ctx context.Context, c registry.Caller, of owner, repository string, at []syntax.DID, d oci.Digest) (done func(outcome), err error) {
	in := atcr.HoldNotifyManifestInput{Operation: operationDelete, Repository: repository, UserDid: of.DID.String(), ManifestDigest: d.String()}
	var ids []int64
	done = func(what outcome) { _ = n.settle(context.WithoutCancel(ctx), ids, what) } // no answer is waited for
	for _, hold := range at {
		id, err := n.keep(ctx, c, of, hold, atcr.HoldNotifyManifestNSID, in)
		if err != nil {
			done(notWritten)
			return nil, err
		}
		ids = append(ids, id)
	}
	return done, nil
}

// keep adds a message. Errors: *oci.Error where too many wait, the database's.
func (n *notifier) keep(ctx context.Context, c registry.Caller, of owner, at syntax.DID, nsid string, in any) (id int64, err error) {
	body, err := json.Marshal(in)
	if err != nil {
		return 0, err
	}
	id, err = n.queue.Add(ctx, outbox.Message{Sender: of.DID.String(), To: at.String(), Kind: nsid, Session: c.Session, Body: body})
	if errors.Is(err, outbox.ErrFull) {
		return 0, &oci.Error{
			Code: oci.CodeTooManyRequests, RetryAfter: time.Minute, Err: err,
			Message: fmt.Sprintf("the hold %s has not been told of your earlier pushes and deletions yet: try again later, or push to another hold", at),
		}
	}
	return id, err
}

func blobInfo(d oci.Descriptor) atcr.HoldNotifyManifestBlobInfo {
	return atcr.HoldNotifyManifestBlobInfo{Digest: d.Digest.String(), Size: d.Size, MediaType: d.MediaType}
}

// deliver sends one message. What a hold refuses is refused for good, but for its limits and for a token
// that it does not take. An error without a name is not a hold's, but that of a proxy before one that is being
// started: the message is sent again. A membership is refused for good in any case: who may push without one must not have
// the messages behind it wait.
func (n *notifier) deliver(ctx context.Context, m outbox.Message) (err error) {
	did := syntax.DID(m.To)
	defer func() {
		if err != nil && n.clock().Sub(m.Since) > keptFor {
			err = fmt.Errorf("%w: not delivered in %d days: %w", outbox.ErrRefused, keptFor/(24*time.Hour), err)
		}
	}()
	at, err := n.holds.find(ctx, did)
	if err != nil {
		return err
	}
	if !m.Released {
		there, err := n.stillThere(ctx, m)
		if err != nil {
			return err
		}
		if there && n.clock().Sub(m.Since) < deedWithin {
			return fmt.Errorf("%w: the manifest's record is there", outbox.ErrTooEarly)
		}
		if there {
			return nil
		}
	}
	err = n.send(ctx, at, m)
	if errors.Is(err, session.ErrGone) { // they may have signed in again, or do so one day
		other, otherErr := n.sessions.Another(ctx, syntax.DID(m.Sender), m.Session)
		if otherErr != nil {
			return errors.Join(err, otherErr)
		}
		m.Session = other.ID
		err = n.send(ctx, at, m)
	}
	e, ok := errors.AsType[*xrpc.UpstreamError](err)
	if !ok || e.Invalid {
		return err
	}
	switch {
	case m.Kind == atcr.HoldRequestCrewNSID && e.Status/100 == 4:
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	case e.Status == http.StatusTooManyRequests, e.Status == http.StatusRequestTimeout, e.Status == http.StatusUnauthorized:
		return err
	case e.Name != "" && (e.Status/100 == 4 || e.Status == http.StatusNotImplemented):
		return fmt.Errorf("%w: %w", outbox.ErrRefused, err)
	}
	return err
}

func (n *notifier) send(ctx context.Context, at *hold, m outbox.Message) error {
	c := registry.Caller{Subject: m.Sender, Session: m.Session}
	get := n.calls.tokens.ServiceToken
	if m.Kind == atcr.HoldRequestCrewNSID {
		get = n.calls.tokens.OnceToken
	}
	return n.calls.with(ctx, c, at, m.Kind, get, func(token string) error {
		call, err := xrpc.JSONCall(at.URL, m.Kind, token, json.RawMessage(m.Body))
		if err != nil {
			return err
		}
		return n.calls.upstream.JSON(ctx, call, nil)
	})
}

// stillThere tells whether a message speaks of a deletion that was perhaps never made, and is not so. A hold that was told of
// it would let the image's blobs go.
func (n *notifier) stillThere(ctx context.Context, m outbox.Message) (bool, error) {
	var in atcr.HoldNotifyManifestInput
	if m.Kind != atcr.HoldNotifyManifestNSID || json.Unmarshal(m.Body, &in) != nil || in.Operation != operationDelete {
		return false, nil
	}
	did := syntax.DID(m.Sender)
	who, err := n.holds.directory.LookupDID(ctx, did)
	if err != nil {
		return false, err
	}
	for _, rkey := range manifestRkeys(in.Repository, oci.Digest(in.ManifestDigest)) {
		f, err := getRecord[atcr.Manifest](ctx, n.calls.upstream, who.PDS(), did, atcr.ManifestNSID, rkey)
		if err != nil {
			return false, err
		}
		if f != nil && f.Value.Repository == in.Repository && holdOf(&f.Value).String() == m.To {
			return true, nil
		}
	}
	return false, nil
}
